"""Questions of a benchmark as every part of the evaluation knows them, and their file.

A run keeps its questions in `items.jsonl`, and their images beside it. So a run that goes on asks
what it asked before, and its page can be made again without the data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

import durable
from answers.judging import Question

IMAGES = "images"  # the folder of a run's images
MARK = re.compile(r"<image[ _](\d+)>")  # where an image belongs in a question; the first is 1
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}  # of formats that every server reads


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with everything that asking and judging it takes.

    Attributes:
        id: of the question in its data set.
        group: what it is counted with besides the whole, such as a subject.
        text: of the question, with the options of a choice; `<image 1>` is where the first image
            belongs. Images that no mark names come first.
        kind: of its answer, one of answers.judging.KINDS.
        golds: right answers; one of them is enough.
        images: files, relative to the folder of the run.
        options: of a choice.
        precision: digits after the point of a number, or None for all that the right answer has.
        unit: of a number.
        instruction: how to answer; it follows the question.
    """

    id: str
    group: str
    text: str
    kind: str
    golds: tuple[str, ...]
    images: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    precision: int | None = None
    unit: str = ""
    instruction: str = ""

    def __post_init__(self) -> None:
        try:
            self.questions()
        except ValueError as error:
            raise ValueError(f"question {self.id}: {error}") from error
        if not self.golds:
            raise ValueError(f"question {self.id} has no right answer.")

    def questions(self) -> list[Question]:
        """What the answer is compared with: a question for each right answer."""
        return [
            Question(self.kind, gold, self.options, self.precision, self.unit)
            for gold in self.golds
        ]

    def parts(self) -> Iterator[str | Path]:
        """The prompt: texts, and images as paths that are relative to the folder of the run."""
        named = {int(number) for number in MARK.findall(self.text)}
        for number, image in enumerate(self.images, start=1):
            if number not in named:
                yield Path(image)
        text = self.text
        if self.instruction:
            text += f"\n{self.instruction}"
        position = 0
        for mark in MARK.finditer(text):
            number = int(mark[1])
            if not 1 <= number <= len(self.images):
                continue  # a text that only looks like a mark
            if text[position : mark.start()].strip():
                yield text[position : mark.start()].lstrip()
            yield Path(self.images[number - 1])
            position = mark.end()
        # The chat template writes a newline behind each image.
        if text[position:].strip():
            yield text[position:].strip()


class ImageFolder:
    """The images of a run, each once, named by what is in them.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, image: Image.Image | bytes) -> str:
        """Store an image and return its path, relative to the folder of the run.

        PNG and JPEG are stored as they are; all else becomes PNG.
        """
        if isinstance(image, Image.Image):
            return self._write(image)
        for start, suffix in SUFFIXES.items():
            if image.startswith(start):
                return self._write_bytes(image, suffix)
        with Image.open(io.BytesIO(image)) as opened:
            return self._write(opened)

    def _write(self, image: Image.Image) -> str:
        if image.mode not in ("RGB", "L", "RGBA", "P", "1"):
            image = image.convert("RGB")
        file = io.BytesIO()
        image.save(file, "PNG")
        return self._write_bytes(file.getvalue(), ".png")

    def _write_bytes(self, content: bytes, suffix: str) -> str:
        name = hashlib.sha256(content).hexdigest()[:24] + suffix
        path = self.folder / IMAGES / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with durable.writing(path) as file:
                file.write(content)
        return f"{IMAGES}/{name}"


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Write the file of questions, a line each.

    Raises:
        ValueError: two questions have one id, or there is none.
    """
    if not items:
        raise ValueError(f"{path}: no question to write; is the data set empty?")
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise ValueError(f"several questions have the id {twice[0]!r}; each needs its own.")
    lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) for item in items]
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, "\n".join(lines) + "\n")


def read_items(path: Path) -> list[Item]:
    """The questions of a run; an empty list where they were never written."""
    items = []
    for line in durable.whole_lines(path):
        fields = json.loads(line)
        for name in ("golds", "images", "options"):
            fields[name] = tuple(fields[name])
        items.append(Item(**fields))
    return items


def digest(items: Iterable[Item]) -> str:
    """What tells the questions of a run from others."""
    content = hashlib.sha256()
    for item in items:
        content.update(json.dumps(dataclasses.asdict(item)).encode())
    return content.hexdigest()[:16]
