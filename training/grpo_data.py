"""Rows of conversations become prompts with solutions, as TRL's GRPOTrainer takes them.

What is asked is everything of a row (training/solved_rows.py) before its last answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from preprocessor.image_loading import open_image
from remote_code import conversation
from training.rows import ChatSample, SampleError
from training.solved_rows import (
    SolvedRow,
    question_with_history,
    read_solved_rows,
    solved_row,
)

IMAGE = conversation.IMAGE_PLACEHOLDER


class Prompts(NamedTuple):
    """Prompts of a training.

    Attributes:
        dataset: columns prompt (messages with parts), images (opened when they are read) and
            image_paths, question (its text, with earlier turns), solution, kind and options.
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
    for line, row in read_solved_rows(paths, image_root):
        content.update(line)
        rows.append(columns_of(row))
    if not rows:
        raise ValueError(f"data {list(paths)}: no row to ask.")
    table = datasets.Dataset.from_list(rows)
    table = table.cast_column("images", datasets.List(datasets.Image()))
    return Prompts(table, content.hexdigest()[:16])


def check_images(dataset: datasets.Dataset) -> None:
    """Open every image of the prompts once, before a model is loaded.

    Raises:
        SampleError: an image is damaged.
    """
    paths = sorted({path for paths in dataset["image_paths"] for path in paths})
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(_check_image, paths):
            pass


def _check_image(path: str) -> None:
    try:
        open_image(path)
    except (OSError, ValueError) as error:
        raise SampleError(f"image: {error}") from error


def prompt_of(row: Any, image_root: str | Path) -> dict[str, Any]:
    """The columns of a row; see `solved_row` for what it raises."""
    return columns_of(solved_row(row, image_root))


def columns_of(row: SolvedRow) -> dict[str, Any]:
    """The columns of a row that was read."""
    return {
        "prompt": _messages(row.sample),
        "question": question_with_history(row.sample),
        "images": [{"path": str(path), "bytes": None} for path in row.images],
        "image_paths": [str(path) for path in row.images],
        "solution": row.right.gold,
        "kind": row.right.kind,
        "options": list(row.right.options),
    }


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
