"""The samples of a distillation, and the files of its stages.

A stage has a JSONL file with a line for each sample, which is written as soon as the sample is
done: what the stage found, or `"set_aside"` with the reason why there is nothing. A process that
dies leaves whole lines and at most one half, which is dropped, so that nothing is done twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import durable
from answers.judging import Question
from training.rows import json_lines, parse_line
from training.solved_rows import (
    SolvedRow,
    question_fields,
    question_with_history,
    row_with_absolute_images,
    solved_row,
)

SET_ASIDE = "set_aside"  # the key of the reason in a line
Entry = dict[str, Any]  # a line of a stage's file


class SetAside(ValueError):
    """A sample that a stage can do nothing with; the text says why."""


class Unanswered(SetAside):
    """A sample about which no endpoint has replied; another time one may."""


class Shard(NamedTuple):
    """The part of the data that a machine works on: samples whose number is `index` modulo `count`.

    Attributes:
        index: from 0.
        count: of all machines.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that a recipe writes as "0/2".

        Raises:
            ValueError: it is none.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise ValueError(
                f"shard {text!r}: expected INDEX/COUNT with INDEX below COUNT, as 0/2."
            )
        return cls(int(index), int(count))

    @property
    def folder(self) -> str:
        """Its folder in the output directory; "" where there is one shard alone."""
        return f"shard_{self.index}_of_{self.count}" if self.count > 1 else ""

    def has(self, number: int) -> bool:
        """Whether a sample is in it."""
        return number % self.count == self.index


class Sample(NamedTuple):
    """A sample of the data.

    Attributes:
        number: among all lines of all files, from 0.
        where: file and line.
        row: as the data have it, its images as absolute paths.
        question: with what was said before it.
        asked: the fields of a question for the generator.
        images: absolute paths.
        right: the right answer.
        answer: the data's own last answer, or "".
    """

    number: int
    where: str
    row: dict[str, Any]
    question: str
    asked: dict[str, Any]
    images: list[str]
    right: Question
    answer: str


class Data(NamedTuple):
    """What was read of the data.

    Attributes:
        samples: of this shard.
        broken: lines of the shard that are no samples, as entries with the reason.
        digest: of all lines of all files.
        lines: number of all lines that are not blank.
    """

    samples: list[Sample]
    broken: list[Entry]
    digest: str
    lines: int


def read_data(paths: Sequence[str], image_root: str | None, shard: Shard) -> Data:
    """The samples of a shard.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no line in any file.
    """
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"data file {path} does not exist.")
    samples: list[Sample] = []
    broken: list[Entry] = []
    digest = hashlib.sha256()
    lines = 0
    for number, line in enumerate(json_lines(paths)):
        lines += 1
        digest.update(line["line"].strip() + b"\n")
        if not shard.has(number):
            continue
        where = f"{line['path']}, line {line['number']}"
        root = image_root or Path(line["path"]).parent
        try:
            samples.append(_sample(number, where, solved_row(parse_line(line["line"]), root)))
        except (ValueError, TypeError, FileNotFoundError) as error:
            broken.append({"number": number, "where": where, SET_ASIDE: str(error)})
    if not lines:
        raise ValueError(f"data {list(paths)}: no line.")
    return Data(samples, broken, digest.hexdigest(), lines)


def _sample(number: int, where: str, read: SolvedRow) -> Sample:
    asked = question_fields(read)
    return Sample(
        number=number,
        where=where,
        row=row_with_absolute_images(read),
        question=question_with_history(read.sample),
        asked=asked,
        images=asked["images"],
        right=read.right,
        answer=read.answer,
    )


class StageFile:
    """The lines of a stage, which grow; it may be used from any number of threads; a context.

    Args:
        path: of the file.
        key: the fields that tell a line from others.

    Attributes:
        entries: the lines so far, by their keys.
    """

    def __init__(self, path: Path, key: tuple[str, ...] = ("number",)) -> None:
        self.path = path
        self.key = key
        self.entries: dict[tuple[int, ...], Entry] = {}
        self._lock = threading.Lock()
        if path.exists():
            durable.drop_half_line(path)
        for line in durable.whole_lines(path):
            self._take(json.loads(line))
        self._file = path.open("a", encoding="utf-8")

    def _take(self, entry: Entry) -> None:
        self.entries[tuple(entry[name] for name in self.key)] = entry

    def __enter__(self) -> StageFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The next stage builds on these lines: they have to outlast a power cut that its own do
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Write a line."""
        with self._lock:
            self._take(entry)
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()

    def by_number(self) -> dict[int, Entry]:
        """The line of each sample, where a sample has one."""
        return {entry["number"]: entry for entry in self.entries.values()}


def forget_set_aside(path: Path) -> None:
    """Drop the lines of samples that a stage has set aside, so that it tries them again."""
    lines = durable.whole_lines(path)
    kept = [line for line in lines if SET_ASIDE not in json.loads(line)]
    if len(kept) < len(lines):
        durable.write_text(path, "".join(f"{line.decode()}\n" for line in kept))


def reasons(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries that were set aside."""
    for entry in entries:
        if SET_ASIDE in entry:
            yield entry
