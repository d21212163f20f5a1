"""The words of transcriptions: what a reader notes down of a tile of a drawing.

A *transcription* has one word for each of a tile's `TOKENS_PER_TILE` visual tokens, the marks from
left to right, then "empty". The vision encoder learns to write it (`training.nano.encoder`), and
the language models learn to read it as text (`training.nano.text`); the projector is all that is
left to connect them.

A shape is one word with its colour, "redcircle". In a view of the whole picture the shape that is
clearly the largest has a capital letter, "Redcircle": words stand in the order of their places, and
would not tell sizes otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.colours import COLOURS, is_clear, name_of
from tasks.drawing import LETTERS, SHAPES, Box, Mark, Size

TOKENS_PER_TILE = 16
EMPTY = "empty"
UNKNOWN = "bar"  # a bar whose top or axis is not in the tile
NUM_MISTAKES = 4  # kinds of mistakes in a transcription; see `misread`


class ShapeWord(NamedTuple):
    """What a word says about a shape.

    Attributes:
        colour: one of COLOURS.
        shape: one of SHAPES.
        is_largest: whether it is clearly the largest of its picture.
    """

    colour: str
    shape: str
    is_largest: bool

    @property
    def text(self) -> str:
        """The word."""
        word = self.colour + self.shape
        if self.is_largest:
            return word.capitalize()
        return word


SHAPE_WORDS = {
    said.text: said
    for is_largest in (False, True)
    for colour in COLOURS
    for shape in SHAPES
    for said in [ShapeWord(colour, shape, is_largest)]
}
WORDS = (EMPTY, *"0123456789+-×", *SHAPE_WORDS, *LETTERS, UNKNOWN)
WORD_INDEX = {word: index for index, word in enumerate(WORDS)}
# Words without a shape that are taken for each other where a transcription is misread.
CONFUSED_WORDS = (tuple("0123456789"), tuple("+-×"), tuple(LETTERS))


class Reading(NamedTuple):
    """A word of a transcription.

    Attributes:
        word: what it is.
        accepted: all words that say it as well: where a colour is between two names, or a shape is
            nearly the largest. It includes the word.
    """

    word: str
    accepted: tuple[str, ...]


def read_marks(marks: list[Mark], region: Box, size: Size) -> list[Reading]:
    """The words of the marks whose middle lies in a region, from left to right.

    Args:
        marks: of a drawing.
        region: of the drawing, in its pixels.
        size: (width, height) of the drawing in pixels.

    Returns:
        At most TOKENS_PER_TILE readings, without empty ones.
    """
    with_words = [mark for mark in marks if mark.words]
    with_words.sort(key=lambda mark: mark.middle[0])
    is_whole = region == (0, 0, *size)
    readings = []
    for mark in with_words:
        # A mark at the very border of the picture belongs to the last tile.
        x = min(max(mark.middle[0], 0), size[0] - 1e-6)
        y = min(max(mark.middle[1], 0), size[1] - 1e-6)
        left, upper, right, lower = region
        if not (left <= x < right and upper <= y < lower):
            continue
        readings.append(_first_reading(mark, is_whole))
        if mark.seen_with is None:
            continue
        second = UNKNOWN
        if _is_in_sight(mark.seen_with, region):
            second = mark.words[1]
        readings.append(Reading(second, (second,)))
    return readings


def _first_reading(mark: Mark, is_whole: bool) -> Reading:
    """What is said of a mark in a view of the whole picture, or of a part."""
    if mark.ink is None:
        return Reading(mark.words[0], mark.words[:1])
    colour = name_of(mark.ink)
    shape = mark.words[0]
    colours = COLOURS
    if is_clear(mark.ink):
        colours = (colour,)
    sizes = (False,)
    if is_whole and mark.is_largest is None:
        sizes = (False, True)
    elif is_whole:
        sizes = (bool(mark.is_largest),)
    accepted = [ShapeWord(name, shape, largest).text for name in colours for largest in sizes]
    return Reading(ShapeWord(colour, shape, sizes[0]).text, tuple(accepted))


def _is_in_sight(box: Box, region: Box) -> bool:
    """Whether a box lies in a region; its upper edge may be a pixel above."""
    left, upper, right, lower = region
    is_across = left <= box[0] and box[2] <= right
    is_down = upper <= box[1] + 1 and box[3] <= lower
    return is_across and is_down


def transcribe(marks: list[Mark], region: Box, size: Size) -> list[str]:
    """The transcription of a region: TOKENS_PER_TILE words. For the arguments see `read_marks`."""
    words = [reading.word for reading in read_marks(marks, region, size)]
    return words + [EMPTY] * (TOKENS_PER_TILE - len(words))


def word_indices(readings: list[Reading]) -> np.ndarray:
    """A transcription as indices of WORDS: int64 (TOKENS_PER_TILE,)."""
    indices = np.full(TOKENS_PER_TILE, WORD_INDEX[EMPTY], dtype=np.int64)
    for place, reading in enumerate(readings):
        indices[place] = WORD_INDEX[reading.word]
    return indices


def accepted_words(readings: list[Reading]) -> np.ndarray:
    """Which words are right in each place of a transcription.

    Returns:
        bool (TOKENS_PER_TILE, len(WORDS)).
    """
    accepted = np.zeros((TOKENS_PER_TILE, len(WORDS)), dtype=bool)
    for place, reading in enumerate(readings):
        accepted[place, [WORD_INDEX[word] for word in reading.accepted]] = True
    accepted[len(readings) :, WORD_INDEX[EMPTY]] = True
    return accepted


def word_text(word: str) -> str:
    """A word as text that is one token: digits stand alone, everything else takes a space along."""
    if word.isdigit():
        return word
    return f" {word}"


def misread(rng: np.random.Generator, words: list[str], rate: float) -> list[str]:
    """A transcription with mistakes.

    Args:
        words: of a tile.
        rate: how often each of four mistakes happens to a word: it is lost, doubled, swapped with
            the word before, or taken for another one. At 0 no random number is taken.
    """
    heard: list[str] = []
    for word in words:
        if word == EMPTY:
            break
        mistake = float(NUM_MISTAKES)
        if rate:
            mistake = rng.random() / rate
        if mistake < 1:
            continue
        if mistake < 2:
            heard += [word, word]
        elif mistake < 3 and heard:
            heard.insert(-1, word)
        elif mistake < NUM_MISTAKES:
            heard.append(_other_word(rng, word))
        else:
            heard.append(word)
    return (heard + [EMPTY] * TOKENS_PER_TILE)[:TOKENS_PER_TILE]


def _other_word(rng: np.random.Generator, word: str) -> str:
    """A word that is taken for this one, which can be the word itself."""
    if word in SHAPE_WORDS:
        return _other_shape_word(rng, SHAPE_WORDS[word])
    candidates = (word,)
    for group in CONFUSED_WORDS:
        if word in group:
            candidates = group
    return candidates[rng.integers(len(candidates))]


def _other_shape_word(rng: np.random.Generator, said: ShapeWord) -> str:
    """Another shape, colour or size, which can be the one it was."""
    mistake = rng.integers(3)
    if mistake == 0:
        return said._replace(shape=SHAPES[rng.integers(len(SHAPES))]).text
    if mistake == 1:
        return said._replace(colour=COLOURS[rng.integers(len(COLOURS))]).text
    return said._replace(is_largest=not said.is_largest).text
