"""Several data sets in one training, each with a weight, a limit of tiles and images of its own.

A recipe names the file of a mixture as its `data`: a YAML list with an entry for each data set.

    - data: a.jsonl                # or a list, or datasets:NAME:SPLIT, as in a recipe
      weight: 2                    # each sample twice in an epoch
    - data: datasets:lmms-lab/some:train
      weight: 0.25                 # a quarter of the samples, the same in each epoch
      max_tiles: 4                 # of an image, in place of the recipe's
      image_root: images           # in place of the recipe's

Paths in it are relative to the working directory, as in a recipe.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from training.sources import Conversations, EncodedSample, Root

MIXTURE_SUFFIXES = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class MixtureEntry:
    """A data set of a mixture.

    Attributes:
        data: as in a recipe.
        weight: how often each sample comes in an epoch; below 1, the share of samples that do.
        max_tiles: of an image, thumbnail not counted; None for the recipe's.
        image_root: directory of relative image paths; None for the recipe's.

    Raises:
        ValueError: a value that is none of its kind.
    """

    data: list[str]
    weight: float = 1.0
    max_tiles: int | None = None
    image_root: str | None = None

    def __post_init__(self) -> None:
        is_number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not is_number or not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight!r} of {self.data}: expected a number above 0.")
        is_count = isinstance(self.max_tiles, int) and self.max_tiles >= 1
        if self.max_tiles is not None and not is_count:
            raise ValueError(f"max_tiles={self.max_tiles!r} of {self.data}: expected at least 1.")


def is_mixture(data: Sequence[str]) -> bool:
    """Whether a recipe's `data` is the file of a mixture."""
    return len(data) == 1 and data[0].endswith(MIXTURE_SUFFIXES)


def read_mixture(path: str | Path) -> list[MixtureEntry]:
    """The data sets of a mixture's file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another form, with what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: the mixture {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: expected a list with an entry, `- data: …`, for each data set.")
    return [_entry(path, number, fields) for number, fields in enumerate(content, 1)]


def _entry(path: Path, number: int, fields: Any) -> MixtureEntry:
    known = {field.name for field in dataclasses.fields(MixtureEntry)}
    if not isinstance(fields, dict) or "data" not in fields or not fields.keys() <= known:
        raise ValueError(
            f"{path}, entry {number}: {fields!r}; expected data, and any of "
            f"{', '.join(sorted(known - {'data'}))}."
        )
    data = fields["data"]
    if isinstance(data, str):
        data = [data]
    try:
        return MixtureEntry(**{**fields, "data": data})
    except ValueError as error:
        raise ValueError(f"{path}, entry {number}: {error}") from error


class MixtureCounts:
    """The counts of all data sets of a mixture; see `Counts`.

    Args:
        sources: the data sets.
        ends: the number of samples up to and with each of them.
    """

    def __init__(self, sources: Sequence[Conversations], ends: Sequence[int]) -> None:
        self._sources = sources
        self._ends = ends

    def is_unusable(self, line: int) -> bool:
        """Whether a sample was found broken or too long."""
        number, place = place_of(line, self._ends)
        return self._sources[number].counts.is_unusable(place)

    def as_dict(self) -> dict[str, int]:
        """The counts of this process and its workers."""
        return _summed([source.counts.as_dict() for source in self._sources])

    def over_processes(self, accelerator: Any) -> dict[str, int]:
        """The counts of all processes of a training."""
        return _summed([source.counts.over_processes(accelerator) for source in self._sources])


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in counts) for name in counts[0]}


def place_of(index: int, ends: Sequence[int]) -> tuple[int, int]:
    """The number of a sample's data set, and of the sample in it."""
    number = bisect.bisect_right(ends, index)
    start = ends[number - 1] if number else 0
    return number, index - start


class Mixture(Conversations):
    """The samples of several data sets, one after another.

    Args:
        sources: the data sets, each with an encoder of its own.
        names: what the log calls them.
        weights: how often each sample comes in an epoch.
    """

    def __init__(
        self, sources: Sequence[Conversations], names: Sequence[str], weights: Sequence[float]
    ) -> None:
        self.sources = sources
        self.names = names
        self.weights = weights
        self._ends = np.cumsum([len(source) for source in sources]).tolist()
        self.counts: Any = MixtureCounts(sources, self._ends)
        content = [[source.fingerprint, weight] for source, weight in zip(sources, weights)]
        self.fingerprint = hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()

    def weighted(self, numbers: Sequence[int], seed: int) -> list[int]:
        """The numbers of an epoch's samples: each as often as its data set's weight says.

        Of a weight's fraction, so large a share of the samples is drawn.

        Raises:
            ValueError: no sample is left.
        """
        generator = torch.Generator().manual_seed(seed)
        in_use = np.asarray(numbers)
        owners = np.searchsorted(self._ends, in_use, side="right")
        drawn: list[int] = []
        for number, weight in enumerate(self.weights):
            own = in_use[owners == number]
            drawn += own.tolist() * int(weight)
            share = round((weight - int(weight)) * len(own))
            some = torch.randperm(len(own), generator=generator)[:share]
            drawn += own[np.sort(some.numpy())].tolist()
        if not drawn:
            raise ValueError("The weights of the mixture are so small that no sample is left.")
        return drawn

    def epochs(self, epoch: float) -> dict[str, float]:
        """How many times each data set was passed over, after so many epochs of the mixture."""
        return {name: epoch * weight for name, weight in zip(self.names, self.weights)}

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[Conversations, int]:
        """The data set of a sample, and the sample's number in it."""
        number, place = place_of(index, self._ends)
        return self.sources[number], place

    def row(self, index: int) -> Any:
        """The row as it stands in its data set."""
        source, place = self._find(index)
        return source.row(place)

    def where(self, index: int) -> str:
        """What messages call the sample."""
        source, place = self._find(index)
        return source.where(place)

    def root(self, index: int) -> Root:
        """The directory of relative image paths, or None."""
        source, place = self._find(index)
        return source.root(place)

    def length(self, index: int) -> int:
        """About how many tokens a sample has, with the tiles of its data set."""
        source, place = self._find(index)
        return source.length(place)

    def encode_line(self, index: int) -> EncodedSample | None:
        """The encoded sample, or None for one that its data set counts as broken or too long."""
        source, place = self._find(index)
        return source.encode_line(place)
