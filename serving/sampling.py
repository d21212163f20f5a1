"""How answers are drawn, in both engines: greedily, or at a temperature."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of a run.

    The report evaluates at temperature 0.6, top_p 0.95 and a repetition penalty of 1.05, with five
    answers to a question (section 3).

    Attributes:
        max_new_tokens: tokens that an answer may have.
        temperature: 0 takes the likeliest token each time.
        top_p: share of the probability that the tokens have from which one is drawn.
        repetition_penalty: divides the logits of tokens that are there already; 1 does nothing.
        thinking_budget: tokens after which the thinking is closed, or None.
        answers: number of answers to each question.
        seed: from which those of the answers are derived, or None for other answers in each run.

    Raises:
        ValueError: a setting outside its range, or several answers that would all be the same.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    thinking_budget: int | None = None
    answers: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = (
            ("max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, self.temperature >= 0, "at least 0"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1"),
            (
                "repetition-penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0,
                "more than 0",
            ),
            ("answers", self.answers, self.answers >= 1, "at least 1"),
        )
        for name, value, is_within, expected in ranges:
            if not is_within:
                raise ValueError(f"--{name} {value}: expected {expected}.")
        if self.answers > 1 and not self.temperature:
            raise ValueError(
                f"--answers {self.answers} at temperature 0 would all be the same: set "
                "--temperature (the report has 0.6)."
            )

    @property
    def recorded(self) -> dict[str, Any]:
        """What decides which answers are drawn; it is written into each line."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "thinking_budget": self.thinking_budget,
            "seed": self.seed,
        }

    def with_penalty(self, penalty: float | None) -> Sampling:
        """These settings with the repetition penalty of one question; None leaves them.

        Raises:
            ValueError: the penalty is not above 0.
        """
        if penalty is None:
            return self
        return dataclasses.replace(self, repetition_penalty=penalty)

    def seed_of(self, question_id: str, number: int) -> int | None:
        """The seed of an answer: of its own, so that it does not depend on what was asked before.

        Args:
            question_id: of the question.
            number: of the answer to it, from 0.
        """
        if self.seed is None:
            return None
        digest = hashlib.sha256(f"{self.seed}/{question_id}/{number}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


# What lines without these settings were written with.
GREEDY = Sampling(1).recorded
