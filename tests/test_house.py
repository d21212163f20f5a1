"""The rules of the house (CONTRIBUTING.md): rooms, types, and how long and dense code may be."""

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from remote_code import checkpoint_files
from tests import style

ROOT = style.ROOT
ROOT_MODULES = {path.stem for path in ROOT.glob("*.py")}
TOOL_MODULES = {"remote_code", "durable"}  # of the repository's tools, not of the model
# Published signatures, or those of transformers' classes and methods.
PUBLISHED = {
    "chat.py:chat",
    "chat.py:chat_stream",
    "chat.py:batch_chat",
    "configuration_skywork_chat.py:__init__",
    "modeling_skywork_chat.py:forward",
    "modeling_skywork_chat.py:generate",
    "processing_skywork_chat.py:__call__",
    "processing_skywork_chat.py:apply_chat_template",
}


def imported_modules(file: Path) -> set[str]:
    """The first names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def rooms_imported_by(room: str) -> set[str]:
    files = style.python_files(ROOT / room)
    return set.union(*map(imported_modules, files)) & {*style.ROOMS, "tests"} - {room}


def test_no_two_rooms_import_each_other():
    imports = {room: rooms_imported_by(room) for room in style.ROOMS}
    for room, others in imports.items():
        assert "tests" not in others, f"{room} imports from tests"
        for other in others:
            assert room not in imports[other], f"{room} and {other} import each other"


def test_rooms_reach_the_model_through_remote_code_alone():
    """As top-level modules the files could not import each other relatively."""
    for file in style.files_of_repository():
        if file.name != "remote_code.py":
            direct = imported_modules(file) & ROOT_MODULES - TOOL_MODULES
            assert not direct, f"{file} imports {direct}"


def test_the_entry_file_imports_every_code_file_itself():
    """Before 5.9 transformers copies what the entry file imports, and nothing further."""
    text = (ROOT / "modeling_skywork_chat.py").read_text(encoding="utf-8")
    imported = {
        node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.level == 1
    }
    needed = {Path(name).stem for name in checkpoint_files.CODE_FILES} - {"modeling_skywork_chat"}
    assert imported == needed == ROOT_MODULES - TOOL_MODULES - {"modeling_skywork_chat"}


def siblings(path):
    """The names of the files beside it that a file of preprocessor/ imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}


@pytest.mark.parametrize("entry", ["image_processing_skywork_chat", "processing_skywork_chat"])
def test_processors_import_what_their_siblings_import(entry):
    """The same for the classes in preprocessor/."""
    folder = ROOT / "preprocessor"
    imported = siblings(folder / f"{entry}.py")
    for name in imported:
        assert siblings(folder / f"{name}.py") <= imported, f"{name}.py imports a further file"


@pytest.fixture(scope="module")
def totals():
    return style.measure(style.files_of_repository())


def test_functions_are_short_and_have_few_parameters(totals):
    lengths = [function.lines for function in totals.functions]
    assert statistics.median(lengths) <= 12 and style.percentile(lengths, 0.9) <= 35
    assert [f.place for f in totals.functions if f.lines > 60] == []
    many = {f.place for f in totals.functions if f.parameters > 8}
    assert many <= PUBLISHED, "pass a dataclass instead"


def test_lines_say_one_thing(totals):
    assert totals.density < 40 and totals.long_lines == 0
    too_complex = [place for place, value in totals.complexities if value > style.COMPLEX]
    assert len(too_complex) <= 0.03 * len(totals.complexities), too_complex


def test_everything_has_types_and_public_functions_a_docstring(totals):
    assert [f.place for f in totals.functions if f.annotated < f.parameters] == []
    public = [function for function in totals.functions if function.is_public]
    undocumented = [function.place for function in public if not function.has_docstring]
    assert len(undocumented) <= 0.05 * len(public), undocumented


def test_types_agree():
    """basedpyright in basic mode, as configured in pyproject.toml."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [
        f"{Path(entry['file']).name}:{entry['range']['start']['line'] + 1}: {entry['message']}"
        for entry in found
        if entry["severity"] == "error"
    ]
    assert not errors, "\n".join(errors)
