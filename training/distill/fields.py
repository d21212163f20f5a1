"""Scores from a row's own fields, for data whose difficulty is known, as that of drawn pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.distill.judge import HIGHEST, LOWEST
from training.distill.records import Sample, SetAside


def scores_of_row(
    sample: Sample, sources: Mapping[str, str | float], names: Sequence[str]
) -> dict[str, Any]:
    """The scores of a sample, from 0 to 10, as lines of a stage have them.

    Args:
        sample: with its row.
        sources: of each score: the name of the row's field, or the number that all rows have.
        names: of the scores.

    Raises:
        SetAside: a field that is missing, or holds no number on the scale.
    """
    scores: dict[str, Any] = {}
    for name in names:
        source = sources[name]
        value: Any = source
        if isinstance(source, str):
            value = sample.row.get(source)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SetAside(f"the row's {source!r} is {value!r}: expected a number for {name}")
        if not LOWEST <= value <= HIGHEST:
            raise SetAside(f"the row's {source!r} is {value}: expected {LOWEST} to {HIGHEST}")
        scores[name] = value
    return {**scores, "by": "solution"}
