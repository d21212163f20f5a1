"""What the page needs of a model, wherever it runs: in this process (local.py) or behind an
endpoint (endpoint.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from demo.conversation import Counts, Turn, Turns
from demo.seen import Tiling
from demo.settings import Settings


class AnswerFailed(RuntimeError):
    """A model could not answer; the text is a sentence for the page."""


class Written(NamedTuple):
    """What a model has written so far.

    Attributes:
        raw: everything, as the model wrote it.
        thinking: its thinking.
        answer: what follows the thinking.
        is_thinking: whether the thinking goes on.
    """

    raw: str
    thinking: str
    answer: str
    is_thinking: bool


class Reply(Protocol):
    """An answer as it is written. Iterate over it: each step, a little more of it is there."""

    def __iter__(self) -> Iterator[None]:
        """Wait for more text, until the answer is complete or was stopped.

        Raises:
            AnswerFailed: the model cannot answer.
        """
        ...

    @property
    def written(self) -> Written:
        """What is there so far."""
        ...

    @property
    def is_stopped(self) -> bool:
        """Whether the end of the generation was asked for."""
        ...

    def stop(self) -> None:
        """End the generation. Any thread may call it, more than once; it waits for the end."""
        ...

    def counts(self) -> Counts:
        """Tokens of the prompt and of what is there so far."""
        ...


class Backend(Protocol):
    """A model that the page asks.

    Attributes:
        name: of the model, as the page shows it.
        thinks: whether it can think before it answers.
        context: tokens that prompt and answer may have together, or None where nobody says.
        parallel: questions that it answers at a time.
        defaults: where the page's controls stand at first.
        tiling: how it cuts pictures into tiles.
    """

    name: str
    thinks: bool
    context: int | None
    parallel: int
    defaults: Settings
    tiling: Tiling

    def ask(self, turns: Sequence[Turn], settings: Settings) -> Reply:
        """Begin to answer the last turn.

        Args:
            turns: of the conversation, with everything that was answered before.
            settings: of this answer.

        Raises:
            AnswerFailed: the model cannot be asked this.
        """
        ...


@runtime_checkable
class LooksInside(Protocol):
    """A `Backend` that can say what its answers depend on."""

    def where_it_looked(self, turns: Turns) -> list[np.ndarray]:
        """For each picture of a conversation what its last answer depends on, (rows, columns).

        Args:
            turns: those that the model was told of, up to the answer.

        Raises:
            ValueError: a picture is damaged.
        """
        ...
