r"""The length controller: from the scores of a sample to its repetition penalty P (report, 2.3).

    P = min[2, exp(α · (1 − (Ŝ_v + β·Ŝ_t + γ·Ŝ_I) / (1 + β + γ)))]

Ŝ are the scores of vision, text and integration, normalised to [0, 1] by the smallest and largest
of the data set. Easy questions get a higher penalty, hence shorter chains. A question without an
image has no Ŝ_v and no Ŝ_I: their terms and weights are left out, and P = min[2, exp(α(1 − Ŝ_t))].

A worked example with α = 0.2, β = 2, γ = 1: a sample has S_v = 0.6, S_t = 0.3 and S_I = 0.8, and
those of the data set go from 0.2 to 0.8, from 0.1 to 0.9 and from 0.5 to 0.9.

    Ŝ_v = (0.6 − 0.2) / 0.6 = 0.667,  Ŝ_t = (0.3 − 0.1) / 0.8 = 0.25,  Ŝ_I = 0.3 / 0.4 = 0.75
    (0.667 + 2 · 0.25 + 1 · 0.75) / (1 + 2 + 1) = 0.479
    P = exp(0.2 · (1 − 0.479)) = exp(0.104) = 1.110, and on a grid of 0.02 it is 1.1

Controls have one P for all: `{penalty: 1.0}`, or `{penalty: 1.08}` with the mean of an adaptive
run, which its report.json states.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ADAPTIVE = "adaptive"
LARGEST = 2.0
MIDDLE = 0.5  # of a score that is the same for the whole data set
SCORES = ("vision", "text", "integration")


class Scores(NamedTuple):
    """The scores of a sample, each from 0 to 1; None where the question has no image.

    Attributes:
        vision: S_v.
        text: S_t.
        integration: S_I.
    """

    vision: float | None
    text: float
    integration: float | None


Range = tuple[float, float]  # the smallest and the largest score of a data set
Ranges = Mapping[str, Range | None]  # of each of SCORES; None where no sample has it


@dataclasses.dataclass(frozen=True)
class LengthSettings:
    """What a recipe says of the length controller.

    Attributes:
        penalty: "adaptive", or the one P of all samples.
        alpha, beta, gamma: of the formula. The report states none. With these weights nano's easy
            chains became a fifth shorter, its hard ones half as much (docs/nano.md). The default of
            alpha is half of what nano takes: a large P makes words wrong, and vLLM penalises those
            of the prompt, too.
        step: P is rounded to multiples of it, so that samples share a P, and batches with it.

    Raises:
        ValueError: a value outside its range.
    """

    penalty: str | float = ADAPTIVE
    alpha: float = 0.2
    beta: float = 4.0
    gamma: float = 1.0
    step: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.penalty, str) and self.penalty != ADAPTIVE:
            raise ValueError(f"length: penalty {self.penalty!r}: expected adaptive or a number.")
        if not isinstance(self.penalty, str) and not 0 < self.penalty <= LARGEST:
            raise ValueError(f"length: penalty {self.penalty}: expected above 0, at most 2.")
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"length: {name} {value}: expected a number of at least 0.")
        if not 0 < self.step <= 0.5:
            raise ValueError(f"length: step {self.step}: expected above 0, at most 0.5.")

    @property
    def is_adaptive(self) -> bool:
        """Whether P depends on the sample."""
        return self.penalty == ADAPTIVE


def ranges_of(samples: Iterable[Scores]) -> dict[str, Range | None]:
    """The smallest and the largest of each score; None of one that no sample has."""
    found: dict[str, Range | None] = dict.fromkeys(SCORES)
    for scores in samples:
        of_sample = {}
        for name, value in scores._asdict().items():
            of_sample[name] = None
            if value is not None:
                of_sample[name] = (value, value)
        found = joined(found, of_sample)
    return found


def joined(first: Ranges, second: Ranges) -> dict[str, Range | None]:
    """The ranges of two parts of a data set together."""
    together: dict[str, Range | None] = {}
    for name in SCORES:
        ranges = [part[name] for part in (first, second)]
        known = [value for value in ranges if value is not None]
        together[name] = None
        if known:
            together[name] = (min(low for low, _ in known), max(high for _, high in known))
    return together


def normalised(scores: Scores, ranges: Ranges) -> Scores:
    """The scores from 0, the smallest of the data set, to 1, the largest.

    A score that all samples share says nothing, and is 0.5 for each. One outside the ranges, of a
    sample that was scored when they were known, is 0 or 1.
    """
    values: dict[str, float | None] = {}
    for name, value in scores._asdict().items():
        limits = ranges[name]
        if value is None or limits is None:
            values[name] = None
            continue
        low, high = limits
        values[name] = MIDDLE
        if high > low:
            values[name] = min(max((value - low) / (high - low), 0.0), 1.0)
    text = values["text"]
    if text is None:
        raise ValueError("the text score has no range, though the sample has the score.")
    return Scores(values["vision"], text, values["integration"])


def exact_penalty(scores: Scores, settings: LengthSettings) -> float:
    """P of a sample by the formula.

    Args:
        scores: normalised.
        settings: α, β and γ; or the constant.
    """
    if not isinstance(settings.penalty, str):
        return settings.penalty
    weights = {"vision": 1.0, "text": settings.beta, "integration": settings.gamma}
    total, weight = 0.0, 0.0
    for name, value in scores._asdict().items():
        if value is not None:
            total += weights[name] * value
            weight += weights[name]
    mean = total / weight if weight else MIDDLE
    return min(LARGEST, math.exp(settings.alpha * (1 - mean)))


def penalty_of(scores: Scores, settings: LengthSettings) -> float:
    """P of a sample as it is used: on the grid, unless it is the constant of a recipe."""
    exact = exact_penalty(scores, settings)
    if not settings.is_adaptive:
        return exact
    on_grid = round(exact / settings.step) * settings.step
    return round(min(LARGEST, on_grid), 6)
