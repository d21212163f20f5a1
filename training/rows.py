"""A row of a data set, as JSONL files and `datasets` have it, becomes a checked sample here.

Rows have the form of InternVL's and LLaVA's data sets, or of chat messages:

    {"image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "…"}]}
    {"images": ["a.jpg", "b.jpg"], "messages": [
        {"role": "user", "content": "<image>\\n<image>\\nCompare."},
        {"role": "assistant", "content": "…"}]}

Images are paths relative to the image root (by default the data file's directory), URLs, base64
text, or whatever `datasets` stores. Each `<image>` in a question stands for an image, in order. In
a row without any `<image>`, all images come before the first question.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from preprocessor.image_loading import LONGEST_PATH
from remote_code import conversation

USER = "user"
ASSISTANT = "assistant"
SYSTEM = "system"
ROLES = {"human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT, "system": SYSTEM}
# Keys of a message's part that hold the image itself, rather than point to the row's images
IMAGE_KEYS = ("path", "url", "image", "image_url", "base64")


class SampleError(ValueError):
    """A sample that cannot be trained on; the message says why."""


class TooLongError(SampleError):
    """A sample that does not fit the largest number of tokens."""


@dataclasses.dataclass
class ChatSample:
    """A checked sample.

    Attributes:
        turns: pairs of question and answer.
        images: in the order of the `<image>` in the questions.
        system: the system message; empty for none.
    """

    turns: list[tuple[str, str]]
    images: list[Any]
    system: str = ""


class Message(NamedTuple):
    """A message of a row: its role (`USER`, `ASSISTANT` or `SYSTEM`) and its text."""

    role: str
    text: str


def json_lines(paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """The lines of JSONL files, each as its path, its number from 1, and its bytes.

    Lines are not parsed here, because rows of different forms have no common schema. Empty lines
    are left out, but numbered.
    """
    for path in paths:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield {"path": str(path), "number": number, "line": line}


def parse_line(line: bytes | str) -> Any:
    """The JSON value of a line.

    Raises:
        SampleError: the line is not JSON.
    """
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SampleError(f"not JSON ({error}){_hint_at_array(line)}") from error


def parse_row(row: Any) -> ChatSample:
    """The sample that a row in any of the known forms holds.

    Raises:
        SampleError: roles that do not alternate, an empty answer, or a number of `<image>` that is
            not the number of images.
    """
    if not isinstance(row, dict):
        raise SampleError(f"expected an object, found {type(row).__name__}{_hint_at_array(row)}")
    rows_messages = row.get("conversations") or row.get("messages")
    if not isinstance(rows_messages, list) or not rows_messages:
        raise SampleError('expected a list "conversations" (InternVL, LLaVA) or "messages"')
    images = _images_of_row(row)
    messages = [_parse_message(message, bool(images)) for message in rows_messages]
    system = ""
    if messages[0].role == SYSTEM:
        system = messages.pop(0).text
    turns = _turns(messages)
    return ChatSample(_place_images(turns, len(images)), images, system)


def _images_of_row(row: dict[str, Any]) -> list[Any]:
    """The images that a row lists under "images" or "image", one or several."""
    images = row.get("images")
    if images is None:
        images = row.get("image")
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return list(images)
    return [images]


def _turns(messages: list[Message]) -> list[tuple[str, str]]:
    """Pairs of question and answer.

    Raises:
        SampleError: messages that do not alternate, or an empty answer.
    """
    roles = [message.role for message in messages]
    if len(roles) < 2 or roles != [USER, ASSISTANT] * (len(roles) // 2):
        found = ", ".join(roles) or "none"
        raise SampleError(f"expected questions and answers in turns, found {found}")
    turns = []
    for question, answer in zip(messages[::2], messages[1::2]):
        if not answer.text.strip():
            raise SampleError("an answer is empty")
        turns.append((question.text, answer.text))
    return turns


def _place_images(turns: list[tuple[str, str]], num_images: int) -> list[tuple[str, str]]:
    """The turns with an `<image>` for each image, which come first if no question has any.

    Raises:
        SampleError: another number of `<image>` than of images.
    """
    placed = sum(question.count(conversation.IMAGE_PLACEHOLDER) for question, _ in turns)
    if placed == num_images:
        return turns
    if placed:
        raise SampleError(f"{placed} <image> in the questions but {num_images} images")
    question, answer = turns[0]
    placeholders = f"{conversation.IMAGE_PLACEHOLDER}\n" * num_images
    return [(placeholders + question, answer), *turns[1:]]


def _parse_message(message: Any, has_images: bool) -> Message:
    """A message in either form; image parts in a list of parts become `<image>`.

    Args:
        has_images: whether the row lists its images, so that the parts need not hold them.

    Raises:
        SampleError: an unknown role, or content that is neither text nor parts.
    """
    if not isinstance(message, dict):
        raise SampleError(f"a message is {type(message).__name__}, not an object")
    role = message.get("from", message.get("role"))
    content = message.get("value", message.get("content"))
    if role not in ROLES:
        raise SampleError(f"role {role!r} is unknown; expected one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_text_of_part(part, has_images) for part in content)
    if not isinstance(content, str):
        raise SampleError(f"the content of a message is {type(content).__name__}, not text")
    return Message(ROLES[role], content)


def _text_of_part(part: Any, has_images: bool) -> str:
    """The text of one part of a message; `<image>` for a part that is not text."""
    if not isinstance(part, dict):
        raise SampleError(f"a part of a message is {type(part).__name__}, not an object")
    if part.get("type") == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise SampleError(f"the text of a message's part is {type(text).__name__}, not text")
        return text
    if not has_images:
        _check_without_image(part)
    return f"{conversation.IMAGE_PLACEHOLDER}\n"


def _check_without_image(part: dict[str, Any]) -> None:
    """Raise SampleError for a part that holds its image itself, which is not supported."""
    for name in IMAGE_KEYS:
        if part.get(name) is not None:
            raise SampleError(
                f'a part of a message has its image in itself ("{name}"); list images under '
                '"images"'
            )


def local_path(image: Any, image_root: str | Path | None = None) -> Path | None:
    """Where the file of an image lies; None for a URL, base64 text, or anything but text."""
    if not isinstance(image, str) or len(image) > LONGEST_PATH:
        return None
    if "://" in image or image.startswith("data:"):
        return None
    return Path(image_root or "") / image


def _hint_at_array(content: Any) -> str:
    """What to do about a file that is one JSON array, as LLaVA's are; else an empty text."""
    is_array = isinstance(content, list)
    if isinstance(content, (str, bytes)):
        is_array = content.lstrip()[:1] in ("[", b"[")
    if not is_array:
        return ""
    return "; of a JSON array make an object a line: jq -c '.[]' data.json > data.jsonl"
