"""What the README shows must run as it stands, and what it links must exist."""

import re

import pytest

from tests import checkpoints, compat
from training import sft

README = (checkpoints.ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run_one_after_another(monkeypatch, capsys):
    monkeypatch.chdir(checkpoints.ROOT)
    namespace = {}
    for block in BLOCKS:
        exec(block, namespace)
    assert len(BLOCKS) >= 3 and len(namespace["answers"]) == 2
    assert (
        "\\boxed" in capsys.readouterr().out
    )  # what streaming and the last line of the second block print
    assert [
        name for name, parameter in namespace["model"].named_parameters() if parameter.requires_grad
    ] == [name for name, _ in namespace["model"].named_parameters() if name.startswith("mlp1.")]


@pytest.mark.parametrize(
    "path",
    sorted(
        set(
            re.findall(
                r"`((?:examples|tests|training|evaluation|preprocessor|nano)/[\w./]*)`", README
            )
        )
    ),
)
def test_paths_exist(path):
    assert (checkpoints.ROOT / path).exists()


@pytest.mark.parametrize("flags", re.findall(r"-m training\.sft (--config .*)", README))
def test_training_commands_parse(flags, monkeypatch):
    monkeypatch.chdir(checkpoints.ROOT)
    recipe, _ = sft.parse(flags.split())
    assert recipe.save


def test_every_file_of_the_tree_is_there():
    tree = README.split("## The tree")[1].split("## Licence")[0]
    names = re.findall(r"`([\w./]+)`", tree)
    places = (checkpoints.ROOT, checkpoints.ROOT / "examples", checkpoints.ROOT / "tests")
    missing = [
        name
        for name in names
        if "." in name and not any((place / name).exists() for place in places)
    ]
    assert not missing


def test_the_compatibility_table_covers_the_installed_version():
    table = README.split(compat.TABLE_START)[1].split(compat.TABLE_END)[0]
    assert f"| {compat.installed_version()} |" in table and "| 4.37.2 |" in table
    assert "fails" not in table
