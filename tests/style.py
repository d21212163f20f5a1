"""Measures of readability, over files and directories of Python.

    python -m tests.style                       # every room of the repository
    python -m tests.style chat.py preprocessor  # these

One line for each argument and one for all of them. Density counts conditional expressions,
comprehensions and assignments of one tuple to another, per 1,000 lines that are not blank.
Complexity is McCabe's, as radon counts it.
"""

from __future__ import annotations

import ast
import dataclasses
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from radon.complexity import cc_visit

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "benchmarks",
    "demo",
    "evaluation",
    "examples",
    "explain",
    "export",
    "integrations",
    "memory",
    "preprocessor",
    "serving",
    "tasks",
    "training",
)
LONGEST_LINE = 100
COMPLEX = 10
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass
class Measured:
    """A function and its measures: lines, parameters without self, and whether all have types."""

    place: str
    lines: int
    parameters: int
    annotated: int
    is_public: bool
    has_docstring: bool


@dataclasses.dataclass
class Totals:
    """The sums over files."""

    lines: int = 0
    long_lines: int = 0
    conditionals: int = 0
    comprehensions: int = 0
    tuple_assignments: int = 0
    functions: list[Measured] = dataclasses.field(default_factory=list)
    complexities: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    @property
    def density(self) -> float:
        """Dense expressions per 1,000 lines."""
        dense = self.conditionals + self.comprehensions + self.tuple_assignments
        return 1000 * dense / max(self.lines, 1)


def python_files(path: Path) -> list[Path]:
    """The Python files of a file or folder."""
    if path.is_file():
        return [path]
    return sorted(path.rglob("*.py"))


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """The parameters of a function, without self, *args and **kwargs."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [parameter for parameter in every if parameter.arg not in ("self", "cls")]


def measure(files: Iterable[Path]) -> Totals:
    """The measures of files together."""
    totals = Totals()
    for file in files:
        text = file.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
        totals.lines += len(lines)
        totals.long_lines += sum(len(line) > LONGEST_LINE for line in lines)
        for node in ast.walk(ast.parse(text)):
            _count(totals, node, file)
        for block in cc_visit(text):
            if type(block).__name__ == "Function":
                totals.complexities.append((f"{file.name}:{block.name}", block.complexity))
    return totals


def _count(totals: Totals, node: ast.AST, file: Path) -> None:
    totals.conditionals += isinstance(node, ast.IfExp)
    totals.comprehensions += isinstance(node, COMPREHENSIONS)
    if isinstance(node, ast.Assign):
        to_tuple = isinstance(node.targets[0], ast.Tuple)
        totals.tuple_assignments += to_tuple and isinstance(node.value, ast.Tuple)
    if isinstance(node, Function):
        parameters = parameters_of(node)
        measured = Measured(
            place=f"{file.name}:{node.name}",
            lines=node.end_lineno - node.lineno + 1,
            parameters=len(parameters),
            annotated=sum(parameter.annotation is not None for parameter in parameters),
            is_public=not node.name.startswith("_"),
            has_docstring=ast.get_docstring(node) is not None,
        )
        totals.functions.append(measured)


def percentile(values: list[int], share: float) -> int:
    """The value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def describe(name: str, totals: Totals) -> str:
    """One line with all measures."""
    functions = totals.functions
    lengths = [function.lines for function in functions]
    counts = [function.parameters for function in functions]
    public = [function for function in functions if function.is_public]
    longest = max(functions, key=lambda function: function.lines)
    annotated = sum(function.annotated for function in functions) / max(sum(counts), 1)
    too_complex = sum(value > COMPLEX for _, value in totals.complexities)
    documented = sum(function.has_docstring for function in public)
    per_line = 1000 / max(totals.lines, 1)
    return (
        f"{name}: {totals.lines} lines; {len(functions)} functions, median "
        f"{statistics.median(lengths):.0f} lines, 90th percentile {percentile(lengths, 0.9)}, "
        f"largest {longest.lines} ({longest.place}); parameters: 90th percentile "
        f"{percentile(counts, 0.9)}, most {max(counts)}, annotated {annotated:.0%}; lines over "
        f"{LONGEST_LINE} columns {totals.long_lines / totals.lines:.1%}; complexity over {COMPLEX} "
        f"{too_complex / max(len(totals.complexities), 1):.1%}; density {totals.density:.0f} "
        f"({totals.conditionals * per_line:.0f} conditional expressions, "
        f"{totals.comprehensions * per_line:.0f} comprehensions, "
        f"{totals.tuple_assignments * per_line:.0f} tuple assignments); public docstrings "
        f"{documented / max(len(public), 1):.0%}"
    )


def files_of_repository() -> list[Path]:
    """Every Python file outside the tests."""
    files = sorted(ROOT.glob("*.py"))
    for room in ROOMS:
        files += python_files(ROOT / room)
    return files


def main() -> None:
    """Print the measures of the arguments."""
    named = [Path(argument) for argument in sys.argv[1:]]
    everything: list[Path] = []
    for path in named:
        files = python_files(path)
        everything += files
        print(describe(str(path), measure(files)))
    print(describe("all", measure(everything or files_of_repository())))


if __name__ == "__main__":
    main()
