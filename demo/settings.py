"""How an answer is drawn, as the page's controls say."""

from __future__ import annotations

import dataclasses

from serving.sampling import Sampling

MOST_NEW_TOKENS = 65_536  # of one answer; what the report's models write at most
LONGEST_SYSTEM_MESSAGE = 20_000  # characters


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one answer.

    Attributes:
        thinks: whether the model thinks before it answers.
        thinking_budget: tokens after which the thinking is closed; 0 for as many as it takes.
        temperature: 0 takes the likeliest token each time.
        top_p: share of the probability that the tokens have from which one is drawn.
        repetition_penalty: divides the logits of tokens that are there already; 1 does nothing.
        max_new_tokens: tokens that thinking and answer may have together.
        system_message: empty for the model's own.

    Raises:
        ValueError: a value outside its range, with the name that the page has for it.
    """

    thinks: bool = True
    thinking_budget: int = 0
    temperature: float = 0.6
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    max_new_tokens: int = 2048
    system_message: str = ""

    def __post_init__(self) -> None:
        ranges = (
            ("Thinking budget", self.thinking_budget, 0, MOST_NEW_TOKENS),
            ("Temperature", self.temperature, 0, 2),
            ("Top-p", self.top_p, 0.01, 1),
            ("Repetition penalty", self.repetition_penalty, 1, 2),
            ("Longest answer", self.max_new_tokens, 1, MOST_NEW_TOKENS),
        )
        for name, value, low, high in ranges:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:
                raise ValueError(f"{name} is {value}: give a number from {low} to {high}.")
        if len(self.system_message) > LONGEST_SYSTEM_MESSAGE:
            raise ValueError(
                f"The system message has {len(self.system_message)} characters: shorten it to "
                f"{LONGEST_SYSTEM_MESSAGE}."
            )

    @property
    def sampling(self) -> Sampling:
        """The same for an endpoint."""
        return Sampling(
            self.max_new_tokens,
            self.temperature,
            self.top_p,
            self.repetition_penalty,
            self.thinking_budget if self.thinks and self.thinking_budget else None,
        )
