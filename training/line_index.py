"""Where the good lines of a JSONL file lie, and how many tokens they have: 16 bytes a line.

Checking millions of lines, and opening as many images, takes hours on slow storage. So the first
process alone does it, and leaves the result beside the data as `.NAME.index.npz`, for the other
processes and for later starts. The result is of a file with a certain size and time of change; of a
changed file it is made again. Broken lines are looked at again at each start, since a missing image
may be there by now.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from transformers.utils import logging

import durable
from training.rows import SampleError

logger = logging.get_logger(__name__)

VERSION = 1  # of the files' content
SECONDS_UNTIL_BAR = 3.0
SECONDS_BETWEEN_LOOKS = 0.5


class BrokenLine(NamedTuple):
    """A line that cannot be used: its number from 1, its offset in bytes, what is wrong."""

    number: int
    offset: int
    error: str


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """The good lines of a file, in order, and its broken ones.

    Attributes:
        offsets: int64 (lines,), in bytes.
        numbers: int32 (lines,), from 1.
        lengths: int32 (lines,), in tokens; None where nobody has asked for them.
        broken: the broken lines.
        content: a hash of the file.
    """

    offsets: np.ndarray
    numbers: np.ndarray
    lengths: np.ndarray | None
    broken: list[BrokenLine]
    content: str


Check = Callable[[bytes], None]  # raises SampleError for a line that cannot be used
Measure = Callable[[bytes], int]  # the number of tokens of a line


def make_index(path: Path, check: Check) -> FileIndex:
    """Check every line of a file."""
    content = hashlib.blake2b(digest_size=16)
    offsets = []
    numbers = []
    broken = []
    offset = 0
    with open(path, "rb") as file, _progress_bar("checking", path) as bar:
        for number, line in enumerate(file, start=1):
            content.update(line)
            if line.strip():
                error = _error_of(line, check)
                if error is None:
                    offsets.append(offset)
                    numbers.append(number)
                else:
                    broken.append(BrokenLine(number, offset, error))
            offset += len(line)
            bar.update(len(line))
    return FileIndex(
        np.array(offsets, np.int64),
        np.array(numbers, np.int32),
        None,
        broken,
        content.hexdigest(),
    )


def look_again(path: Path, index: FileIndex, check: Check) -> FileIndex:
    """The index after another look at the broken lines; lengths are dropped if one is good now."""
    broken = []
    mended = []
    with open(path, "rb") as file:
        for line in index.broken:
            file.seek(line.offset)
            error = _error_of(file.readline(), check)
            if error is None:
                mended.append(line)
            else:
                broken.append(line._replace(error=error))
    if not mended:
        return dataclasses.replace(index, broken=broken)
    offsets = np.concatenate([index.offsets, [line.offset for line in mended]])
    numbers = np.concatenate([index.numbers, [line.number for line in mended]])
    order = np.argsort(offsets)
    return FileIndex(
        offsets[order].astype(np.int64),
        numbers[order].astype(np.int32),
        None,
        broken,
        index.content,
    )


def with_lengths(path: Path, index: FileIndex, measure: Measure) -> FileIndex:
    """The index with the number of tokens of each good line."""
    lengths = np.zeros(len(index.offsets), np.int32)
    with open(path, "rb") as file, _progress_bar("measuring", path) as bar:
        for place, offset in enumerate(index.offsets):
            file.seek(offset)
            line = file.readline()
            lengths[place] = measure(line)
            bar.update(len(line))
    return dataclasses.replace(index, lengths=lengths)


def _error_of(line: bytes, check: Check) -> str | None:
    try:
        check(line)
    except SampleError as error:
        return str(error)
    return None


def _progress_bar(action: str, path: Path) -> tqdm:
    """A bar over the bytes of a file, which appears if it takes long."""
    return tqdm(
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        desc=f"{action} {path.name}",
        delay=SECONDS_UNTIL_BAR,
        mininterval=1.0,
    )


# -- the file beside the data ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class IndexFiles:
    """Where the processes of a training find the indices that the first of them makes.

    Attributes:
        folder: of the indices of files whose own directory cannot be written to; all processes see
            it.
        is_first: whether this process makes them.
        wait: returns when all processes have called it.
    """

    folder: Path
    is_first: bool
    wait: Callable[[], None]

    def get(
        self, path: Path, settings: dict[str, Any], check: Check, measure: Measure | None
    ) -> FileIndex:
        """The index of a file: read if it is there, else made by the first process.

        Args:
            settings: what the checks and the lengths depend on, besides the file.
            check: see `make_index`.
            measure: see `with_lengths`; None where no lengths are needed.
        """
        key = _key_of(path, settings)
        if self.is_first:
            index = self._update(path, key, check, measure)
            self.wait()
            return index
        # Not at the barrier, whose time limit (minutes) is far below hours of checking.
        while not _is_enough(self._read(path, key), measure):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.wait()
        index = self._read(path, key)
        if index is None:
            raise FileNotFoundError(f"the index of {path}, which the first process has written")
        return index

    def _update(
        self, path: Path, key: dict[str, Any], check: Check, measure: Measure | None
    ) -> FileIndex:
        """The index, made or completed as far as needed, and written where it has changed."""
        before = self._read(path, key)
        index = make_index(path, check) if before is None else look_again(path, before, check)
        if measure is not None and index.lengths is None:
            index = with_lengths(path, index, measure)
        if before is None or not _is_same(before, index):
            self._write(path, key, index)
        return index

    def _places(self, path: Path) -> Iterator[Path]:
        """Where the index of a file may be, best place first."""
        name = f".{path.name}.index.npz"
        yield path.parent / name
        where = hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
        yield self.folder / f"{where}{name}"

    def _read(self, path: Path, key: dict[str, Any]) -> FileIndex | None:
        """The index of a file as it is now, or None."""
        for place in self._places(path):
            index = _read_index(place, key)
            if index is not None:
                return index
        return None

    def _write(self, path: Path, key: dict[str, Any], index: FileIndex) -> None:
        """Write the index beside the file, or else into the folder."""
        beside, elsewhere = self._places(path)
        try:
            _write_index(beside, key, index)
        except OSError as error:
            logger.warning(f"{beside} cannot be written ({error.strerror}); it is in {elsewhere}.")
            elsewhere.parent.mkdir(parents=True, exist_ok=True)
            _write_index(elsewhere, key, index)


def _key_of(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What an index is for, in JSON's types."""
    status = path.stat()
    key = {**settings, "version": VERSION, "bytes": status.st_size, "changed": status.st_mtime_ns}
    return json.loads(json.dumps(key))


def _is_enough(index: FileIndex | None, measure: Measure | None) -> bool:
    return index is not None and (measure is None or index.lengths is not None)


def _is_same(first: FileIndex, second: FileIndex) -> bool:
    return first.broken == second.broken and (first.lengths is None) == (second.lengths is None)


def _write_index(place: Path, key: dict[str, Any], index: FileIndex) -> None:
    arrays: dict[str, Any] = {"offsets": index.offsets, "numbers": index.numbers}
    if index.lengths is not None:
        arrays["lengths"] = index.lengths
    described = json.dumps({"key": key, "broken": index.broken, "content": index.content})
    with durable.writing(place) as file:
        np.savez(file, described=np.frombuffer(described.encode(), np.uint8), **arrays)


def _read_index(place: Path, key: dict[str, Any]) -> FileIndex | None:
    """An index of a file, or None where there is none, none that is whole, or one of another."""
    try:
        with np.load(place) as stored:
            described = json.loads(stored["described"].tobytes())
            if described["key"] != key:
                return None
            lengths = stored.get("lengths")
            broken = [BrokenLine(*line) for line in described["broken"]]
            return FileIndex(
                stored["offsets"], stored["numbers"], lengths, broken, described["content"]
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
