"""The parts of a model that a recipe may train."""

from __future__ import annotations

from collections.abc import Iterable

TRAINABLE = ("mlp1", "language_model", "vision_model", "lora")


def names_among(key: str, values: str | Iterable[str], allowed: Iterable[str]) -> list[str]:
    """A recipe's list of names, which may be a single text.

    Args:
        key: of the recipe, for the error.

    Raises:
        ValueError: no name, or an unknown one.
    """
    allowed = list(allowed)
    names = [values] if isinstance(values, str) else list(values)
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ValueError(f"{key}: {unknown or 'nothing'}; expected some of {', '.join(allowed)}.")
    return names
