"""What README and docs show must run as it stands, and what they name or link must exist."""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from trl import TrlParser

from remote_code.transformers_compat import SUPPORTED_VERSIONS
from tests import checkpoints, compat

ROOT = checkpoints.ROOT
PUBLISHED_CARD = ROOT / "docs" / "published_model_card.md"  # kept as it is
# CHANGELOG.md is not among them: it names places that are no more
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "training" / "README.md",
    ROOT / "benchmarks" / "NOTES.md",
    *sorted(set((ROOT / "docs").glob("*.md")) - {PUBLISHED_CARD}),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FILE_ENDINGS = (".py", ".md", ".json", ".jsonl", ".jinja", ".yaml", ".png", ".txt")
# Files that the commands on a page read or write; they are not in the repository
FILES_OF_USERS = (
    "summary.json",
    "log.jsonl",
    "loss.png",
    "questions.jsonl",
    "answers.jsonl",
    "my.jsonl",
    "results.json",
    "rewards.png",
    "completions.jsonl",
    "completions.html",
    "selection.jsonl",
    "rated_high.jsonl",
    "data.jsonl",
    "report.json",
    "clarity.jsonl",
    "necessity.jsonl",
    "text.jsonl",
    "integration.jsonl",
    "length.jsonl",
    "ranges.json",
    "tries.jsonl",
    "check.jsonl",
    "revision.jsonl",
    "distilled.jsonl",
    "set_aside.jsonl",
    "lengths.png",
    "train.jsonl",
    "dev.jsonl",
    "test.jsonl",
    "blank.jsonl",
    "score.json",
    "table.md",
    "hybrid.png",
)
FOLDERS_OF_RUNS = ("runs", "build", "dist")


def cases(pattern, flags=0):
    """(page, what the pattern's group finds in it), each once, in the order of the pages."""
    found = []
    for page, text in TEXTS.items():
        found += [(page, match) for match in re.findall(pattern, text, flags)]
    return list(dict.fromkeys(found))


# -- Python ----------------------------------------------------------------------------------------


def run_blocks(page, monkeypatch):
    """The names that a page's Python blocks leave, run one after another."""
    monkeypatch.chdir(ROOT)
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL):
        exec(block, namespace)
    return namespace


def test_the_readme_runs(monkeypatch, capsys):
    namespace = run_blocks("README.md", monkeypatch)
    assert len(namespace["history"]) == 1 and isinstance(namespace["response"], str)
    assert "\\boxed" in capsys.readouterr().out  # the answers about one image and about two


def test_the_page_of_evaluation_runs(monkeypatch, capsys):
    run_blocks("docs/evaluate.md", monkeypatch)
    assert capsys.readouterr().out == "True the same number\n"


def test_the_page_of_users_runs(monkeypatch, capsys):
    namespace = run_blocks("docs/use.md", monkeypatch)
    assert len(namespace["answers"]) == 2
    assert "\\boxed" in capsys.readouterr().out  # from streaming, and from the processor's answer


def test_the_page_of_training_runs(monkeypatch):
    parameters = list(run_blocks("docs/train.md", monkeypatch)["model"].named_parameters())
    trained = [name for name, parameter in parameters if parameter.requires_grad]
    assert trained == [name for name, _ in parameters if name.startswith("mlp1.")]
    assert trained


def test_no_other_page_has_python_that_is_not_run():
    with_blocks = {page for page, text in TEXTS.items() if "```python" in text}
    assert with_blocks == {"README.md", "docs/use.md", "docs/train.md", "docs/evaluate.md"}


# -- commands --------------------------------------------------------------------------------------


def module_commands():
    """(module, its arguments as one text) of every `python -m` and `accelerate launch` line."""
    found = []
    for text in TEXTS.values():
        one_line_each = re.sub(r" *\\\n *", " ", text)
        found += re.findall(
            r"(?:python|accelerate launch [^`\n]*?) -m ([\w.]+)([^`\n]*)", one_line_each
        )
    return sorted({(module, arguments.split("#")[0].strip()) for module, arguments in found})


class ParsedError(Exception):
    """Ends a command once its arguments have been parsed."""


@pytest.fixture
def parse_only(monkeypatch):
    """Commands stop after parsing; a wrong argument is a SystemExit or a ValueError as always."""
    parse_arguments = argparse.ArgumentParser.parse_args
    parse_recipe = TrlParser.parse_args_and_config

    def parse_arguments_only(parser, *arguments, **keywords):
        parse_arguments(parser, *arguments, **keywords)
        raise ParsedError

    def parse_recipe_only(parser, *arguments, **keywords):
        recipe = parse_recipe(parser, *arguments, **keywords)[0]
        assert recipe.save
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_arguments_only)
    monkeypatch.setattr(TrlParser, "parse_args_and_config", parse_recipe_only)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("module, arguments", module_commands())
def test_commands_exist_and_parse(module, arguments, parse_only, monkeypatch):
    assert importlib.util.find_spec(module), f"no module {module}"
    if not (ROOT / module.split(".")[0]).exists():
        return  # a tool such as pytest
    if importlib.util.find_spec(module).submodule_search_locations:
        module = f"{module}.__main__"
    arguments = arguments.replace("RECIPE", "examples/finetune/recipe.yaml")
    command = importlib.import_module(module)
    words = shlex.split(arguments)
    if words:  # a command that is only mentioned has none
        if module in ("training.sft", "training.grpo"):
            words += ["--use_cpu", "true"]  # bf16 in a recipe asks for a GPU otherwise
        monkeypatch.setattr(sys, "argv", [module, *words])
        with pytest.raises(ParsedError):
            command.main()


@pytest.mark.parametrize("page, target", cases(r"(?:^    |`)make ([a-z][\w-]*)", re.MULTILINE))
def test_make_targets_exist(page, target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


# -- paths and links -------------------------------------------------------------------------------


def is_path(text):
    """Whether a text in backticks is meant as a path in this repository."""
    first = text.split("/")[0]
    if text in FILES_OF_USERS or first in FOLDERS_OF_RUNS:
        return False
    return text.endswith(FILE_ENDINGS) or ("/" in text and (ROOT / first).is_dir())


def paths():
    """(page, path) of every path in backticks, and of every path to a file in a command."""
    in_backticks = cases(r"`([\w.-]+(?:/[\w.-]*)*)`")
    in_commands = cases(r"(?<![\w/.])((?:training|examples|tests|docs)/[\w/.-]+\.\w+)")
    return [case for case in dict.fromkeys(in_backticks + in_commands) if is_path(case[1])]


@pytest.mark.parametrize("page, path", paths())
def test_paths_exist(page, path):
    assert (ROOT / path).exists() or (ROOT / page).parent.joinpath(path).exists()


@pytest.mark.parametrize("page, link", [
    *cases(r"\]\((?!https?:)([^)\s]+)\)"), *cases(r'src="(?!https?:)([^"]+)"'),
])  # fmt: skip
def test_links_lead_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the Hub make them."""
    headings = re.findall(r"^#+ (.*)$", Path(page).read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return [heading.replace(" ", "-") for heading in plain]


def python_files():
    """Every Python file outside tests/ and nano/ that is not empty, relative to the root."""
    files = list(ROOT.glob("*.py"))
    for folder in ROOT.iterdir():
        is_hidden = folder.name.startswith(".")
        if folder.is_dir() and not is_hidden and folder.name not in ("tests", "nano", "runs"):
            files += folder.rglob("*.py")
    return {str(file.relative_to(ROOT)) for file in files if file.stat().st_size}


def test_the_tree_has_every_file():
    names = set(re.findall(r"`([\w./]+)`", TEXTS["docs/code.md"]))
    assert not sorted(python_files() - names)


@pytest.mark.parametrize("page", [page for page in TEXTS if page.startswith("docs/")])
def test_every_page_is_linked_from_the_readme(page):
    assert f"({page})" in TEXTS["README.md"]


# -- versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/compatibility.md"])
def test_pages_state_the_supported_versions(page):
    oldest, newest = SUPPORTED_VERSIONS
    stated = re.findall(r"transformers (\d+\.\d+) to (\d+\.\d+)", TEXTS[page])
    assert stated and set(stated) == {(oldest, newest)}


def test_the_requirements_are_the_supported_versions():
    oldest, newest = SUPPORTED_VERSIONS
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("transformers")]
    major, minor = compat.NEWEST
    specifier = Requirement(line).specifier
    assert f"{oldest}.0" in specifier and f"{newest}.99" in specifier
    assert f"{compat.OLDEST[0]}.{compat.OLDEST[1] - 1}.99" not in specifier
    assert f"{major}.{minor + 1}.0" not in specifier


def versions_in_table():
    """The versions in the table of docs/compatibility.md, as tuples of three numbers."""
    table = TEXTS["docs/compatibility.md"].split(compat.TABLE_START)[1].split(compat.TABLE_END)[0]
    assert "fails" not in table and "other answers" not in table
    rows = re.findall(r"^\| (\d+)\.(\d+)\.(\d+) \|", table, re.MULTILINE)
    return [tuple(map(int, row)) for row in rows]


def test_the_table_covers_the_installed_version():
    installed = tuple(map(int, compat.installed_version().split(".")))
    assert installed in versions_in_table() and (4, 37, 2) in versions_in_table()


def test_the_table_covers_the_supported_versions():
    minors = [version[:2] for version in versions_in_table()]
    assert minors == sorted(set(minors))
    assert (minors[0], minors[-1]) == (compat.OLDEST, compat.NEWEST)
