"""Finds the final answer in what a model wrote.

A reasoning model writes `<think>…</think>` and then its answer, in which the last `\\boxed{…}` is
the final answer. What is in the thinking never counts, as a draft is not an answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from remote_code import conversation

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# What \boxed without braces takes: a command with its arguments, a number or a letter. Before a
# word it is only mentioned.
UNBRACED_COMMAND = re.compile(r"\\[A-Za-z]+\s*")
UNBRACED_TEXT = re.compile(r"-?\d[\d.,/]*|[A-Za-z](?![A-Za-z])")
ESCAPED = re.compile(r"\\.", re.DOTALL)
STATEMENT = re.compile(r"\banswer\b\s*(?:is|:|=)+(?P<said>[^\n]*)", re.IGNORECASE)
EMPHASIS = re.compile(r"\*\*|__|`")
# Commands that only change how their argument looks.
STYLES = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mbox|bf|rm)\b"
)


class Found(NamedTuple):
    """The final answer, or why there is none.

    Attributes:
        answer: the text of it, or None.
        box: whether it was in a box; then it is the answer and nothing else.
        reason: how it was found, or why there is none.
    """

    answer: str | None
    box: bool
    reason: str


def after_thinking(text: str, thinking_opened: bool = False) -> str | None:
    """What stands behind the thinking, or None where the thinking never ends.

    Args:
        text: what the model wrote.
        thinking_opened: whether the prompt has opened the thinking already.

    Returns:
        The text behind the last `</think>`; all of it where nobody thought.
    """
    _, mark, answer = text.rpartition(conversation.THINK_END)
    if not mark and thinking_opened:
        return None
    if conversation.THINK_START in answer:
        return None
    return answer.strip()


def last_box(text: str) -> str | None:
    """What is in the last box of a text that has something in it, or None.

    Boxes are `\\boxed{…}` and `\\fbox{…}` with braces nested to any depth, and `\\boxed B`. A box
    that is never closed, as in an answer that was cut off, is none.
    """
    content = None
    position = 0
    while True:
        box = BOX.search(text, position)
        if box is None:
            return content
        inside, position = _read_argument(text, box.end())
        if inside is not None and inside.strip():
            content = _innermost(inside.strip())


def _innermost(content: str) -> str:
    """The content of a box that may be nothing but another box."""
    box = BOX.match(content)
    if box is None:
        return content
    inside, end = _read_argument(content, box.end())
    if inside is None or end != len(content):
        return content
    return _innermost(inside.strip())


def _read_argument(text: str, start: int) -> tuple[str | None, int]:
    """The argument of a command, and where it ends; None where it is missing or never closed."""
    if text.startswith("{", start):
        end = _closing_brace(text, start)
        if end is None:
            return None, start
        return text[start + 1 : end], end + 1
    command = UNBRACED_COMMAND.match(text, start)
    if command is None:
        plain = UNBRACED_TEXT.match(text, start)
        if plain is None:
            return None, start
        return plain.group().rstrip(".,;"), plain.end()
    end = command.end()
    while text.startswith("{", end):
        closing = _closing_brace(text, end)
        if closing is None:
            return None, end
        end = closing + 1
    return text[start:end], end


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` is closed, or None; `\\{` and `\\}` are no braces."""
    depth = 0
    position = start
    while position < len(text):
        escaped = ESCAPED.match(text, position)
        if escaped is not None:
            position = escaped.end()
            continue
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def find(text: str, thinking_opened: bool = False) -> Found:
    """The final answer of a text.

    It is the last box; without one, what follows the last "answer:" or "answer is" on its line;
    without that, everything behind the thinking.

    Args:
        text: what the model wrote.
        thinking_opened: whether the prompt has opened the thinking already.
    """
    answer = after_thinking(text, thinking_opened)
    if answer is None:
        return Found(None, False, "the thinking was never closed")
    if not answer:
        return Found(None, False, "nothing follows the thinking")
    box = last_box(answer)
    if box is not None:
        return Found(box, True, "in a box")
    statements = list(STATEMENT.finditer(EMPHASIS.sub("", answer)))
    said = statements[-1]["said"].strip() if statements else ""
    if said and BOX.search(said) is None:
        return Found(said, False, "after the word answer")
    if BOX.search(answer) is not None:
        return Found(None, False, "its box is empty or never closed")
    return Found(answer, False, "the whole answer")


def plain(text: str) -> str:
    """An answer without what only changes its looks, as dollar signs, \\text or a full stop."""
    text = EMPHASIS.sub("", text.strip())
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        is_long_enough = len(text) >= len(opening) + len(closing)
        if is_long_enough and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = _without_styles(text)
    for space in ("\\,", "\\;", "\\!", "\\ ", "~", "\u00a0"):
        text = text.replace(space, " ")
    text = " ".join(text.split())
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1]
    return text.strip()


def _without_styles(text: str) -> str:
    """A text with the arguments of \\text and its kind in their places."""
    style = STYLES.search(text)
    while style is not None:
        start = style.end()
        while text.startswith(" ", start):
            start += 1
        inside, end = None, start
        if text.startswith("{", start):
            inside, end = _read_argument(text, start)
        text = text[: style.start()] + (inside or "") + text[end:]
        style = STYLES.search(text)
    return text
