"""Writes the data of the package easy-vqa as JSONL to train on, to evaluate on and to test.

    pip install easy-vqa
    python -m examples.easy_vqa runs/easy_vqa/data

easy-vqa (V. Zhou, MIT) has pictures of 64 pixels with one shape each: 4,000 to train on and 1,000
to test, with questions whose answers are 13 words. Written are:

- `train.jsonl`: 3,800 of its pictures to train on, each with all questions about it as turns of one
  conversation, in random order: the vision tower, which costs most, reads a picture once for ten
  questions;
- `words.jsonl`: the same without the questions whose answer is yes or no, which are three of four,
  and say little about a picture;
- `validation.jsonl`: 200 questions about the others, to look at while training;
- `test.jsonl`: 300 questions about its test pictures, drawn at random;
- `blank.jsonl`: the same 300 about an empty picture. What is right there needs no picture.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import durable
from examples.easy_vqa.kinds import YES_OR_NO
from training.command_line import argument_parser, exit_code

SEED = 0
VALIDATION_PICTURES = 200
VALIDATION_QUESTIONS = 200
TEST_QUESTIONS = 300
BLANK = "blank.png"
SIDE = 64  # pixels
PAPER = (240, 240, 240)  # about the backgrounds of easy-vqa


class Question(NamedTuple):
    """A question about a picture."""

    text: str
    answer: str
    picture: int


def as_line(questions: Sequence[Question], image: str) -> bytes:
    """Questions about one picture as a line of a training set."""
    turns = []
    for number, question in enumerate(questions):
        placeholder = "" if number else "<image>\n"
        turns.append({"from": "human", "value": placeholder + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return json.dumps({"image": image, "conversations": turns}).encode() + b"\n"


def write_lines(path: Path, conversations: Iterable[Sequence[Question]], image: str) -> None:
    """Write conversations, each about one picture, to a JSONL file.

    Args:
        image: where the pictures are, with `{}` for the number.
    """
    with durable.writing(path) as file:
        for questions in conversations:
            file.write(as_line(questions, image.format(questions[0].picture)))


def by_picture(questions: Iterable[Question]) -> list[list[Question]]:
    """The questions about each picture, in the order that they are given."""
    groups: dict[int, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.picture, []).append(question)
    return list(groups.values())


def questions_of(columns: Sequence[Sequence[Any]]) -> list[Question]:
    """The questions of easy-vqa's three lists."""
    return [Question(*row) for row in zip(*columns)]


def draw(rng: np.random.Generator, questions: list[Question], count: int) -> list[Question]:
    """So many of the questions, at random."""
    return [questions[index] for index in rng.permutation(len(questions))[:count]]


def write(folder: Path) -> None:
    """Write all files of the data.

    Raises:
        ImportError: easy-vqa is not installed.
    """
    try:
        import easy_vqa  # pyright: ignore[reportMissingImports]  # only this example needs it
    except ImportError as error:
        raise ImportError("easy-vqa is not installed: pip install easy-vqa") from error
    rng = np.random.default_rng(SEED)
    copy_pictures(easy_vqa.get_train_image_paths(), folder / "train")
    copy_pictures(easy_vqa.get_test_image_paths(), folder / "test")
    Image.new("RGB", (SIDE, SIDE), PAPER).save(folder / BLANK)
    known = questions_of(easy_vqa.get_train_questions())
    pictures = rng.permutation(sorted({question.picture for question in known}))
    held_out = set(pictures[:VALIDATION_PICTURES].tolist())
    validation = [question for question in known if question.picture in held_out]
    validation = draw(rng, validation, VALIDATION_QUESTIONS)
    test = draw(rng, questions_of(easy_vqa.get_test_questions()), TEST_QUESTIONS)
    train = [question for question in known if question.picture not in held_out]
    shuffled = draw(rng, train, len(train))
    words = [question for question in shuffled if question.answer not in YES_OR_NO]
    write_lines(folder / "train.jsonl", by_picture(shuffled), "train/{}.png")
    write_lines(folder / "words.jsonl", by_picture(words), "train/{}.png")
    write_lines(folder / "validation.jsonl", [[one] for one in validation], "train/{}.png")
    write_lines(folder / "test.jsonl", [[one] for one in test], "test/{}.png")
    write_lines(folder / "blank.jsonl", [[one] for one in test], BLANK)
    print(f"{folder}: {len(train)} questions to train on, {len(validation)} to validate, and")
    print(f"{len(test)} to test, of which every one is asked about an empty picture, too.")


def copy_pictures(paths: Mapping[int, str], folder: Path) -> None:
    """Copy pictures, given by their numbers, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in paths.items():
        shutil.copyfile(path, folder / f"{number}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argument_parser("examples.easy_vqa", __doc__)
    parser.add_argument("folder", type=Path, help="the directory that gets the data")
    options = parser.parse_args(arguments)
    return exit_code(lambda: write(options.folder))


if __name__ == "__main__":
    sys.exit(main())
