"""The nano tasks as a benchmark: pictures that are drawn afresh, or put into words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.items import ImageFolder, Item
from tasks import samples

STREAM = 0x5EED  # keeps these pictures apart from those of training, whatever the seed
# The stream of each family's pictures. A new family gets the next number: those that are given
# stand for the pictures of every score that has been published.
FAMILY_STREAMS = {
    "calculation": 0,
    "charts": 1,
    "counting": 2,
    "two images": 3,
    "colours": 4,
    "long calculation": 5,
    "crowd": 6,
    "three images": 7,
    "sums of bars": 8,
}


@dataclasses.dataclass(frozen=True)
class FamilySet:
    """Samples of some families, and how they are asked.

    Attributes:
        count: of each family.
        seed: that they are drawn from.
        families: of `samples.ALL_FAMILIES`; by default those of `samples.FAMILIES`.
        in_words: whether the pictures are put into words, so that a language model alone can be
            asked.
        exact: whether no words are misread then; by default a few are, as an encoder would.

    Raises:
        ValueError: a family is unknown, or there would be no sample.
    """

    count: int = 500
    seed: int = 12345
    families: Sequence[str] = tuple(samples.FAMILIES)
    in_words: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count {self.count}: expected at least 1 sample of each family.")
        unknown = sorted(set(self.families) - set(samples.ALL_FAMILIES))
        if unknown:
            known = list(samples.ALL_FAMILIES)
            raise ValueError(f"family {unknown[0]!r}: expected one of {known}.")

    def drawn(self, family: str) -> list[samples.Sample]:
        """The samples of a family, in the order of their questions."""
        return self._drawn(family, self._generator(family))

    def items(self, folder: Path) -> list[Item]:
        """The samples as questions; their pictures go into a folder as PNG files."""
        images = ImageFolder(folder)
        items = []
        for family in self.families:
            rng = self._generator(family)
            for number, sample in enumerate(self._drawn(family, rng)):
                text, stored = sample.question, [images.add(image) for image in sample.images]
                if self.in_words:
                    text, stored = samples.described(rng, sample, self.exact), []
                items.append(
                    Item(
                        id=f"{family} {number}",
                        group=family,
                        text=text,
                        kind="text",
                        golds=(sample.answer,),
                        images=tuple(stored),
                    )
                )
        return items

    def _generator(self, family: str) -> np.random.Generator:
        return np.random.default_rng([STREAM, self.seed, FAMILY_STREAMS[family]])

    def _drawn(self, family: str, rng: np.random.Generator) -> list[samples.Sample]:
        return [samples.ALL_FAMILIES[family](rng) for _ in range(self.count)]
