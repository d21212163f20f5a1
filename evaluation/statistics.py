"""Intervals of scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
AT_A_TIME = 500  # of them, in memory
QUANTILE = 1.96  # of the normal distribution, for 95 %


def wilson(right: int, total: int, z: float = QUANTILE) -> tuple[float, float]:
    """Interval of a share (E. B. Wilson, 1927), of 95 % by default.

    Args:
        right: the number of successes.
        total: the number of trials.
        z: the quantile of the normal distribution.
    """
    share = right / total
    spread = z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return middle - half, middle + half


def bootstrap(shares: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Interval of 95 % of a mean over questions (percentile bootstrap, B. Efron, 1979).

    Args:
        shares: of each question, the share of its answers that are right.
        seed: of the questions that are drawn.
    """
    values = np.asarray(shares, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means: list[float] = []
    for _ in range(RESAMPLES // AT_A_TIME):
        drawn = rng.integers(0, len(values), (AT_A_TIME, len(values)))
        means.extend(values[drawn].mean(axis=1))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


class Estimate(NamedTuple):
    """A score with what is known of its error; shares, not percent.

    Attributes:
        mean: over all runs.
        spread: standard deviation over the runs, or None where there is one run.
        low, high: interval of 95 %: of the questions that could have been asked instead.
    """

    mean: float
    spread: float | None
    low: float
    high: float


def estimate(runs: Sequence[Sequence[bool | None]]) -> Estimate | None:
    """The score of a benchmark, or None where nothing was answered.

    Args:
        runs: of each run, whether each question was answered right; None where there is no
            answer. Such answers are left out, and are to be counted beside the score.
    """
    scores = []
    for run in runs:
        answered = [right for right in run if right is not None]
        if answered:
            scores.append(statistics.fmean(answered))
    if not scores:
        return None
    of_questions = []
    for answers in zip(*runs):
        answered = [right for right in answers if right is not None]
        if answered:
            of_questions.append(statistics.fmean(answered))
    if len(runs) == 1:
        low, high = wilson(round(sum(of_questions)), len(of_questions))
        return Estimate(scores[0], None, low, high)
    low, high = bootstrap(of_questions)
    spread = statistics.stdev(scores) if len(scores) > 1 else None
    return Estimate(statistics.fmean(scores), spread, low, high)
