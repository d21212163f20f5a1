"""Teaches a checkpoint the data set easy-VQA, which nobody made for it (docs/easy_vqa.md).

    pip install easy-vqa
    python -m examples.easy_vqa data runs/easy_vqa     # writes the data for training.sft and score
    python -m examples.easy_vqa rates runs/easy_vqa    # tries learning rates, a few steps each
    python -m examples.easy_vqa table runs/easy_vqa    # the scores of all recipes, in Markdown

easy-VQA (V. Zhou, MIT licence) has 5,000 pictures of 64 pixels a side with one shape each, and
48,248 questions with 13 answers: three shapes, eight colours, yes and no.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.easy_vqa import data, rates, recipes, table
from training.command_line import argument_parser, exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 1 after an error that is printed in one line.
    """
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.action(options))


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argument_parser("examples.easy_vqa", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    write = commands.add_parser("data", help="write the data")
    write.add_argument("folder", type=Path, help="where train.jsonl and the others go")
    defaults = data.Counts()
    write.add_argument("--train", type=int, default=defaults.train, help="questions to train on")
    write.add_argument("--dev", type=int, default=defaults.dev, help="to choose settings by")
    write.add_argument("--test", type=int, default=defaults.test, help="held-out questions")
    write.add_argument("--seed", type=int, default=0, help="of the questions that are drawn")
    write.set_defaults(action=_write)
    measure = commands.add_parser("rates", help="try learning rates")
    measure.add_argument("folder", type=Path, help="of the data")
    grid = rates.Grid()
    measure.add_argument(
        "--recipes", nargs="+", default=grid.names, choices=recipes.NAMES, help="which to train"
    )
    measure.add_argument(
        "--factors", type=float, nargs="+", default=grid.factors, help="on the recipes' own rates"
    )
    measure.add_argument("--steps", type=int, default=grid.steps, help="of each run")
    measure.add_argument("--asked", type=int, default=grid.asked, help="questions after each run")
    measure.set_defaults(action=_try_rates)
    show = commands.add_parser("table", help="print the scores of all recipes")
    show.add_argument("folder", type=Path, help="of the data")
    show.set_defaults(action=_show_table)
    return parser


def _write(options: argparse.Namespace) -> None:
    """Write the data."""
    counts = data.Counts(options.train, options.dev, options.test)
    data.write_data(options.folder, counts, options.seed)
    print(
        f"{options.folder}: {counts.train} questions to train on, {counts.dev} to choose settings "
        f"by, {counts.test} held out, and the same {counts.test} with blank pictures."
    )


def _try_rates(options: argparse.Namespace) -> None:
    """Measure the grid, and print each run as it is finished."""
    grid = rates.Grid(tuple(options.recipes), tuple(options.factors), options.steps, options.asked)
    print(rates.header(), flush=True)
    for tried in rates.run_grid(options.folder, grid):
        print(rates.line_of(tried), flush=True)


def _show_table(options: argparse.Namespace) -> None:
    """Print the table."""
    print(table.table_of(options.folder))


if __name__ == "__main__":
    sys.exit(main())
