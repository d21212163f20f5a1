"""Rows of conversations become prompts with solutions, as TRL's GRPOTrainer takes them.

A row has the form of those of SFT (training/rows.py). What is asked is everything before the last
answer; a row may also end with its question. The right answer is its `solution`, or else the box of
the last answer; `kind` and `options` say how it is compared (answers/judging.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from answers import extraction
from answers.judging import Question
from remote_code import conversation
from training.rows import ROLES, USER, ChatSample, SampleError, json_lines, local_path, parse_line
from training.rows import parse_row as parse_conversation

IMAGE = conversation.IMAGE_PLACEHOLDER


class Prompts(NamedTuple):
    """Prompts of a training.

    Attributes:
        dataset: columns prompt (messages with parts), images (opened when they are read),
            solution, kind and options.
        fingerprint: changes with the data.
    """

    dataset: datasets.Dataset
    fingerprint: str


def load_prompts(paths: Sequence[str], image_root: str | None = None) -> Prompts:
    """The prompts of JSONL files.

    Args:
        paths: of the files.
        image_root: that image paths are relative to; by default each file's directory.

    Raises:
        FileNotFoundError: a file or an image does not exist.
        SampleError: a row without a question or a solution.
    """
    rows = []
    content = hashlib.sha256()
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"data file {path} does not exist.")
        for line in json_lines([path]):
            content.update(line["line"])
            try:
                rows.append(prompt_of(parse_line(line["line"]), image_root or Path(path).parent))
            except ValueError as error:
                raise SampleError(f"{path}, line {line['number']}: {error}") from error
    if not rows:
        raise ValueError(f"data {list(paths)}: no row to ask.")
    table = datasets.Dataset.from_list(rows)
    table = table.cast_column("images", datasets.List(datasets.Image()))
    return Prompts(table, content.hexdigest()[:16])


def prompt_of(row: Any, image_root: str | Path) -> dict[str, Any]:
    """The columns of a row.

    Raises:
        FileNotFoundError: an image does not exist.
        ValueError: a row without a question or a solution, or a solution of another kind.
    """
    sample, answer = asked_of(row)
    solution = row.get("solution") or extraction.last_box(answer)
    if solution is None:
        raise SampleError('no right answer: expected "solution", or a last answer with a box')
    kind = row.get("kind") or "mathematics"
    options = list(row.get("options") or ())
    Question(kind, str(solution), tuple(options))  # raises what would end a training later
    images = []
    for image in sample.images:
        path = local_path(image, image_root)
        if path is None:
            raise SampleError(f"image {str(image)[:60]!r}: GRPO reads image files only")
        if not path.is_file():
            raise FileNotFoundError(f"image {path} does not exist.")
        images.append({"path": str(path), "bytes": None})
    return {
        "prompt": _messages(sample),
        "images": images,
        "solution": str(solution),
        "kind": kind,
        "options": options,
    }


def asked_of(row: Any) -> tuple[ChatSample, str]:
    """(the sample, its last answer), where the answer may be missing."""
    for key in ("conversations", "messages"):
        messages = row.get(key) if isinstance(row, dict) else None
        if not messages or not isinstance(messages[-1], dict):
            continue
        role = messages[-1].get("role") or messages[-1].get("from")
        if ROLES.get(str(role)) == USER:
            unanswered = {"role": "assistant", "content": "none"}
            return parse_conversation({**row, key: [*messages, unanswered]}), ""
    sample = parse_conversation(row)
    return sample, sample.turns[-1][1]


def _messages(sample: ChatSample) -> list[dict[str, Any]]:
    """The messages up to the last question, each as parts."""
    messages = []
    if sample.system:
        messages.append(_message("system", [_text(sample.system)]))
    *earlier, (question, _) = sample.turns
    for user, answer in earlier:
        messages.append(_message("user", _parts(user)))
        messages.append(_message("assistant", [_text(answer)]))
    messages.append(_message("user", _parts(question)))
    return messages


def _parts(question: str) -> list[dict[str, Any]]:
    """A question as parts, with images where `<image>` stands."""
    first, *others = question.split(IMAGE)
    parts = [_text(first)] if first else []
    for other in others:
        parts.append({"type": "image", "text": None})
        # The chat template writes a newline behind each image.
        other = other.removeprefix("\n")
        if other:
            parts.append(_text(other))
    return parts


def _message(role: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": parts}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
