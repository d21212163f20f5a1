"""Measures which learning rates work for each choice of what trains.

Every recipe is trained for a few steps at several multiples of its rates, in a process of its own,
and asked the questions of `dev.jsonl`, which no recipe trains on. Runs that are finished are kept,
so the command goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import durable
from examples.easy_vqa import recipes
from training.optimizer import RATE_OF_PART
from training.recipe import RecipeArguments

NEW_TOKENS = 48  # of an answer, which has about 25
SETTINGS_FILE = "rates.json"  # in the folder of a run: with which settings it was finished


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is tried.

    Attributes:
        names: of the recipes.
        factors: what all rates of a recipe are multiplied with, one run each.
        steps: of a run.
        asked: questions of `dev.jsonl` that are asked after it.

    Raises:
        ValueError: an unknown recipe, or a number that is not above 0.
    """

    names: tuple[str, ...] = recipes.NAMES
    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    steps: int = 100
    asked: int = 150

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in recipes.NAMES:
                raise ValueError(f"recipe {name!r}: expected one of {', '.join(recipes.NAMES)}.")
        for number in (*self.factors, self.steps, self.asked):
            if not number > 0:
                raise ValueError(f"{number:g}: factors, steps and questions have to be above 0.")


class Tried(NamedTuple):
    """A run of the grid.

    Attributes:
        name: of the recipe.
        rates: by their keys in a recipe.
        right: the share of right answers after it.
        loss: the last one on the questions that were asked.
    """

    name: str
    rates: dict[str, float]
    right: float
    loss: float


def run_grid(folder: Path, grid: Grid) -> Iterator[Tried]:
    """Train and ask at each point of the grid.

    Args:
        folder: of the data; the runs are in its `rates`.

    Raises:
        FileNotFoundError: there are no data.
        ChildProcessError: a training failed; it has said why.
    """
    for name in ("train.jsonl", "dev.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist: python -m examples.easy_vqa data {folder}"
            )
    for name in grid.names:
        for factor in grid.factors:
            yield _try(name, factor, folder, grid)


def _try(name: str, factor: float, folder: Path, grid: Grid) -> Tried:
    """Train a recipe at a multiple of its rates, unless that was done before."""
    out = folder / "rates" / f"{name}_{factor:g}"
    recipe = recipes.read(name)
    rates = {key: rate * factor for key, rate in recipes.rates_of(recipe).items()}
    flags = _flags(folder, out, rates, grid)
    command = ["-m", "training.sft", "--config", str(recipes.path_of(name)), *flags]
    settings = _settings(recipe, name, folder, command)
    if durable.read_json(out / SETTINGS_FILE) != settings:
        done = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise ChildProcessError(f"python {' '.join(command)} ended with {done.returncode}.")
        durable.write_json(out / SETTINGS_FILE, settings)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return Tried(name, rates, summary["eval_right"]["last"], summary["eval_loss"]["last"])


def _settings(
    recipe: RecipeArguments, name: str, folder: Path, command: list[str]
) -> dict[str, Any]:
    """What the outcome of a run depends on: command, recipe, and the files of weights and data."""
    files = [folder / "train.jsonl", folder / "dev.jsonl"]
    files += sorted(Path(recipe.model).glob("*.safetensors"))
    stamps = {}
    for file in files:
        facts = file.stat()
        stamps[str(file)] = [facts.st_size, facts.st_mtime_ns]
    text = recipes.path_of(name).read_text(encoding="utf-8")
    return {"command": command, "recipe": text, "files": stamps}


def _flags(folder: Path, out: Path, rates: dict[str, float], grid: Grid) -> list[str]:
    """What the command line of `training.sft` has besides the recipe."""
    settings: dict[str, Any] = {
        "data": folder / "train.jsonl",
        "output_dir": out,
        "max_steps": grid.steps,
        "save": "mlp1",  # a result has to be kept; this is the smallest
        "save_strategy": "no",
        "eval_data": folder / "dev.jsonl",
        "eval_answers": grid.asked,
        "eval_new_tokens": NEW_TOKENS,
        "eval_strategy": "steps",
        "eval_steps": grid.steps,
        **rates,
    }
    flags = []
    for key, value in settings.items():
        flags += [f"--{key}", str(value)]
    return flags


def header() -> str:
    """The first two lines of a Markdown table of runs."""
    columns = ["recipe", *RATE_OF_PART.values(), "right", "loss"]
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def line_of(tried: Tried) -> str:
    """A run as a line of that table."""
    cells = [tried.name]
    for key in RATE_OF_PART.values():
        rate = tried.rates.get(key)
        cells.append("" if rate is None else f"{rate:.1e}")
    cells += [f"{100 * tried.right:.1f} %", f"{tried.loss:.3f}"]
    return f"| {' | '.join(cells)} |"
