"""Counts the right answers to easy-vqa by kind: shapes, colours, yes or no.

    python -m examples.easy_vqa.kinds runs/easy_vqa/all/score/answers.jsonl

Reads what `training.score` has written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from training.command_line import argument_parser, exit_code

SHAPES = ("circle", "rectangle", "triangle")
YES_OR_NO = ("yes", "no")
KINDS = ("shapes", "colours", "yes or no")


class Count(NamedTuple):
    """Questions that were answered right, and all."""

    right: int
    total: int

    def __str__(self) -> str:
        return f"{self.right} of {self.total} ({100 * self.right / max(self.total, 1):.0f} %)"


def kind_of(answer: str) -> str:
    """The kind of the questions that have such an answer."""
    if answer in SHAPES:
        return "shapes"
    return "yes or no" if answer in YES_OR_NO else "colours"


def count(lines: Iterable[str]) -> dict[str, Count]:
    """The right answers of each kind and of all, from the lines of answers.jsonl."""
    counts = dict.fromkeys([*KINDS, "all"], Count(0, 0))
    for line in lines:
        answer = json.loads(line)
        for name in (kind_of(answer["expected"]), "all"):
            right, total = counts[name]
            counts[name] = Count(right + answer["right"], total + 1)
    return counts


def _print_counts(paths: Sequence[Path]) -> None:
    for path in paths:
        counts = count(path.read_text(encoding="utf-8").splitlines())
        print(f"{path}: " + ", ".join(f"{name} {found}" for name, found in counts.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argument_parser("examples.easy_vqa.kinds", __doc__)
    parser.add_argument("answers", type=Path, nargs="+", help="answers.jsonl of training.score")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _print_counts(options.answers))


if __name__ == "__main__":
    sys.exit(main())
