"""A conversation on the page: its turns, how they are shown, and the file of it.

Turns never change; a further piece of an answer makes a new turn in the place of the last.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demo.settings import Settings
from serving.client import image_part

WAITING, THINKING, ANSWERING = "waiting", "thinking", "answering"
DONE, STOPPED, FAILED = "done", "stopped", "failed"

CODE_OR_MATH = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL
)
# As Pandoc has it: no space inside the dollars and no digit after them, so that "$5 and $6" is
# money.
DOLLAR_MATH = re.compile(r"(?<![\\$])\$(?=[^\s$])([^$\n]*?[^\s\\$])\$(?![\d$])")
BOX = "\\boxed{"


class Counts(NamedTuple):
    """Numbers of tokens; None where nobody counts them.

    Attributes:
        prompt: of everything before the answer, images among it.
        thinking: of the thinking.
        answer: of the answer after it.
    """

    prompt: int | None = None
    thinking: int | None = None
    answer: int | None = None


NOT_COUNTED = Counts()


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question with what became of it.

    Attributes:
        text: the question as it was typed.
        images: paths of the pictures that came with it.
        settings: of the answer.
        status: one of the six above.
        raw: everything that the model wrote.
        thinking: its thinking.
        answer: what follows the thinking.
        thinking_seconds: from the question to the end of the thinking.
        seconds: from the question to the end of the answer.
        counts: tokens of prompt, thinking and answer.
        failure: why there is no answer.
    """

    text: str
    images: tuple[str, ...] = ()
    settings: Settings = dataclasses.field(default_factory=Settings)
    status: str = WAITING
    raw: str = ""
    thinking: str = ""
    answer: str = ""
    thinking_seconds: float = 0.0
    seconds: float = 0.0
    counts: Counts = NOT_COUNTED
    failure: str = ""

    def changed(self, **changes: Any) -> Turn:
        """This turn with some other attributes."""
        return dataclasses.replace(self, **changes)


Turns = tuple[Turn, ...]


def images_of(turns: Sequence[Turn]) -> list[str]:
    """The paths of all pictures of a conversation, in order."""
    paths: list[str] = []
    for turn in turns:
        paths += turn.images
    return paths


def answered(turns: Sequence[Turn]) -> Turns:
    """The turns that a model is told of: all that did not fail."""
    return tuple(turn for turn in turns if turn.status != FAILED)


# -- on the page -----------------------------------------------------------------------------------


def messages_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The messages of a conversation as the page's chatbot takes them."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages += _messages_of_turn(turn)
    return messages


def turn_of_message(turns: Sequence[Turn], index: int) -> int:
    """The number of the turn, from 0, that a message of `messages_of` belongs to.

    Raises:
        ValueError: there is no such message.
    """
    first = 0
    for number, turn in enumerate(turns):
        after = first + len(_messages_of_turn(turn))
        if first <= index < after:
            return number
        first = after
    raise ValueError(f"The conversation has no message {index}: reload the page.")


def _messages_of_turn(turn: Turn) -> list[dict[str, Any]]:
    messages = [_question(turn)]
    if turn.status == WAITING:
        return messages
    if turn.thinking or turn.status == THINKING:
        messages.append(_thinking(turn))
    text = with_marked_math(turn.answer)
    if turn.status == STOPPED:
        text = f"{text}\n\n*Stopped.*".lstrip()
    if turn.status == FAILED:
        text = f"{text}\n\n**No answer:** {turn.failure}".lstrip()
    if text:
        messages.append({"role": "assistant", "content": text})
    return messages


def _question(turn: Turn) -> dict[str, Any]:
    content: list[Any] = []
    for number, path in enumerate(turn.images, 1):
        description = f"Picture {number} of the question: {Path(path).name}"
        content.append({"path": path, "alt_text": description})
    if turn.text:
        content.append(turn.text)
    return {"role": "user", "content": content}


def _thinking(turn: Turn) -> dict[str, Any]:
    """The thinking, which the page shows open while it goes on, and folds at its end."""
    metadata: dict[str, Any] = {"title": "Thinking", "status": "pending"}
    if turn.status != THINKING:
        metadata = {"title": "Thought", "status": "done", "duration": turn.thinking_seconds}
        if turn.counts.thinking is not None:
            metadata["log"] = f"{turn.counts.thinking:,} tokens"
    text = with_marked_math(turn.thinking) or "…"
    return {"role": "assistant", "content": text, "metadata": metadata}


# -- mathematics -----------------------------------------------------------------------------------


def with_marked_math(text: str) -> str:
    """A text in which formulas stand between `\\(` and `\\)`, as the page renders them.

    Models write them between single dollars, too, which are also money, and write `\\boxed{}`
    without any mark. Code is left alone.
    """
    parts = []
    position = 0
    for match in CODE_OR_MATH.finditer(text):
        parts.append(_marked(text[position : match.start()]))
        parts.append(match.group())
        position = match.end()
    parts.append(_marked(text[position:]))
    return "".join(parts)


def _marked(text: str) -> str:
    """The same for a text without code and without formulas that are marked already."""
    parts = []
    position = 0
    for match in DOLLAR_MATH.finditer(text):
        parts.append(_with_marked_boxes(text[position : match.start()]))
        parts.append(f"\\({match.group(1)}\\)")
        position = match.end()
    parts.append(_with_marked_boxes(text[position:]))
    return "".join(parts)


def _with_marked_boxes(text: str) -> str:
    parts = []
    position = 0
    while (start := text.find(BOX, position)) >= 0:
        end = _end_of_braces(text, start + len(BOX))
        if end is None:  # the rest of the box is not written yet
            break
        parts.append(f"{text[position:start]}\\({text[start:end]}\\)")
        position = end
    return "".join([*parts, text[position:]])


def _end_of_braces(text: str, start: int) -> int | None:
    """The position after the brace that closes the one before `start`, or None."""
    depth = 1
    for place in range(start, len(text)):
        if text[place - 1] == "\\":
            continue
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place + 1
    return None


# -- as a file -------------------------------------------------------------------------------------


def as_json(turns: Sequence[Turn], model: str) -> str:
    """The whole conversation as JSON, its pictures as data URLs.

    The messages are those of OpenAI's API, so that they can be sent to an endpoint as they are;
    what that has no place for stands beside them.

    Args:
        model: its name.
    """
    messages: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    for turn in turns:
        parts: list[Any] = [image_part(path) for path in turn.images]
        parts.append({"type": "text", "text": turn.text})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": turn.answer})
        details.append(_details(turn))
    content = {"model": model, "messages": messages, "turns": details}
    return json.dumps(content, ensure_ascii=False, indent=1)


def _details(turn: Turn) -> dict[str, Any]:
    return {
        "status": turn.status,
        "failure": turn.failure,
        "images": [Path(path).name for path in turn.images],
        "thinking": turn.thinking,
        "thinking_seconds": round(turn.thinking_seconds, 3),
        "seconds": round(turn.seconds, 3),
        "tokens": turn.counts._asdict(),
        "settings": dataclasses.asdict(turn.settings),
    }
