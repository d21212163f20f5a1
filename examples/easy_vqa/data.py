"""Writes the data of the package easy-vqa as lines for `training.sft` and `training.score`.

`write_data` leaves in a folder:

- `train.jsonl`: to train on, a third of each family (shape, colour, yes/no), with short thinking;
- `dev.jsonl`: the same of other pictures of the package's training split, to choose settings by;
- `test.jsonl`: held-out questions, from the package's own test split, without thinking;
- `blank.jsonl`: the same questions about pictures without their shape. What is right there did not
  need the picture;
- `images/`: the pictures, as PNG of 64 pixels a side.

Each line says its family. The thinking says what the questions about the same picture, in the same
split, tell about it; nothing else is known.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import durable
from examples.easy_vqa.questions import FAMILIES, Question, facts_of, family_of, thinking_of

DEV_PICTURES = 400  # of the 4,000 to train on; none of them is in train.jsonl
TRAIN_STREAM = 0
DEV_STREAM = 1
TEST_STREAM = 2


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many questions each file has, a third of each family.

    Raises:
        ValueError: a number that cannot be shared out.
    """

    train: int = 6000
    dev: int = 150
    test: int = 300

    def __post_init__(self) -> None:
        for name, count in dataclasses.asdict(self).items():
            if count < len(FAMILIES) or count % len(FAMILIES):
                raise ValueError(
                    f"{count} questions for {name}: expected a multiple of {len(FAMILIES)} above "
                    "0, a third of each family."
                )


@dataclasses.dataclass(frozen=True)
class Split:
    """The training or the test split of the package.

    Attributes:
        questions: all of them.
        pictures: the path of each picture, by its number.
    """

    questions: Sequence[Question]
    pictures: Mapping[int, str]


def load_splits() -> tuple[Split, Split]:
    """The training and the test split.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    try:
        import easy_vqa
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The pictures and questions are those of the package easy-vqa, which is not installed: "
            "pip install easy-vqa"
        ) from error
    train = list(map(Question, *easy_vqa.get_train_questions()))
    test = list(map(Question, *easy_vqa.get_test_questions()))
    return (
        Split(train, easy_vqa.get_train_image_paths()),
        Split(test, easy_vqa.get_test_image_paths()),
    )


def draw(questions: Sequence[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """Questions in random order, a third of each family, none twice.

    Raises:
        ValueError: a family has too few.
    """
    drawn: list[Question] = []
    for family in FAMILIES:
        of_family = [asked for asked in questions if family_of(asked.answer) == family]
        wanted = count // len(FAMILIES)
        if len(of_family) < wanted:
            raise ValueError(
                f"{count} questions need {wanted} of the family {family}, and easy-VQA has "
                f"{len(of_family)} of them here: ask for fewer."
            )
        places = rng.choice(len(of_family), wanted, replace=False)
        drawn += [of_family[place] for place in places]
    return [drawn[place] for place in rng.permutation(len(drawn))]


def row_of(question: Question, image: str, thinking: str) -> dict[str, Any]:
    """A question as a line of the data has it.

    Args:
        image: the path of its picture, relative to the file of the data.
        thinking: what stands before the answer; may be empty.
    """
    answer = f"{thinking}\n</think>\n\nAnswer: \\boxed{{{question.answer}}}"
    return {
        "image": image,
        "family": family_of(question.answer),
        "conversations": [
            {"from": "human", "value": f"<image>\n{question.text}"},
            {"from": "gpt", "value": answer},
        ],
    }


def blank(picture: Path | str) -> Image.Image:
    """The ground of a picture alone: all of it in the colour of its corner."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    return Image.new("RGB", image.size, image.getpixel((0, 0)))


def write_data(folder: Path, counts: Counts, seed: int = 0) -> None:
    """Write the four files and their pictures; the same for the same seed.

    A JSONL file appears when it and its pictures are whole.

    Args:
        seed: of the questions that are drawn.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the package has fewer questions.
    """
    train, test = load_splits()
    dev_pictures = _dev_pictures(train, seed)
    to_train = [asked for asked in train.questions if asked.picture not in dev_pictures]
    to_choose = [asked for asked in train.questions if asked.picture in dev_pictures]
    drawn = {
        "train": draw(to_train, counts.train, np.random.default_rng([TRAIN_STREAM, seed])),
        "dev": draw(to_choose, counts.dev, np.random.default_rng([DEV_STREAM, seed])),
    }
    held_out = draw(test.questions, counts.test, np.random.default_rng([TEST_STREAM, seed]))
    folder.mkdir(parents=True, exist_ok=True)
    with durable.new_directory(folder / "images") as images:
        _copy_pictures(train, drawn["train"] + drawn["dev"], images / "train")
        _copy_pictures(test, held_out, images / "test")
        _blank_pictures(test, held_out, images / "blank")
    facts = facts_of(train.questions)
    for name, questions in drawn.items():
        rows = []
        for asked in questions:
            thinking = thinking_of(asked, facts[asked.picture])
            rows.append(row_of(asked, f"images/train/{asked.picture}.png", thinking))
        _write_rows(folder / f"{name}.jsonl", rows)
    for name in ("test", "blank"):
        rows = [row_of(asked, f"images/{name}/{asked.picture}.png", "") for asked in held_out]
        _write_rows(folder / f"{name}.jsonl", rows)


def _dev_pictures(train: Split, seed: int) -> Set[int]:
    """The numbers of the pictures that are kept from training."""
    rng = np.random.default_rng([DEV_STREAM, seed])
    return set(rng.choice(sorted(train.pictures), DEV_PICTURES, replace=False).tolist())


def _copy_pictures(split: Split, questions: Sequence[Question], folder: Path) -> None:
    """Copy the pictures that are asked about, each once."""
    folder.mkdir()
    for number in {asked.picture for asked in questions}:
        shutil.copyfile(split.pictures[number], folder / f"{number}.png")


def _blank_pictures(split: Split, questions: Sequence[Question], folder: Path) -> None:
    """Write the pictures that are asked about without their shapes."""
    folder.mkdir()
    for number in {asked.picture for asked in questions}:
        blank(split.pictures[number]).save(folder / f"{number}.png")


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write lines, with a number as "id" each."""
    lines = []
    for number, row in enumerate(rows):
        lines.append(json.dumps({"id": number, **row}) + "\n")
    durable.write_text(path, "".join(lines))
