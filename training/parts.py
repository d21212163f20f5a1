"""The parts of a model that a recipe may train."""

from __future__ import annotations

from collections.abc import Iterable

# What gets an adapter instead of training itself, by the name in a recipe
ADAPTED_PART = {"lora": "language_model", "vision_lora": "vision_model"}
TRAINABLE = ("mlp1", "language_model", "vision_model", *ADAPTED_PART)


def adapters_among(train: Iterable[str]) -> list[str]:
    """Those of the parts that train which are adapters."""
    return [name for name in train if name in ADAPTED_PART]


def names_among(key: str, values: str | Iterable[str], allowed: Iterable[str]) -> list[str]:
    """A recipe's list of names, which may be a single text.

    Args:
        key: the recipe's key, for the error.
        values: the names that the recipe has.
        allowed: the names that it may have.

    Raises:
        ValueError: no name, or an unknown one.
    """
    if isinstance(values, str):
        values = [values]
    names = list(values)
    allowed = list(allowed)
    unknown = []
    for name in names:
        if name not in allowed:
            unknown.append(name)
    if unknown or not names:
        raise ValueError(f"{key}: {unknown or 'nothing'}; expected some of {', '.join(allowed)}.")
    return names
