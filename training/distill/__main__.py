"""Distils chains of thought whose length follows the difficulty (report, section 2.3).

    python -m training.distill --config training/recipes/nano/distill.yaml
    python -m training.distill --config RECIPE --estimate
    python -m training.distill --config RECIPE --shard 0/2 --until integration
    python -m training.distill --config RECIPE --penalty 1.0 --output-dir runs/control

JSONL of questions with images and right answers in, JSONL for training.sft out. Each sample is
scored (how clear its image is, what the question asks for, how closely it ties both together); the
scores give the repetition penalty P under which the model writes its chains; the shortest right one
is kept, and a wrong one is revised. Each stage has its file in the output directory
(training/distill/pipeline.py). Run again after an interruption it goes on. What could not be used
is in set_aside.jsonl with the reason; --retry tries it again. Samples about which no endpoint has
replied are asked about again at every start.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from serving.interrupt import exit_at_interrupt
from training.command_line import argument_parser, exit_code
from training.distill import estimate, pipeline
from training.distill.length import ADAPTIVE
from training.distill.recipe import DistillRecipe, read_recipe


def main() -> int:
    """Run the recipe of the command line, and print its report."""
    parser = argument_parser("training.distill", __doc__)
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--data", nargs="+", help="JSONL files in place of the recipe's")
    parser.add_argument("--output-dir", help="in place of the recipe's")
    parser.add_argument("--shard", help="the part of this machine, as 0/2")
    parser.add_argument("--penalty", help="adaptive, or one P for all samples")
    parser.add_argument("--until", choices=pipeline.STAGES, default="", help="the last stage to do")
    parser.add_argument("--retry", action="store_true", help="try again what was set aside")
    parser.add_argument("--estimate", action="store_true", help="say what it takes, and end")
    arguments = parser.parse_args()

    def action() -> None:
        """Run the distillation."""
        distillation = pipeline.Distillation(recipe_of(arguments))
        recipe = distillation.recipe
        works = estimate.work_left(recipe, distillation.data.samples, distillation.prompts)
        for line in estimate.lines_of(works, recipe):
            print(line, file=sys.stderr)
        if arguments.estimate:
            return
        with exit_at_interrupt():
            report = distillation.run(arguments.until, arguments.retry)
        if report is not None:
            print(json.dumps(report, ensure_ascii=False))

    return exit_code(action)


def recipe_of(arguments: argparse.Namespace) -> DistillRecipe:
    """The recipe with the changes of the command line.

    Raises:
        ValueError: see `read_recipe`; or a penalty that is no number.
    """
    changes = {name: getattr(arguments, name) for name in ("data", "output_dir", "shard")}
    recipe = read_recipe(arguments.config, changes)
    if arguments.penalty is None:
        return recipe
    penalty: str | float = arguments.penalty
    if penalty != ADAPTIVE:
        try:
            penalty = float(penalty)
        except ValueError as error:
            raise ValueError(f"--penalty {penalty}: expected adaptive or a number.") from error
    length = dataclasses.replace(recipe.length, penalty=penalty)
    return dataclasses.replace(recipe, length=length)


if __name__ == "__main__":
    sys.exit(main())
