"""The prompts of the judge: files whose names end with their version, such as text.v1.txt.

A recipe may name other files in their place (`prompts: {text: my/text.v2.txt}`). `{question}` and
the like in a file are replaced; each line of the output names the files that were used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("prompts")
VERSION = re.compile(r"\.v\d+$")
PLACE = re.compile(r"\{(\w+)\}")
# What each prompt gets
PLACES = {
    "necessity": {"question"},
    "text": {"question"},
    "integration": {"question"},
    "verdict": {"question", "solution", "answer"},
    "revision": {"question", "solution", "chain"},
}


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
        name: of its file without the ending, with the version.
        text: with the places for `filled`.
    """

    name: str
    text: str

    @property
    def digest(self) -> str:
        """What tells this text from another one under the same name."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with values in its places; what is in a value is never replaced."""
        return PLACE.sub(lambda place: values[place[1]], self.text)


def read_prompts(others: Mapping[str, str]) -> dict[str, Prompt]:
    """The prompt of each use: the one of this package, or the file that a recipe names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown use, a file name without a version, or places that the use does not
            have, or lacks.
    """
    unknown = sorted(set(others) - set(PLACES))
    if unknown:
        raise ValueError(f"prompts: {unknown[0]!r}: expected some of {', '.join(PLACES)}.")
    prompts = {}
    for use, places in PLACES.items():
        path = Path(others.get(use, FOLDER / f"{use}.v1.txt"))
        if not VERSION.search(path.stem):
            raise ValueError(f"prompts: {path}: expected a name with a version, as {use}.v2.txt.")
        if not path.is_file():
            raise FileNotFoundError(f"prompts: {path} does not exist.")
        prompt = Prompt(path.stem, path.read_text(encoding="utf-8"))
        found = set(PLACE.findall(prompt.text))
        if found != places:
            raise ValueError(
                f"prompts: {path} has places for {sorted(found)}, not {sorted(places)}."
            )
        prompts[use] = prompt
    return prompts
