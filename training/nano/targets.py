"""What an experiment at nano scale is to show, whether it does, and the figures that decide it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Target(NamedTuple):
    """Something that an experiment is to show.

    Attributes:
        name: what it is.
        holds: whether it is so; None where what it takes is not measured yet.
        figures: that decide it.
    """

    name: str
    holds: bool | None
    figures: str


def as_list(found: Iterable[Target]) -> str:
    """The targets as a list in Markdown."""
    words = {True: "reached", False: "missed", None: "open"}
    return "\n".join(
        f"- {words[target.holds]}: {target.name} ({target.figures})" for target in found
    )
