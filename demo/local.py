"""A checkpoint in this process, asked through `chat_stream()`; one answer at a time."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import GenerationConfig

from demo.backend import AnswerFailed, Written
from demo.conversation import Counts, Turn, Turns, answered, images_of
from demo.pictures import open_picture
from demo.seen import Tiling
from demo.settings import Settings
from examples import chat as chat_command
from explain.looking import LookSettings, where_it_looked
from remote_code import chat_images, conversation

LONGEST_ANSWER = 8192  # tokens that the page offers at first, at most half of the context


class LocalModel:
    """A model of this repository as the page asks it (see `Backend`).

    Args:
        model: as `AutoModel` loads it.
        tokenizer: of the checkpoint.
        generation_config: of the checkpoint.
        name: for the page.
    """

    def __init__(
        self, model: Any, tokenizer: Any, generation_config: GenerationConfig, name: str
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.parallel = 1
        self.thinks = model.conv_template.opens_thinking
        self.context: int | None = model.config.llm_config.max_position_embeddings
        self.defaults = self._first_settings(generation_config)
        image_processor = chat_images.load_image_processor(model)
        self.tiling = Tiling(image_processor, model.num_image_token, name)
        self._latest: LocalReply | None = None
        self._turn = threading.Lock()

    @classmethod
    def load(cls, path: str) -> LocalModel:
        """Load a checkpoint, and run it once, so that the first visitor does not wait for that.

        Args:
            path: a directory or a Hub id.

        Raises:
            OSError: there is none.
        """
        chat_command.check_model(path)
        model, tokenizer, generation_config = chat_command.load(path)
        name = path
        if Path(path).is_dir():
            name = Path(path).resolve().name
        loaded = cls(model, tokenizer, generation_config, name)
        side = loaded.tiling.side
        model.chat(tokenizer, Image.new("RGB", (side, side)), "?", {"max_new_tokens": 1})
        return loaded

    def ask(self, turns: Sequence[Turn], settings: Settings) -> LocalReply:
        """Begin to answer the last turn; see `Backend.ask`.

        An answer of which nobody reads the rest any more is ended first.
        """
        with self._turn:
            if self._latest is not None:
                self._latest.stop()
            self._latest = LocalReply(self, answered(turns), settings)
            return self._latest

    def where_it_looked(self, turns: Turns) -> list[np.ndarray]:
        """What the last answer depends on; see `LooksInside`."""
        *earlier, asked = turns
        mode = "think" if asked.settings.thinks else "no-think"
        return where_it_looked(
            self.model,
            self.tokenizer,
            [open_picture(path) for path in images_of(turns)],
            asked.text,
            asked.raw,
            history=self.history_of(earlier),
            settings=LookSettings(mode=mode, system_message=asked.settings.system_message or None),
        )

    def history_of(self, turns: Sequence[Turn]) -> list[tuple[str, str]]:
        """Turns as the history that `chat()` would have returned for them."""
        history: list[tuple[str, str]] = []
        num_images = 0
        for turn in turns:
            num_images += len(turn.images)
            question = conversation.add_image_placeholders(turn.text, history, num_images)
            history.append((question, self._replayed(turn)))
        return history

    def _replayed(self, turn: Turn) -> str:
        """An answer as the model is told of it: a thinking that never ended is closed."""
        closing = self.model.conv_template.skipped_thinking
        if not self.thinks or conversation.THINK_END in turn.raw:
            return turn.raw
        if turn.settings.thinks:
            return turn.raw + closing
        return closing + turn.raw

    def _first_settings(self, config: GenerationConfig) -> Settings:
        """Where the controls stand: at the checkpoint's own settings."""
        assert self.context is not None
        first = Settings(
            thinks=self.thinks,
            temperature=0.0,
            repetition_penalty=_or(config.repetition_penalty, 1.0),
            max_new_tokens=min(LONGEST_ANSWER, self.context // 2),
        )
        if not config.do_sample:
            return first
        return dataclasses.replace(
            first, temperature=_or(config.temperature, 1.0), top_p=_or(config.top_p, 1.0)
        )

    def count(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def count_prompt(self, turns: Sequence[Turn], settings: Settings) -> int:
        """Number of tokens of everything before the answer to the last turn."""
        *earlier, asked = turns
        history = self.history_of(earlier)
        images = images_of(turns)
        template = self.model.conv_template
        question = conversation.add_image_placeholders(asked.text, history, len(images))
        opened = conversation.open_conversation(
            template, question, history, settings.system_message or self.model.system_message
        )
        tokens = [self.tiling.cut(*open_picture(path).size).tokens for path in images]
        segments = opened.segments(tokens)
        return len(conversation.encode_segments(self.tokenizer, segments, template.begin))


class LocalReply:
    """An answer of a `LocalModel` as it is written (see `Reply`).

    Args:
        local: the model.
        turns: of the conversation, the last of which is answered.
        settings: of the answer.

    Raises:
        AnswerFailed: a picture is damaged, or a setting has no effect here.
    """

    def __init__(self, local: LocalModel, turns: Sequence[Turn], settings: Settings) -> None:
        self._local = local
        self._turns = turns
        self._settings = settings
        self._opens_thinking = local.thinks and settings.thinks
        self._is_stopped = False
        *earlier, asked = turns
        try:
            pictures = [open_picture(path) for path in images_of(turns)]
            self._stream = local.model.chat_stream(
                local.tokenizer,
                pictures or None,
                asked.text,
                _generation(settings),
                history=local.history_of(earlier),
                mode="think" if settings.thinks else "no-think",
                system_message=settings.system_message or None,
                thinking_budget=self._budget(),
            )
        except ValueError as error:
            raise AnswerFailed(str(error)) from error

    def __iter__(self) -> Iterator[None]:
        try:
            for _ in self._stream:
                yield
        except (ValueError, RuntimeError) as error:  # torch's errors are RuntimeErrors
            raise AnswerFailed(str(error)) from error

    @property
    def written(self) -> Written:
        """What is there so far."""
        raw = self._stream.answer
        thinking, answer = conversation.split_thinking(raw, self._opens_thinking)
        is_thinking = self._opens_thinking and conversation.THINK_END not in raw
        return Written(raw, thinking, answer, is_thinking)

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called before the answer was complete."""
        return self._is_stopped and self._stream.history is None

    def stop(self) -> None:
        """End the generation with the token that is being computed."""
        self._is_stopped = True
        self._stream.close()

    def counts(self) -> Counts:
        """Tokens of prompt, thinking and answer."""
        written = self.written
        prompt = self._local.count_prompt(self._turns, self._settings)
        thinking = self._local.count(written.thinking)
        return Counts(prompt, thinking, self._local.count(written.answer))

    def _budget(self) -> int | None:
        """The thinking budget as `chat_stream()` takes it."""
        if not self._opens_thinking or not self._settings.thinking_budget:
            return None
        return self._settings.thinking_budget


def _generation(settings: Settings) -> dict[str, Any]:
    """The keywords of `generate`."""
    keywords: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "do_sample": settings.temperature > 0,
    }
    if settings.temperature > 0:
        keywords |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    if settings.repetition_penalty != 1:
        keywords["repetition_penalty"] = settings.repetition_penalty
    return keywords


def _or(value: float | None, default: float) -> float:
    """A setting of a generation config, which may be None."""
    return default if value is None else value
