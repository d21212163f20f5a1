"""What a run will take: tokens, hours and money, before it starts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from evaluation.benchmarks import BENCHMARKS
from evaluation.results import Answer

NANO_TOKENS = 60  # of an answer to a nano task


class Speed(NamedTuple):
    """What the estimate is made with; None leaves a line out.

    Attributes:
        tokens_per_second: that all endpoints write together.
        gpus: of all endpoints.
        price: of a GPU hour.
    """

    tokens_per_second: float | None = None
    gpus: int | None = None
    price: float | None = None


class Expected(NamedTuple):
    """The tokens that are left to write.

    Attributes:
        answers: that are not there yet.
        tokens_each: that an answer is expected to have.
        is_measured: whether that is the mean of answers of this run.
    """

    answers: int
    tokens_each: float
    is_measured: bool


def expected(name: str, wanted: int, answers: Iterable[Answer], tokens: int | None) -> Expected:
    """The tokens that a benchmark will take.

    Args:
        name: of the benchmark.
        wanted: answers that are to be there at the end.
        answers: that are there.
        tokens: that an answer is said to have, or None.
    """
    written = [answer.tokens for answer in answers]
    if tokens is not None:
        return Expected(wanted - len(written), tokens, False)
    if written:
        return Expected(wanted - len(written), statistics.fmean(written), True)
    assumed = NANO_TOKENS
    if name in BENCHMARKS:
        assumed = BENCHMARKS[name].expected_tokens
    return Expected(wanted, assumed, False)


def text_of(name: str, questions: int, repeats: int, expectation: Expected, speed: Speed) -> str:
    """The estimate of a benchmark on one line."""
    if not expectation.answers:
        return f"{name}: {questions} questions × {repeats}, all answered"
    tokens = expectation.answers * expectation.tokens_each
    source = "mean so far" if expectation.is_measured else "assumed"
    line = (
        f"{name}: {questions} questions × {repeats}, {expectation.answers} answers to write, about "
        f"{tokens / 1e6:.2f} M tokens ({expectation.tokens_each:.0f} each, {source})"
    )
    if speed.tokens_per_second is None:
        return line
    hours = tokens / speed.tokens_per_second / 3600
    line += f", {hours:.1f} h at {speed.tokens_per_second:g} tokens/s"
    if speed.gpus is not None:
        line += f", {hours * speed.gpus:.0f} GPU hours"
        if speed.price is not None:
            line += f", {hours * speed.gpus * speed.price:.2f} at {speed.price:g} an hour"
    return line
