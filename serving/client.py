"""Asks OpenAI-compatible endpoints: several of them, a bounded number of requests to each.

    client = Client(["http://10.0.0.1:8000/v1", "http://10.0.0.2:8000/v1"], "Skywork-R1V-38B")
    client.check()
    reply = client.ask([{"role": "user", "content": "What is 2 + 3?"}], Sampling(8192, 0.6, 0.95))

It may be used from any number of threads. Evaluation, the offline command and judges share it.
"""

from __future__ import annotations

import base64
import dataclasses
import mimetypes
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai

from serving.sampling import Sampling

Message = Mapping[str, Any]  # as the OpenAI API takes it

EMPTY_REPLIES = 3  # so many empty replies to one request are a failure
SECONDS_FOR_MODELS = 30.0  # that the list of models may take


class RequestFailed(RuntimeError):
    """No endpoint has answered a request; the text says why."""


class RequestRefused(RequestFailed):
    """An endpoint has refused a request (400), as every other one would."""


class Reply(NamedTuple):
    """What an endpoint wrote.

    Attributes:
        text: the answer; with the thinking, where the server does not take it apart.
        reasoning: the thinking, where the server returns it apart; otherwise "".
        finish_reason: "stop" at the end of the answer, "length" where it was cut.
        prompt_tokens: of the request, or None where the server does not say.
        completion_tokens: of thinking and answer, or None where the server does not say.
        seconds: from the request to the reply, with everything that was tried again.
    """

    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float


@dataclasses.dataclass(eq=False)
class _Endpoint:
    """An endpoint, and how many requests it is answering."""

    url: str
    sdk: openai.OpenAI
    running: int = 0


class Client:
    """A model behind one or several endpoints.

    Args:
        urls: of the endpoints, which end with the version, such as http://127.0.0.1:8000/v1.
        model: the name that the endpoints serve it under.
        concurrency: requests that an endpoint gets at a time.
        timeout: seconds that one try may take. Long thinking takes an hour.
        tries: times that an endpoint is asked again after 429, 5xx or a lost connection, with
            growing pauses or those that the server asks for; then the other endpoints are asked.
        api_key: sent to the endpoints; by default $OPENAI_API_KEY, which a server of one's own
            does not need.

    Raises:
        ValueError: no URL, or one that is none.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        concurrency: int = 32,
        timeout: float = 7200.0,
        tries: int = 8,
        api_key: str | None = None,
    ) -> None:
        if not urls:
            raise ValueError(
                "no URL of an endpoint: expected one such as http://127.0.0.1:8000/v1."
            )
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r}: expected a URL such as http://127.0.0.1:8000/v1.")
        if concurrency < 1:
            raise ValueError(f"concurrency {concurrency}: expected at least 1.")
        self.model = model
        self.concurrency = concurrency
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._endpoints = [
            _Endpoint(
                url, openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=tries)
            )
            for url in urls
        ]
        self._changed = threading.Condition()

    @property
    def capacity(self) -> int:
        """Requests that all endpoints answer at a time."""
        return self.concurrency * len(self._endpoints)

    def check(self, max_new_tokens: int = 1) -> None:
        """Make sure that every endpoint can be reached, serves the model, and has room for answers.

        Args:
            max_new_tokens: of an answer. vLLM says how long a context is, and refuses a request
                that asks for more.

        Raises:
            ValueError: one cannot, does not, or has not.
        """
        for endpoint in self._endpoints:
            quick = endpoint.sdk.with_options(timeout=SECONDS_FOR_MODELS, max_retries=2)
            try:
                served = {model.id: model for model in quick.models.list()}
            except openai.NotFoundError:
                continue  # an endpoint without a list of models
            except openai.OpenAIError as error:
                raise ValueError(
                    f"{endpoint.url} cannot be asked for its models ({reason_of(error)}): is the "
                    "server running, and does the URL end with /v1?"
                ) from error
            if self.model not in served:
                raise ValueError(
                    f"{endpoint.url} serves no model {self.model!r}: expected one of "
                    f"{list(served)}."
                )
            context = getattr(served[self.model], "max_model_len", None)
            if context is not None and max_new_tokens >= context:
                raise ValueError(
                    f"--max-new-tokens {max_new_tokens}: the context of {self.model} at "
                    f"{endpoint.url} has {context} tokens for prompt and answer. Give fewer, or "
                    "start the server with a longer one (vLLM: --max-model-len)."
                )

    def ask(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The reply to a conversation, from the endpoint that has least to do.

        Args:
            messages: of the conversation.
            sampling: how the answer is drawn; its own seed is not sent.
            seed: of this answer, or None.
            response_format: what the endpoint holds the answer to, such as a JSON schema, in the
                form of the API.

        Raises:
            RequestRefused: an endpoint calls the request a bad one.
            RequestFailed: no endpoint has answered, or all they write is empty.
        """
        begun = time.monotonic()
        body = request_body(sampling, seed)
        if response_format is not None:
            body["response_format"] = response_format
        reasons: list[str] = []
        untried = list(self._endpoints)
        while untried:
            with self._least_busy(untried) as endpoint:
                untried.remove(endpoint)
                try:
                    completion = self._complete(endpoint, messages, body)
                except openai.OpenAIError as error:
                    reasons.append(f"{endpoint.url}: {reason_of(error)}")
                    if isinstance(error, openai.BadRequestError):
                        raise RequestRefused("; ".join(reasons)) from error
                    continue
            if completion is not None:
                return _reply(completion, time.monotonic() - begun)
            reasons.append(f"{endpoint.url}: {EMPTY_REPLIES} empty replies")
        raise RequestFailed("; ".join(reasons))

    def _complete(
        self, endpoint: _Endpoint, messages: Sequence[Message], body: Mapping[str, Any]
    ) -> Any:
        """What an endpoint replies, or None where it is empty each time."""
        for _ in range(EMPTY_REPLIES):
            # Messages are plain dicts here, and the settings depend on the server.
            conversation: Any = list(messages)
            completion = endpoint.sdk.chat.completions.create(
                model=self.model, messages=conversation, **body
            )
            if completion.choices:
                message = completion.choices[0].message
                if message.content or reasoning_of(message):
                    return completion
        return None

    @contextmanager
    def _least_busy(self, endpoints: Sequence[_Endpoint]) -> Iterator[_Endpoint]:
        """The endpoint of some with the fewest requests, as soon as one has room for another."""
        with self._changed:
            self._changed.wait_for(lambda: min(map(_load, endpoints)) < self.concurrency)
            endpoint = min(endpoints, key=_load)
            endpoint.running += 1
        try:
            yield endpoint
        finally:
            with self._changed:
                endpoint.running -= 1
                self._changed.notify_all()


def request_body(sampling: Sampling, seed: int | None = None) -> dict[str, Any]:
    """The arguments of a request besides model and messages; vLLM's own go beside OpenAI's."""
    body: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
    }
    if seed is not None:
        body["seed"] = seed
    vllm_only: dict[str, Any] = {}
    if sampling.repetition_penalty != 1:
        vllm_only["repetition_penalty"] = sampling.repetition_penalty
    if sampling.thinking_budget is not None:
        vllm_only["thinking_token_budget"] = sampling.thinking_budget
    if vllm_only:
        body["extra_body"] = vllm_only
    return body


def user_message(text: str, images: Iterable[str | Path] = ()) -> dict[str, Any]:
    """A message of a user: image files first, then the text."""
    parts: list[dict[str, Any]] = [image_part(image) for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def image_part(image: str | Path) -> dict[str, Any]:
    """The part of a message for an image: a URL as it is, a file with its bytes."""
    url = str(image)
    if not url.startswith(("http://", "https://", "data:")):
        kind = mimetypes.guess_type(url)[0] or "image/png"
        content = base64.b64encode(Path(image).read_bytes()).decode()
        url = f"data:{kind};base64,{content}"
    return {"type": "image_url", "image_url": {"url": url}}


def _load(endpoint: _Endpoint) -> int:
    return endpoint.running


def reasoning_of(message: Any) -> str:
    """The thinking of a message, or of a piece of one.

    vLLM calls it `reasoning`, before 0.11 `reasoning_content`.
    """
    return getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""


def _reply(completion: Any, seconds: float) -> Reply:
    choice = completion.choices[0]
    usage = completion.usage
    return Reply(
        text=choice.message.content or "",
        reasoning=reasoning_of(choice.message),
        finish_reason=choice.finish_reason or "unknown",
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        seconds=seconds,
    )


def reason_of(error: openai.OpenAIError) -> str:
    """What went wrong with a request, on one line."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return " ".join(f"{type(error).__name__}: {error}{cause}".split())
