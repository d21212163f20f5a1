"""A conversation with a checkpoint: its images, its turns, and what the next answer depends on.

    dialogue = Dialogue(model, tokenizer, {"max_new_tokens": 256})
    dialogue.add_images(["a.png"])
    stream = dialogue.ask("What is this?")
    for piece in stream:
        print(piece, end="")
    dialogue.keep("What is this?", stream)

Nothing is printed or read here; `examples/terminal.py` does that. An image is encoded once, when it
is added, and its features serve all further turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria

from remote_code import conversation, generation


class LastToken(StoppingCriteria):
    """Remembers the token that was generated last, and never stops the generation."""

    def __init__(self) -> None:
        self.id: int | None = None

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor | bool:
        self.id = int(input_ids[0, -1])
        return generation.stopping_decision(False, input_ids)


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question that was answered.

    Attributes:
        question: with an `<image>` for each of its images.
        answer: as `chat()` keeps it in a history.
        images: paths and URLs of the question's images.
        is_whole: whether the model ended the answer itself; it may have been stopped, or have
            reached the longest length.
    """

    question: str
    answer: str
    images: tuple[str, ...]
    is_whole: bool


class Dialogue:
    """The turns of a conversation, and the images for its next question.

    Args:
        model: of the class `SkyworkChatModel`.
        tokenizer: the checkpoint's.
        options: keywords of `generate`, as `chat()` takes them.

    Attributes:
        turns: what was asked and answered.
        waiting: paths and URLs of the images that belong to the next question.
        thinks: whether the next answer begins with thinking.
    """

    def __init__(self, model: Any, tokenizer: Any, options: dict[str, Any]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.options = options
        self.thinks = self.can_think
        self.start_anew()

    def start_anew(self) -> None:
        """Forget all turns and images."""
        self.turns: list[Turn] = []
        self._features: Any = None  # of the images of the turns
        self.drop_waiting()

    @property
    def can_think(self) -> bool:
        """Whether the checkpoint's template opens a thinking."""
        return self.model.conv_template.opens_thinking

    @property
    def history(self) -> list[tuple[str, str]]:
        """The turns as `chat()` takes them."""
        return [(turn.question, turn.answer) for turn in self.turns]

    # -- images ------------------------------------------------------------------------------------

    def add_images(self, sources: Sequence[str]) -> None:
        """Open and encode images; they belong to the next question.

        Args:
            sources: paths or URLs.

        Raises:
            OSError, ValueError: one of them cannot be read; then none is added.
        """
        features = self.model.encode_images(list(sources))
        self._waiting_features = joined(self._waiting_features, features)
        self.waiting = (*self.waiting, *sources)

    def drop_waiting(self) -> None:
        """Take back the images that no question has used yet."""
        self.waiting: tuple[str, ...] = ()
        self._waiting_features: Any = None

    # -- turns -------------------------------------------------------------------------------------

    def ask(self, question: str) -> Any:
        """The answer as a stream; see `chat_stream`, which also says what may be raised."""
        self._last_token = LastToken()
        return self.model.chat_stream(
            self.tokenizer,
            joined(self._features, self._waiting_features),
            question,
            {**self.options, "stopping_criteria": [self._last_token]},
            history=self.history,
            mode="think" if self.thinks else "no-think",
        )

    def keep(self, question: str, stream: Any) -> Turn | None:
        """Add a turn whose stream has ended, also one that was stopped.

        Returns:
            The turn; None where nothing had been written, so that there is none to keep.
        """
        if not stream.answer:
            return None
        if stream.history is not None:
            asked, answer = stream.history[-1]
        else:
            num_images = sum(len(turn.images) for turn in self.turns) + len(self.waiting)
            asked = conversation.add_image_placeholders(question, self.history, num_images)
            answer = self._as_in_history(stream.answer)
        is_whole = stream.history is not None and self._last_token.id in self._stop_ids()
        turn = Turn(asked, answer, self.waiting, is_whole)
        self.turns.append(turn)
        self._features = joined(self._features, self._waiting_features)
        self.drop_waiting()
        return turn

    def _as_in_history(self, answer: str) -> str:
        """An answer as it is replayed: one without thinking follows a thinking that was skipped."""
        if self.thinks:
            return answer
        return self.model.conv_template.skipped_thinking + answer

    def _stop_ids(self) -> set:
        """The ids of the tokens by which a model ends its answer."""
        stops = generation.as_set(self.options.get("eos_token_id", self.tokenizer.eos_token_id))
        for token in self.model.conv_template.stop_strings:
            stops.add(conversation.token_id(self.tokenizer, token))
        return stops - {None}

    # -- as JSON -----------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """The conversation as JSON has it.

        `messages` are what the processor's `apply_chat_template` takes. With `images`, the same in
        one list, the record is a row of data as training reads it. Files have absolute paths.
        """
        messages = []
        images = []
        incomplete = []
        for number, turn in enumerate(self.turns, 1):
            sources = [absolute(source) for source in turn.images]
            images += sources
            messages.append({"role": "user", "content": parts_of(turn.question, sources)})
            messages.append({"role": "assistant", "content": turn.answer})
            if not turn.is_whole:
                incomplete.append(number)
        return {
            "model": self.model.config._name_or_path,
            "images": images,
            "messages": messages,
            "incomplete_answers": incomplete,
        }


def joined(first: Any, second: Any) -> Any:
    """The features of two lists of images as one; None stands for no images."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def is_url(source: str) -> bool:
    """Whether an image is downloaded rather than read from a file."""
    return source.startswith(("http://", "https://"))


def absolute(source: str) -> str:
    """A path that holds in every folder; a URL stays as it is."""
    return source if is_url(source) else str(Path(source).resolve())


def parts_of(question: str, sources: Sequence[str]) -> list[dict[str, str]]:
    """A question as a message's parts: its images, each where its `<image>` stands, and text."""
    *texts, rest = question.split(conversation.IMAGE_PLACEHOLDER, len(sources))
    parts: list[dict[str, str]] = []
    for text, source in zip([*texts, rest], ["", *sources]):
        if source:
            parts.append({"type": "image", "url" if is_url(source) else "path": source})
            text = text.removeprefix("\n")  # which the chat template writes behind an image
        if text:
            parts.append({"type": "text", "text": text})
    return parts
