"""Asks a judge model for JSON objects, and takes nothing that is not exactly what was asked for.

The endpoint is told the schema where it takes one (`response_format`); whether it does, its first
refusal says. A reply that is cut, no JSON, or has other keys or values beyond the scale is sent
back with what is wrong with it, a few times. After that the sample is set aside: no score is ever
invented.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from answers import extraction
from serving.client import Client, Message, Reply, RequestFailed, RequestRefused, user_message
from serving.sampling import Sampling
from training.distill.prompt_files import Prompt
from training.distill.records import SetAside, Unanswered

LOWEST, HIGHEST = 0, 10  # of a score
FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
COMPLAINT = "Your reply cannot be used: {problem}. Reply with the JSON object alone."
SCORE = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}
TEXT = {"type": "string", "minLength": 1}
TRUTH = {"type": "boolean"}
TYPES = {"integer": int, "string": str, "boolean": bool, "array": list}


class Form(NamedTuple):
    """The JSON object that a reply has to be.

    Attributes:
        name: for the endpoint.
        properties: its keys, all of which are required, with their JSON schemas.
    """

    name: str
    properties: Mapping[str, Mapping[str, Any]]

    @property
    def response_format(self) -> dict[str, Any]:
        """The form as endpoints take it."""
        schema = {
            "type": "object",
            "properties": {key: dict(value) for key, value in self.properties.items()},
            "required": list(self.properties),
            "additionalProperties": False,
        }
        return {
            "type": "json_schema",
            "json_schema": {"name": self.name, "schema": schema, "strict": True},
        }

    def read(self, text: str) -> dict[str, Any]:
        """The object in a reply, which is all that stands behind the thinking, fenced or not.

        Raises:
            ValueError: it is another one, or none; the message says what is wrong.
        """
        said = extraction.after_thinking(text) or ""
        fenced = FENCE.match(said)
        if fenced is not None:
            said = fenced[1]
        try:
            content = json.loads(said)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if set(content) != set(self.properties):
            raise ValueError(f"its keys are {sorted(content)} instead of {sorted(self.properties)}")
        for key, schema in self.properties.items():
            check_value(key, content[key], schema)
        return content


def check_value(key: str, value: Any, schema: Mapping[str, Any]) -> None:
    """Check a value by the part of JSON schema that the forms use.

    Raises:
        ValueError: it is another type, or beyond the scale.
    """
    kind = TYPES[schema["type"]]
    is_number_for_truth = isinstance(value, bool) and kind is int
    if not isinstance(value, kind) or is_number_for_truth:
        raise ValueError(f"{key!r} is {json.dumps(value)[:60]}, not of type {schema['type']}")
    if kind is int and not schema["minimum"] <= value <= schema["maximum"]:
        limits = f"{schema['minimum']} to {schema['maximum']}"
        raise ValueError(f"{key!r} is {value}, not within {limits}")
    if isinstance(value, str) and len(value.strip()) < schema.get("minLength", 0):
        raise ValueError(f"{key!r} is empty")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{key!r} is {value!r}, not one of {schema['enum']}")
    if isinstance(value, list):
        for item in value:
            check_value(key, item, schema["items"])


@dataclasses.dataclass
class Tokens:
    """Tokens of requests to a judge, as far as its server says them.

    Attributes:
        read: of prompts.
        written: of replies.
    """

    read: int = 0
    written: int = 0

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        self.read += reply.prompt_tokens or 0
        self.written += reply.completion_tokens or 0


class Judged(NamedTuple):
    """What a judge has said.

    Attributes:
        values: of the form.
        record: prompt, number of requests and tokens, for the output.
    """

    values: dict[str, Any]
    record: dict[str, Any]


class JsonJudge:
    """A judge model behind OpenAI-compatible endpoints; it may be used from any number of threads.

    Args:
        client: of the model.
        sampling: how it replies.
        tries: replies that it may give to a request.
        has_schemas: whether the endpoints take JSON schemas; None finds out.
    """

    def __init__(
        self, client: Client, sampling: Sampling, tries: int = 3, has_schemas: bool | None = None
    ) -> None:
        self.client = client
        self.sampling = sampling
        self.tries = tries
        self.has_schemas = has_schemas

    def ask(
        self, prompt: Prompt, form: Form, images: Sequence[str], values: Mapping[str, str]
    ) -> Judged:
        """What the judge says.

        Args:
            prompt: that it gets.
            form: that its reply has to have.
            images: files that it sees.
            values: for the places of the prompt.

        Raises:
            Unanswered: no endpoint has replied.
            SetAside: an endpoint refuses the request, or no reply has the form.
        """
        messages: list[Message] = [user_message(prompt.filled(values), images)]
        tokens = Tokens()
        problem = ""
        for number in range(1, self.tries + 1):
            reply = self._reply(messages, form)
            tokens.add(reply)
            try:
                content = _content(reply, form)
            except ValueError as error:
                problem = str(error)
                messages += _complaint(reply, problem)
                continue
            record = {"prompt": prompt.name, "requests": number, **dataclasses.asdict(tokens)}
            return Judged(content, record)
        raise SetAside(
            f"{prompt.name}: {self.tries} replies of the judge, and of the last {problem}"
        )

    def _reply(self, messages: Sequence[Message], form: Form) -> Reply:
        try:
            return self._ask_with_schema(messages, form)
        except RequestRefused as error:
            raise SetAside(f"{form.name}: the judge's endpoint refuses: {error}") from error
        except (RequestFailed, OSError) as error:
            raise Unanswered(f"{form.name}: {error}") from error

    def _ask_with_schema(self, messages: Sequence[Message], form: Form) -> Reply:
        """A reply, held to the form where the endpoints can do that."""
        if self.has_schemas is False:
            return self.client.ask(messages, self.sampling)
        try:
            reply = self.client.ask(messages, self.sampling, response_format=form.response_format)
        except RequestRefused:
            if self.has_schemas:
                raise
            reply = self.client.ask(messages, self.sampling)
            self.has_schemas = False  # the same request without a schema was taken
            return reply
        self.has_schemas = True
        return reply


def _content(reply: Reply, form: Form) -> dict[str, Any]:
    """What a reply says.

    Raises:
        ValueError: it was cut, or does not have the form.
    """
    if reply.finish_reason not in ("stop", "unknown"):
        raise ValueError(f"it ended early ({reply.finish_reason})")
    return form.read(reply.text)


def _complaint(reply: Reply, problem: str) -> list[Message]:
    """The turns that ask for another reply."""
    return [
        {"role": "assistant", "content": reply.text or "(no reply)"},
        {"role": "user", "content": COMPLAINT.format(problem=problem)},
    ]
