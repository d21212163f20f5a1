"""Where samples come from: JSONL files, a table of `datasets`, or a stream of either.

Files and tables give samples by number, in any order; a stream gives them as they come. Each
encodes a sample when it is asked for, counts those that are broken or too long, and names them by
file and line.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from training.counts import FEWER_TILES, READ, TOO_LONG, Counts
from training.line_index import FileIndex, IndexFiles, make_index, with_lengths
from training.rows import SampleError, TooLongError, local_path, parse_line, parse_row
from training.sample_encoder import SampleEncoder

SHOWN_BROKEN_LINES = 10  # in an error

EncodedSample = dict[str, Any]
Root = str | Path | None  # the directory of relative image paths


class Conversations(Dataset):
    """Samples by number.

    One that turns out broken (an image that does not decode) or too long is counted, and another
    one, drawn at random, takes its place.

    Attributes:
        encoder: `SampleEncoder`.
        counts: `Counts`.
        fingerprint: changes with the data.
    """

    encoder: SampleEncoder
    counts: Counts
    fingerprint: str
    _numbers: Sequence[int] | None = None

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the samples that are in use, all unless it was restricted."""
        return range(len(self)) if self._numbers is None else self._numbers

    def restricted(self, numbers: Sequence[int]) -> Conversations:
        """The same samples, of which only some are in use; no other takes the place of one."""
        part = copy.copy(self)
        part._numbers = numbers
        return part

    def __len__(self) -> int:
        raise NotImplementedError

    def row(self, index: int) -> Any:
        """The row as it stands in the data."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """What messages call the sample."""
        raise NotImplementedError

    def root(self, index: int) -> Root:
        """The directory of relative image paths, or None."""
        raise NotImplementedError

    def length(self, index: int) -> int:
        """About how many tokens a sample has, for grouping by length."""
        raise NotImplementedError

    def encode_line(self, index: int) -> EncodedSample | None:
        """The encoded sample, or None for one that is counted as broken or too long."""
        return _encode_and_count(
            self.encoder,
            self.counts,
            lambda: self.row(index),
            self.root(index),
            self.where(index),
            index,
        )

    def encode_usable(self, index: int) -> EncodedSample | None:
        """As `encode_line`; a sample that was found unusable before is not read again."""
        if self.counts.is_unusable(index):
            return None
        return self.encode_line(index)

    def __getitem__(self, index: int) -> EncodedSample:
        """The encoded sample, or the one that takes its place.

        Raises:
            SampleError: no sample can be used, or too many are broken.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        for candidate in self._candidates(index):
            sample = self.encode_usable(candidate)
            if sample is not None:
                return sample
        raise SampleError("none of the samples can be used: all are broken or too long")

    def _candidates(self, index: int) -> Iterator[int]:
        """A sample's number, then those of others that may take its place.

        Their order depends on the sample alone, so that a resumed training reads the same again.
        """
        yield index
        generator = torch.Generator().manual_seed(index)
        for place in torch.randperm(len(self.numbers), generator=generator).tolist():
            yield self.numbers[place]


class ConversationFile(Conversations):
    """A JSONL file (or several) whose lines are read from disk in any order.

    Lines are checked when the data set is made: form, roles, and whether image files exist. Only
    where they lie, and how long they are, is in memory that the workers share: 16 bytes a line.

    Args:
        paths: those of the files.
        encoder: `SampleEncoder`.
        image_root: directory of relative image paths; None: each file's own directory.
        max_broken_share: largest share of broken lines; exceeding it raises SampleError.
        index_files: where the checks are kept for other processes and later starts; None for
            nowhere.
        needs_lengths: whether `length` will be asked for.

    Raises:
        FileNotFoundError: no such file.
        SampleError: no line at all, or too many broken ones.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        encoder: SampleEncoder,
        image_root: Root = None,
        max_broken_share: float = 0.0,
        index_files: IndexFiles | None = None,
        needs_lengths: bool = False,
    ) -> None:
        self.encoder = encoder
        self.paths = [Path(path) for path in paths]
        self.image_root = image_root
        for path in self.paths:
            if not path.is_file():
                raise FileNotFoundError(f"data file {path} does not exist.")
        indices = [self._index_of(path, index_files, needs_lengths) for path in self.paths]
        self._ends = np.cumsum([len(index.offsets) for index in indices]).tolist()
        self._offsets = _shared([index.offsets for index in indices])
        self._line_numbers = _shared([index.numbers for index in indices])
        self._lengths = None
        if needs_lengths:
            self._lengths = _shared([_lengths_of(index) for index in indices])
        broken = []
        for path, index in zip(self.paths, indices):
            broken += [f"{path}, line {line.number}: {line.error}" for line in index.broken]
        self._judge_broken_lines(broken, max_broken_share)
        self.counts = Counts(len(self), len(broken), max_broken_share)
        contents = " ".join(index.content for index in indices)
        self.fingerprint = hashlib.blake2b(contents.encode(), digest_size=16).hexdigest()

    def _index_of(
        self, path: Path, index_files: IndexFiles | None, needs_lengths: bool
    ) -> FileIndex:
        """Where the good lines of a file lie, and its broken ones."""
        root = self._root_of_file(path)

        def check(line: bytes) -> None:
            """Raise SampleError for a line of another form, or whose image files do not exist."""
            for image in parse_row(parse_line(line)).images:
                file = local_path(image, root)
                if file is not None and not file.is_file():
                    raise SampleError(f"no image file {file}")

        def measure(line: bytes) -> int:
            """The number of tokens of a line."""
            return self.encoder.count_tokens(parse_row(parse_line(line)), root)

        if index_files is not None:
            settings = {"image_root": str(Path(root).resolve())}
            if needs_lengths:
                settings["encoder"] = self.encoder.fingerprint
            return index_files.get(path, settings, check, measure if needs_lengths else None)
        index = make_index(path, check)
        if needs_lengths:
            index = with_lengths(path, index, measure)
        return index

    def _judge_broken_lines(self, broken: list[str], max_broken_share: float) -> None:
        """Warn of broken lines, or raise SampleError if they are too many or there is no line."""
        total = len(self) + len(broken)
        if not total:
            raise SampleError(f"no samples in {', '.join(map(str, self.paths))}")
        if len(broken) > max_broken_share * total:
            shown = "\n  ".join(broken[:SHOWN_BROKEN_LINES])
            raise SampleError(
                f"{len(broken)} of {total} lines are broken; max_broken_share allows a share of "
                f"{max_broken_share:g}. Mend them or raise it:\n  {shown}"
            )
        for message in broken:
            warnings.warn(f"{message}; skipped", stacklevel=3)

    def _root_of_file(self, path: Path) -> str | Path:
        return self.image_root or path.parent

    def _path(self, index: int) -> Path:
        """The file that a line is in."""
        return self.paths[bisect.bisect_right(self._ends, index)]

    def __len__(self) -> int:
        return self._ends[-1]

    def where(self, index: int) -> str:
        """The path of the file and the number of the line, from 1."""
        return f"{self._path(index)}, line {int(self._line_numbers[index])}"

    def root(self, index: int) -> Root:
        """The image root, by default the directory of the line's file."""
        return self._root_of_file(self._path(index))

    def row(self, index: int) -> Any:
        """The row, read from disk.

        Raises:
            SampleError: the file has changed and the line is no longer JSON.
        """
        with open(self._path(index), "rb") as file:
            file.seek(int(self._offsets[index]))
            return parse_line(file.readline())

    def length(self, index: int) -> int:
        """How many tokens a sample has, if its images are what their headers say.

        Raises:
            ValueError: the data set was made without lengths.
        """
        if self._lengths is None:
            raise ValueError("The lengths were not measured: give needs_lengths=True.")
        return int(self._lengths[index])


def _shared(arrays: list[np.ndarray]) -> torch.Tensor:
    """Arrays one after another, in memory that the processes of a data loader share."""
    return torch.from_numpy(np.concatenate(arrays)).share_memory_()


def _lengths_of(index: FileIndex) -> np.ndarray:
    if index.lengths is None:
        raise ValueError("an index without lengths, where they are needed")
    return index.lengths


class ConversationTable(Conversations):
    """A `datasets.Dataset` of rows as `parse_row` knows them.

    Args:
        rows: the data set.
        name: what messages call it.
        encoder, image_root, max_broken_share: as for `ConversationFile`; by default relative image
            paths are relative to the working directory.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        name: str,
        encoder: SampleEncoder,
        image_root: Root = None,
        max_broken_share: float = 0.0,
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.image_root = image_root
        # Images stay as they are stored. `datasets` would turn photographs by a rule of its own,
        # and fail on broken ones before they are counted.
        self.rows = rows.with_format("arrow")
        self.features = _without_decoding(rows.features)
        texts = [column for column in rows.column_names if column not in ("image", "images")]
        self._texts = rows.select_columns(texts)
        self.counts = Counts(len(rows), 0, max_broken_share)
        self.fingerprint = f"{name}, {len(rows)} rows, {rows._fingerprint}"

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """The name of the table and the number of the row, from 0."""
        return f"{self.name}, row {index}"

    def root(self, index: int) -> Root:
        """The image root, the same for all rows."""
        return self.image_root

    def row(self, index: int) -> Any:
        """The row, with its images as they are stored."""
        table: Any = self.rows[index]
        return self.features.decode_example(table.to_pylist()[0])

    def length(self, index: int) -> int:
        """About how many tokens a sample has, from its text, as if each image had all tiles."""
        row: Any = self._texts[index]
        messages = [*(row.get("conversations") or []), *(row.get("messages") or [])]
        text = json.dumps(messages, default=str)
        tokens_of_image = (self.encoder.max_tiles + 1) * self.encoder.tokens_per_tile
        tokens = len(text) // 3 + text.count("<image>") * tokens_of_image
        return min(tokens, self.encoder.max_length)


class StreamedConversations:
    """The samples of a `datasets.IterableDataset`; unusable ones are counted and left out.

    Attributes:
        dataset: an IterableDataset with one column, "sample"; as many workers can share it as it
            has shards.
        counts: `Counts`.

    Args:
        rows: what `json_lines` gives, or rows as `parse_row` knows them.
        name: what messages call it.
        encoder, max_broken_share: as for `ConversationFile`.
        image_root: directory of relative image paths; None: that of each JSONL file.
        fingerprint: changes with the data.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        name: str,
        encoder: SampleEncoder,
        image_root: Root = None,
        max_broken_share: float = 0.0,
        fingerprint: str = "",
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.image_root = image_root
        self.fingerprint = fingerprint
        self.counts = Counts(None, 0, max_broken_share)
        if rows.features is not None:
            # Images are decoded by the encoder, where a broken one is counted. Without
            # `decode(False)` threads of `datasets` would decode them before.
            rows = rows.decode(False).cast(_without_decoding(rows.features))
        columns = rows.column_names or list(next(iter(rows)))
        encoded = rows.map(self._encode, with_indices=True, remove_columns=columns)
        self.dataset = encoded.filter(_has_sample)

    def _encode(self, row: dict[str, Any], index: int) -> dict[str, EncodedSample | None]:
        """The encoded sample of a row, or None, as the column "sample"."""
        root = self.image_root
        where = f"{self.name}, row {index + 1}"
        is_line = set(row) == {"path", "number", "line"}
        if is_line:
            root = root or Path(row["path"]).parent
            where = f"{row['path']}, line {row['number']}"

        def read_row() -> Any:
            """The row, for which a line still has to be parsed."""
            return parse_line(row["line"]) if is_line else row

        return {"sample": _encode_and_count(self.encoder, self.counts, read_row, root, where)}


def _has_sample(row: dict[str, Any]) -> bool:
    return row["sample"] is not None


def _encode_and_count(
    encoder: SampleEncoder,
    counts: Counts,
    read_row: Callable[[], Any],
    image_root: Root,
    where: str,
    line: int | None = None,
) -> EncodedSample | None:
    """An encoded sample, or None for one that is counted as broken or too long.

    Args:
        read_row: gives the row, or raises SampleError.
        where: what messages call the sample.
        line: its number in the data set; None in a stream.

    Raises:
        SampleError: too many samples are broken.
    """
    try:
        sample = encoder(parse_row(read_row()), image_root)
    except TooLongError:
        counts.add(TOO_LONG, line)
        return None
    except SampleError as error:
        counts.report_broken(where, error, line)
        return None
    counts.add(READ, line)
    if sample.pop("fewer_tiles"):
        counts.add(FEWER_TILES, line)
    return sample


def _without_decoding(features: datasets.Features) -> datasets.Features:
    """Features in which no image or other medium, however deep, is decoded; JSON still is."""
    return datasets.Features(_feature_without_decoding(dict(features)))


def _feature_without_decoding(feature: Any) -> Any:
    if hasattr(feature, "decode") and not isinstance(feature, datasets.Json):
        return dataclasses.replace(feature, decode=False)
    if isinstance(feature, dict):
        return {name: _feature_without_decoding(inner) for name, inner in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return dataclasses.replace(feature, feature=_feature_without_decoding(feature.feature))
    return feature
