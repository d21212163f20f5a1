"""The recipes beside this file: one for each choice of what trains."""

from __future__ import annotations

from pathlib import Path

from training.optimizer import RATE_OF_PART
from training.recipe import RecipeArguments, parse

HERE = Path(__file__).resolve().parent
NAMES = ("mlp1", "language_model", "vision_model", "lora")  # of the files, without .yaml


def path_of(name: str) -> Path:
    """The file of a recipe."""
    return HERE / f"{name}.yaml"


def read(name: str) -> RecipeArguments:
    """A recipe, checked.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    recipe, _ = parse(["--config", str(path_of(name))])
    return recipe


def rates_of(recipe: RecipeArguments) -> dict[str, float]:
    """The learning rates of the parts that train, by their keys in the recipe."""
    rates = {}
    for key in RATE_OF_PART.values():
        rate = getattr(recipe, key)
        if rate is not None:
            rates[key] = rate
    return rates
