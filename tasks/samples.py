"""The nano tasks as tiles with labels, as texts, and as questions with answers.

The order in which random numbers are taken must not change: a seed has to give the same samples as
ever, because the shipped checkpoint was trained, and is scored, on those of certain seeds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from preprocessor.tiling import select_grid, tile_boxes
from tasks import charts, coloured, draw, hard
from tasks.drawing import LABELS, SHAPES, Box, Drawing, label_cells
from tasks.words import accepted_words, misread, read_marks, transcribe, word_indices, word_text

TILE_SIZE = 112  # pixels
MAX_TILES = 6
CELLS_PER_TILE = 16  # label cells along a side: two per patch of 14 pixels

# Other wordings of each question, which keep the model from hanging on one.
OTHER_WORDINGS = {
    draw.CALCULATION_QUESTION: (
        "What is the result?",
        "Calculate.",
        "What does the calculation in the picture give?",
        "Solve the calculation in the image.",
    ),
    draw.COUNTING_QUESTION: (
        "Count the shapes.",
        "How many shapes are there?",
        "How many shapes do you see?",
        "How many shapes are in this picture?",
    ),
    charts.TALLEST_QUESTION: ("Which bar is the highest?", "Which letter has the tallest bar?"),
    charts.VALUE_QUESTION: ("How high is bar {}?", "What value does bar {} have?"),
    coloured.ONLY_QUESTION: ("What color is the shape?", "Which colour does the shape have?"),
    coloured.SHAPE_QUESTION: (
        "What color is the {}?",
        "What is the color of the {}?",
        "Which colour does the {} have?",
    ),
    coloured.LARGEST_QUESTION: (
        "What color is the largest shape?",
        "What is the colour of the largest shape?",
    ),
    coloured.WHICH_QUESTION: ("What is {}?", "What shape is {}?"),
    coloured.COUNT_QUESTION: ("How many shapes are {}?", "Count the {} shapes."),
    hard.SUM_QUESTION: ("How much are bars {} and {} together?",),
    hard.TOTAL_QUESTION: ("How much are all bars together?",),
}
PAIR_QUESTION = "Which image shows more shapes, the first or the second?"
THREE_QUESTION = "Which image shows the most shapes, the first, the second or the third?"
PLACES = ("first", "second", "third")
DESCRIBE_QUESTION = "What is in the image?"
DESCRIBED_KINDS = (*draw.KINDS, coloured.draw_coloured)
PAIR_SIDES = (100, 600)  # pixels


@dataclasses.dataclass
class Sample:
    """A question about any number of drawings, with both ways to answer.

    Attributes:
        drawings: in the order of the question's images.
        question: without placeholders for the images.
        thinking: the reasoning that leads to the answer.
        answer: to the question.
    """

    drawings: list[Drawing]
    question: str
    thinking: str
    answer: str

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, RGB."""
        return [drawing.image for drawing in self.drawings]


def reasoned(sample: Sample) -> str:
    """The answer after thinking, as it follows `<think>\\n`: R1V's form."""
    return f"{sample.thinking}\n</think>\n\nAnswer: \\boxed{{{sample.answer}}}"


def stepwise(sample: Sample) -> str:
    """The reasoning and the answer of a model that does not think, where it is asked to reason."""
    return f"{sample.thinking}\n\nAnswer: \\boxed{{{sample.answer}}}"


# -- questions with answers ------------------------------------------------------------------------


def phrase(rng: np.random.Generator, question: str) -> str:
    """The question, or now and then another wording of it."""
    if rng.random() < 0.75:
        return question
    form, blanks = _form_of(question)
    others = OTHER_WORDINGS[form]
    return others[rng.integers(len(others))].format(*blanks)


def _form_of(question: str) -> tuple[str, tuple[str, ...]]:
    """A key of OTHER_WORDINGS, and what fills its blanks."""
    if question in OTHER_WORDINGS:
        return question, ()
    for form in OTHER_WORDINGS:
        pattern = re.escape(form).replace(r"\{\}", r"(\w+)")
        found = re.fullmatch(pattern, question)
        if found:
            return form, found.groups()
    raise ValueError(f"question {question!r}: expected one of {list(OTHER_WORDINGS)}.")


Family = Callable[..., Sample]


def family_of(draw_kind: Callable[[np.random.Generator], Drawing]) -> Family:
    """The samples about one drawing each of a kind."""

    def family(rng: np.random.Generator, wordings: bool = False) -> Sample:
        """A sample; with `wordings` it may be asked in other words."""
        drawing = draw_kind(rng)
        question = drawing.question
        if wordings:
            question = phrase(rng, question)
        return Sample([drawing], question, drawing.thinking, drawing.answer)

    return family


calculation = family_of(draw.draw_calculation)
counting = family_of(draw.draw_shapes)
chart = family_of(charts.draw_chart)
colours = family_of(coloured.draw_coloured)
long_calculation = family_of(hard.draw_long_calculation)
crowd = family_of(hard.draw_crowd)
sums = family_of(hard.draw_sum_chart)


def three(rng: np.random.Generator, wordings: bool = False) -> Sample:
    """Three pictures with shapes, of which one shows the most.

    Args:
        wordings: has no effect, because there is one wording of this question.
    """
    counts = [int(count) for count in rng.integers(1, 10, 3)]
    while counts.count(max(counts)) > 1:
        counts[int(rng.integers(3))] = int(rng.integers(1, 10))
    drawings = [draw.draw_shapes(rng, PAIR_SIDES, count) for count in counts]
    answer = PLACES[counts.index(max(counts))]
    thinking = ""
    for place, drawing in zip(PLACES, drawings):
        thinking += f"{place.capitalize()}: {drawing.thinking} "
    thinking += f"{counts[0]}, {counts[1]} and {counts[2]}: most are in the {answer}."
    return Sample(drawings, THREE_QUESTION, thinking, answer)


def pair(rng: np.random.Generator, wordings: bool = False) -> Sample:
    """Two pictures with shapes, one time in four with equally many.

    Args:
        wordings: has no effect, because there is one wording of this question.
    """
    first = int(rng.integers(1, 10))
    others = [count for count in range(1, 10) if count != first]
    second = first
    if rng.random() >= 0.25:
        second = int(others[rng.integers(len(others))])
    drawings = [draw.draw_shapes(rng, PAIR_SIDES, count) for count in (first, second)]
    answer, relation = _compare(first, second)
    thinking = (
        f"First: {drawings[0].thinking} Second: {drawings[1].thinking} "
        f"{first} is {relation} {second}."
    )
    return Sample(drawings, PAIR_QUESTION, thinking, answer)


def _compare(first: int, second: int) -> tuple[str, str]:
    """Which of two numbers is larger, and what the first is to the second, in words."""
    if first == second:
        return "equal", "as many as"
    if first > second:
        return "first", "more than"
    return "second", "less than"


def description(rng: np.random.Generator, wordings: bool = False) -> Sample:
    """What is in the picture, in words: no task, but every mark counts for the answer.

    Args:
        wordings: has no effect, because there is one wording of this question.
    """
    draw_kind = DESCRIBED_KINDS[rng.integers(len(DESCRIBED_KINDS))]
    drawing = draw_kind(rng)
    answer = describe(drawing)
    return Sample([drawing], DESCRIBE_QUESTION, "I look at the image.", answer)


def describe(drawing: Drawing) -> str:
    """What a drawing shows, in words."""
    facts = drawing.facts
    if isinstance(facts, dict):
        return ", ".join(f"{letter} {value}" for letter, value in facts.items())
    if isinstance(facts, list):
        return ", ".join(f"{colour} {shape}" for colour, shape in facts)
    if drawing.question == draw.CALCULATION_QUESTION:
        left, sign, right = facts
        return f"{left} {sign} {right}"
    return draw.count_words(facts).split(".")[0].removeprefix("I see ")


def bare_calculation(rng: np.random.Generator, wordings: bool = False) -> Sample:
    """A calculation in the question itself, without a picture.

    Args:
        wordings: has no effect, because both wordings of this question are always asked.
    """
    left, sign, right = draw.random_operands(rng)
    thinking, result = draw.solve(left, sign, right)
    wording = ("What is {}?", "Calculate {}.")[rng.integers(2)]
    question = wording.format(f"{left} {sign} {right}")
    return Sample([], question, thinking, str(result))


def colour_of_a_shape(rng: np.random.Generator, wordings: bool = False) -> Sample:
    """A sample of the colours whose question names a shape that has others beside it.

    Args:
        wordings: whether it may be asked in other words.
    """
    while True:
        sample = colours(rng, wordings)
        form, _ = _form_of(sample.drawings[0].question)
        if form == coloured.SHAPE_QUESTION and len(sample.drawings[0].marks) > 1:
            return sample


FAMILIES: dict[str, Family] = {
    "calculation": calculation,
    "counting": counting,
    "two images": pair,
    "charts": chart,
    "colours": colours,
}
# Harder variants. The language models know them as text, and the encoder has seen their pictures;
# the projector of the efficient transfer was not trained on them.
FURTHER_FAMILIES: dict[str, Family] = {
    "long calculation": long_calculation,
    "crowd": crowd,
    "three images": three,
    "sums of bars": sums,
}
ALL_FAMILIES = {**FAMILIES, **FURTHER_FAMILIES}


# -- tiles -----------------------------------------------------------------------------------------


def grid(drawing: Drawing) -> tuple[int, int]:
    """(columns, rows) of tiles that the image processor cuts the drawing into."""
    width, height = drawing.size
    return select_grid(width, height, 1, MAX_TILES, TILE_SIZE)


def regions(drawing: Drawing) -> list[Box]:
    """The boxes of the drawing, in its pixels, that its tiles show.

    With more than one tile the thumbnail's comes last.
    """
    columns, rows = grid(drawing)
    width, height = drawing.size
    boxes: list[Box] = []
    for left, upper, right, lower in tile_boxes(columns, rows, 1):
        across = (left * width / columns, right * width / columns)
        down = (upper * height / rows, lower * height / rows)
        boxes.append((across[0], down[0], across[1], down[1]))
    if len(boxes) > 1:
        boxes.append((0, 0, width, height))
    return boxes


class LabelledTiles(NamedTuple):
    """The tiles of a drawing, with what they show; a thumbnail comes last.

    Attributes:
        pixels: uint8 (tiles, side, side, 3).
        covering: int64 (tiles, cells, cells), see `drawing.label_cells`.
        centred: int64 (tiles, cells, cells), see `drawing.label_cells`.
        words: int64 (tiles, TOKENS_PER_TILE), indices of WORDS.
        accepted: bool (tiles, TOKENS_PER_TILE, words), see `words.accepted_words`.
    """

    pixels: np.ndarray
    covering: np.ndarray
    centred: np.ndarray
    words: np.ndarray
    accepted: np.ndarray


def cut_tiles(drawing: Drawing) -> LabelledTiles:
    """A drawing as the image processor cuts it, with the labels of every tile."""
    columns, rows = grid(drawing)
    pixels = _cut_picture(drawing.image, columns, rows)
    covering, centred = label_cells(
        drawing.marks, drawing.size, columns * CELLS_PER_TILE, rows * CELLS_PER_TILE
    )
    coverings = []
    centreds = []
    for left, upper, right, lower in tile_boxes(columns, rows, CELLS_PER_TILE):
        coverings.append(covering[upper:lower, left:right])
        centreds.append(centred[upper:lower, left:right])
    if len(pixels) > 1:
        covering, centred = label_cells(drawing.marks, drawing.size, CELLS_PER_TILE, CELLS_PER_TILE)
        coverings.append(covering)
        centreds.append(centred)
    words = []
    accepted = []
    for region in regions(drawing):
        readings = read_marks(drawing.marks, region, drawing.size)
        words.append(word_indices(readings))
        accepted.append(accepted_words(readings))
    return LabelledTiles(
        pixels, np.stack(coverings), np.stack(centreds), np.stack(words), np.stack(accepted)
    )


def _cut_picture(image: Image.Image, columns: int, rows: int) -> np.ndarray:
    """The tiles of a picture, and a thumbnail if there are several: uint8 (tiles, side, side, 3).

    They are those of the image processor with `fast_resize`, since resizing is most of the work of
    drawing a picture.
    """
    picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    resized = _resize(picture, rows * TILE_SIZE, columns * TILE_SIZE)
    tiles = []
    for left, upper, right, lower in tile_boxes(columns, rows, TILE_SIZE):
        tiles.append(resized[:, upper:lower, left:right])
    if len(tiles) > 1:
        tiles.append(_resize(picture, TILE_SIZE, TILE_SIZE))
    return torch.stack(tiles).permute(0, 2, 3, 1).contiguous().numpy()


def _resize(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A uint8 picture (1, 3, rows, columns) as (3, height, width)."""
    return F.interpolate(picture, (height, width), mode="bicubic", antialias=True)[0]


# -- texts -----------------------------------------------------------------------------------------


def transcriptions(drawing: Drawing) -> list[list[str]]:
    """The words of every tile."""
    return [transcribe(drawing.marks, region, drawing.size) for region in regions(drawing)]


def described(rng: np.random.Generator, sample: Sample, exact: bool = False) -> str:
    """The question with words in place of its pictures: transcriptions, a few words misread.

    A thumbnail shows everything, but many small shapes in it are easily miscounted; tiles cut
    things at their borders. So the reader learns to weigh the two.

    Args:
        exact: no words are misread.
    """
    text = ""
    for drawing in sample.drawings:
        rate_in_thumbnail = 0.005
        if has_shapes(drawing):
            rate_in_thumbnail = 0.015
        tiles = transcriptions(drawing)
        text += "["
        for number, words in enumerate(tiles, start=1):
            rate = 0.01
            if number == len(tiles):
                rate = rate_in_thumbnail
            if exact:
                rate = 0.0
            text += "".join(map(word_text, misread(rng, words, rate)))
        text += "]\n"
    return text + sample.question


def has_shapes(drawing: Drawing) -> bool:
    """Whether a drawing shows shapes."""
    labels = {LABELS[shape] for shape in SHAPES}
    return any(mark.label in labels for mark in drawing.marks)


TEXT_SHARES: dict[Family, float] = {
    calculation: 0.14,
    counting: 0.10,
    pair: 0.15,
    chart: 0.12,
    colours: 0.11,
    long_calculation: 0.09,
    crowd: 0.06,
    three: 0.07,
    sums: 0.05,
    description: 0.06,
    bare_calculation: 0.05,
}


# More than half of them about the colour of a shape among others: to look it up is learned last.
COLOUR_SHARES: dict[Family, float] = {
    **{family: 0.4 * share for family, share in TEXT_SHARES.items()},
    colour_of_a_shape: 0.6,
}


def text_sample(rng: np.random.Generator, shares: Mapping[Family, float] = TEXT_SHARES) -> Sample:
    """A sample of any kind, its pictures put into words.

    Args:
        shares: how often each kind occurs.
    """
    kinds = list(shares)
    kind = kinds[rng.choice(len(kinds), p=list(shares.values()))]
    sample = kind(rng, wordings=True)
    return dataclasses.replace(sample, question=described(rng, sample))
