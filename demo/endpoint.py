"""A model behind an OpenAI-compatible endpoint, such as vLLM's, asked over the network."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
from transformers import AutoProcessor

from demo.backend import AnswerFailed, Written
from demo.conversation import Counts, Turn, answered
from demo.seen import Tiling
from demo.settings import Settings
from remote_code import conversation
from serving.client import Client, image_part, reason_of, reasoning_of, request_body

ROOT = Path(__file__).resolve().parents[1]
PARALLEL = 16  # questions of visitors that an endpoint gets at a time
SECONDS = 600.0  # that it may be silent
TRIES = 2


class Endpoint:
    """A served model as the page asks it (see `Backend`).

    Args:
        url: of the endpoint, such as http://127.0.0.1:8000/v1.
        model: the name that it is served under; "" for the first that the endpoint lists.
        tiling: how the served checkpoint cuts pictures.

    Raises:
        ValueError: the endpoint cannot be reached, or serves no such model.
    """

    def __init__(self, url: str, model: str, tiling: Tiling) -> None:
        self.url = url
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self.sdk = openai.OpenAI(base_url=url, api_key=key, timeout=SECONDS, max_retries=TRIES)
        self.context: int | None = None
        self.name = model
        self._look_up(model)
        Client([url], self.name).check()
        self.parallel = PARALLEL
        self.thinks = True
        self.defaults = Settings()
        if self.context is not None:
            longest = min(self.defaults.max_new_tokens, self.context // 2)
            self.defaults = Settings(max_new_tokens=longest)
        self.tiling = tiling

    def _look_up(self, model: str) -> None:
        """Find out the model's name and context from the endpoint's list."""
        try:
            served = list(self.sdk.with_options(timeout=30.0).models.list())
        except openai.NotFoundError:
            served = []
        except openai.OpenAIError as error:
            raise ValueError(
                f"API={self.url} cannot be asked for its models ({reason_of(error)}): is the "
                "server running, and does the URL end with /v1?"
            ) from error
        if not model and not served:
            raise ValueError(f"API={self.url} lists no model: give its name as MODEL=.")
        self.name = model or served[0].id
        for entry in served:
            if entry.id == self.name:
                self.context = getattr(entry, "max_model_len", None)

    def ask(self, turns: Sequence[Turn], settings: Settings) -> EndpointReply:
        """Begin to answer the last turn; see `Backend.ask`."""
        body = request_body(settings.sampling)
        if not settings.thinks:
            extra = body.setdefault("extra_body", {})
            extra["chat_template_kwargs"] = {"enable_thinking": False}
        try:
            body["messages"] = messages_for(answered(turns), settings)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise AnswerFailed(f"{name} is no longer there: begin a new conversation.") from error
        body["model"] = self.name
        return EndpointReply(self, body)


def messages_for(turns: Sequence[Turn], settings: Settings) -> list[dict[str, Any]]:
    """A conversation as the API takes it, pictures as data URLs.

    Earlier answers go without their thinking, as clients of reasoning servers send them.
    """
    messages: list[dict[str, Any]] = []
    if settings.system_message:
        messages.append({"role": "system", "content": settings.system_message})
    *earlier, asked = turns
    for turn in earlier:
        messages.append(_question(turn))
        messages.append({"role": "assistant", "content": turn.answer})
    messages.append(_question(asked))
    return messages


def _question(turn: Turn) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [image_part(path) for path in turn.images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": turn.text}]}


class EndpointReply:
    """An answer of an `Endpoint` as it arrives (see `Reply`).

    A thread of its own reads it, so that stopping need not wait for a silent server. Whatever
    arrives after that is dropped, and the connection closed, which ends the server's generation.

    Args:
        endpoint: that is asked.
        body: of the request.
    """

    def __init__(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        self._endpoint = endpoint
        self._body = body
        self._chunks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thinking = ""
        self._content = ""
        self._pieces = {"thinking": 0, "answer": 0}
        self._usage: Any = None
        self._reader = threading.Thread(target=self._read, name="endpoint reply", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Put every chunk into the queue, then None or the error."""
        try:
            stream: Any = self._endpoint.sdk.chat.completions.create(
                stream=True, stream_options={"include_usage": True}, **self._body
            )
            with stream:
                for chunk in stream:
                    if self._stopped.is_set():
                        break
                    self._chunks.put(chunk)
            self._chunks.put(None)
        except openai.OpenAIError as error:
            self._chunks.put(error)

    def __iter__(self) -> Iterator[None]:
        while not self._stopped.is_set():
            chunk = self._chunks.get()
            if chunk is None:
                return
            if isinstance(chunk, openai.OpenAIError):
                raise AnswerFailed(
                    f"{self._endpoint.url} did not answer: {reason_of(chunk)}"
                ) from chunk
            self._add(chunk)
            yield

    def _add(self, chunk: Any) -> None:
        """Take in a piece of the answer."""
        if getattr(chunk, "usage", None):
            self._usage = chunk.usage
        if not chunk.choices:
            return
        delta = chunk.choices[0].delta
        thinking = reasoning_of(delta)
        if thinking:
            self._thinking += thinking
            self._pieces["thinking"] += 1
        if delta.content:
            self._content += delta.content
            self._pieces["answer"] += 1

    @property
    def written(self) -> Written:
        """What has arrived; a thinking that the server has not taken apart is taken apart here."""
        if self._thinking:
            raw = f"{self._thinking}{conversation.THINK_END}{self._content}"
            is_thinking = not self._content
            return Written(raw, self._thinking.strip(), self._content.strip(), is_thinking)
        opened = self._content.lstrip().startswith(conversation.THINK_START)
        thinking, answer = conversation.split_thinking(self._content, opened)
        is_thinking = opened and conversation.THINK_END not in self._content
        return Written(self._content, thinking, answer, is_thinking)

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Read no further, and close the connection with the next chunk."""
        self._stopped.set()
        self._chunks.put(None)

    def counts(self) -> Counts:
        """Tokens as the server counts them; without its count, the pieces that arrived.

        Servers send about one token in each piece. A thinking that only this page took apart is
        counted with the answer.
        """
        thinking = self._pieces["thinking"]
        total = thinking + self._pieces["answer"]
        if self._usage is None:
            return Counts(None, thinking or None, total - thinking)
        details = getattr(self._usage, "completion_tokens_details", None)
        thinking = getattr(details, "reasoning_tokens", None) or thinking
        answer = max(0, self._usage.completion_tokens - thinking)
        return Counts(self._usage.prompt_tokens, thinking or None, answer)


def tiling_of(path: str) -> Tiling:
    """How the checkpoint in a directory cuts pictures.

    Raises:
        OSError: there is none.
    """
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    name = Path(path).resolve().name
    if Path(path).resolve() == ROOT:
        name = "this repository, which are those of Skywork-R1V-38B"
    return Tiling(processor.image_processor, processor.num_image_token, name)
