"""Draws the bar charts of the nano tasks.

    drawing = draw_chart(numpy.random.default_rng(0))

The steps take their random numbers in the order in which `draw_chart` calls them, which must not
change: a seed has to give the same chart as ever, because the shipped checkpoint's scores are those
of certain seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import ImageFont

from tasks.drawing import (
    LABELS,
    LETTERS,
    Color,
    Drawing,
    Mark,
    Size,
    Sketch,
    load_font,
    random_background,
    random_font_path,
    random_ink,
    random_size,
)

Asking = Callable[[np.random.Generator, dict[str, int]], tuple[str, str, str]]

TALLEST_QUESTION = "Which bar is the tallest?"
VALUE_QUESTION = "What is the value of bar {}?"

CHART_SIDES = (160, 800)  # pixels
MAX_CHART_ASPECT = 1.8
CHART_FONT_SHARE = 0.085  # of the longer side
MAX_CHART_FONT_SHARE = 0.13  # of the shorter side


@dataclasses.dataclass(frozen=True)
class ChartLayout:
    """Where and how the parts of a chart are drawn; lengths in pixels.

    Attributes:
        size: (width, height).
        font: of letters and numbers.
        font_size: before it was rounded up; distances are shares of it.
        background: the colour of the canvas.
        text_ink: the colour of text and axes.
        axis_x: where the numbers of the axis end.
        baseline: y of the value 0.
        unit: the height of a value of 1.
        top: the largest number that the axis has room for.
        step: between two numbers on the axis.
        line: the width of lines.
    """

    size: Size
    font: ImageFont.FreeTypeFont
    font_size: float
    background: Color
    text_ink: Color
    axis_x: float
    baseline: float
    unit: float
    top: int
    step: int
    line: int

    def y_of(self, value: int) -> float:
        """Where a value lies on the axis."""
        return self.baseline - value * self.unit


def draw_chart(rng: np.random.Generator, sides: tuple[int, int] = CHART_SIDES) -> Drawing:
    """A bar chart of two to six bars, of which one is the tallest, and a question about it.

    Args:
        sides: the least and the largest side in pixels, which are at least 160.
    """
    return draw_chart_with(rng, question_about, sides)


def draw_chart_with(
    rng: np.random.Generator, ask: Asking, sides: tuple[int, int] = CHART_SIDES
) -> Drawing:
    """A bar chart as of `draw_chart` with a question of another kind.

    Args:
        ask: makes question, thinking and answer from the bars' values by their letters.
    """
    layout = random_layout(rng, sides)
    sketch = Sketch(layout.size, layout.background)
    if rng.random() < 0.5:
        add_grid(sketch, layout)
    values = random_values(rng, layout.top)
    marks = add_bars(rng, sketch, layout, values)
    marks += add_numbers(sketch, layout)
    if rng.random() < 0.7:
        add_axes(sketch, layout)
    question, thinking, answer = ask(rng, values)
    return Drawing(layout.size, question, thinking, answer, marks, values, sketch.paint)


# -- what is drawn ---------------------------------------------------------------------------------


def random_chart_size(rng: np.random.Generator, sides: tuple[int, int]) -> Size:
    """(width, height) of a chart in pixels, neither side much longer than the other."""
    low = max(sides[0], CHART_SIDES[0])
    high = max(sides[1], CHART_SIDES[0])
    while True:
        size = random_size(rng, (low, high))
        if max(size) <= MAX_CHART_ASPECT * min(size):
            return size


def random_layout(rng: np.random.Generator, sides: tuple[int, int]) -> ChartLayout:
    """Size, font, colours and axis of a chart."""
    size = random_chart_size(rng, sides)
    smallest = CHART_FONT_SHARE * max(size)
    font_size = max(smallest, rng.uniform(CHART_FONT_SHARE, MAX_CHART_FONT_SHARE) * min(size))
    font = load_font(random_font_path(rng), math.ceil(font_size))
    background = random_background(rng)
    text_ink = random_ink(rng, background, 0.4)
    baseline = size[1] - 1.35 * font_size
    ceiling = 0.6 * font_size
    top = int(rng.integers(5, 10))
    unit = (baseline - ceiling) / (top + rng.uniform(0, 0.5))
    step = 2
    has_room_for_every_number = unit >= 0.85 * font_size
    if has_room_for_every_number and rng.random() < 0.7:
        step = 1
    return ChartLayout(
        size=size,
        font=font,
        font_size=font_size,
        background=background,
        text_ink=text_ink,
        axis_x=0.15 * font_size + font.getlength("0"),
        baseline=baseline,
        unit=unit,
        top=top,
        step=step,
        line=max(1, round(min(size) / 150)),
    )


def random_values(rng: np.random.Generator, top: int) -> dict[str, int]:
    """The value of each bar by its letter, from 1 to `top`; only one is the largest."""
    count = int(rng.integers(2, len(LETTERS) + 1))
    values = [int(value) for value in rng.integers(1, top + 1, count)]
    while values.count(max(values)) > 1:
        # The value is drawn before the bar that gets it.
        value = int(rng.integers(1, top + 1))
        values[int(rng.integers(count))] = value
    return dict(zip(LETTERS, values))


# -- its parts -------------------------------------------------------------------------------------


def add_grid(sketch: Sketch, layout: ChartLayout) -> None:
    """Add a pale line at every number of the axis but 0."""
    mixed = []
    for back, ink in zip(layout.background, layout.text_ink):
        mixed.append((3 * back + ink) // 4)
    grid_ink = (mixed[0], mixed[1], mixed[2])
    left = layout.axis_x + 0.2 * layout.font_size
    for value in range(layout.step, layout.top + 1, layout.step):
        y = layout.y_of(value)
        sketch.add("line", (left, y, layout.size[0], y), grid_ink, width=layout.line)


def add_bars(
    rng: np.random.Generator, sketch: Sketch, layout: ChartLayout, values: dict[str, int]
) -> list[Mark]:
    """Add the bars, each with its letter below; returns their marks."""
    start = layout.axis_x + 0.35 * layout.font_size
    slot = (layout.size[0] - start - 0.1 * layout.font_size) / len(values)
    bar_width = max(2 * layout.line, slot * rng.uniform(0.4, 0.85))
    one_ink = None
    if rng.random() < 0.6:
        one_ink = random_ink(rng, layout.background, 0.25)
    letters_y = layout.baseline + 0.15 * layout.font_size
    marks = []
    for index, (letter, value) in enumerate(values.items()):
        middle = start + (index + 0.5) * slot
        left = middle - bar_width / 2
        right = middle + bar_width / 2
        box = (left, layout.y_of(value), right, layout.baseline)
        ink = one_ink or random_ink(rng, layout.background, 0.25)
        sketch.add("rectangle", box, ink)
        marks.append(Mark(LABELS["bar"], box))
        letter_box = sketch.add_glyph(letter, middle, letters_y, layout.font, layout.text_ink)
        # Who knows the value has seen the bar's top, and the axis.
        seen_with = (layout.axis_x / 2, box[1], middle, layout.baseline)
        words = (letter, str(value))
        marks.append(Mark(LABELS[letter], letter_box, words, seen_with=seen_with))
    return marks


def add_numbers(sketch: Sketch, layout: ChartLayout) -> list[Mark]:
    """Add the numbers on the axis; returns their marks."""
    x = layout.axis_x - layout.font.getlength("0") / 2
    marks = []
    for value in range(0, layout.top + 1, layout.step):
        number = str(value)
        y = layout.y_of(value) - 0.37 * layout.font_size
        box = sketch.add_glyph(number, x, y, layout.font, layout.text_ink)
        marks.append(Mark(LABELS[number], box))
    return marks


def add_axes(sketch: Sketch, layout: ChartLayout) -> None:
    """Add both axes."""
    corner = layout.axis_x + 0.2 * layout.font_size
    baseline = layout.baseline
    across = (corner, baseline, layout.size[0], baseline)
    up = (corner, 0, corner, baseline)
    for where in (across, up):
        sketch.add("line", where, layout.text_ink, width=layout.line)


# -- what is asked ---------------------------------------------------------------------------------


def question_about(rng: np.random.Generator, values: dict[str, int]) -> tuple[str, str, str]:
    """(question, thinking, answer) about the bars' values by their letters."""
    if rng.random() < 0.5:
        tallest = max(values, key=values.__getitem__)
        thinking = f"{bar_words(values)} {tallest_words(values)} The tallest is {tallest}."
        return TALLEST_QUESTION, thinking, tallest
    letter = LETTERS[rng.integers(len(values))]
    answer = str(values[letter])
    thinking = f"{bar_words(values)} Bar {letter} is {answer}."
    return VALUE_QUESTION.format(letter), thinking, answer


def bar_words(values: dict[str, int]) -> str:
    """The bars' values in words."""
    parts = [f"{letter} {value}" for letter, value in values.items()]
    return f"The bars are {', '.join(parts[:-1])} and {parts[-1]}."


def tallest_words(values: dict[str, int]) -> str:
    """The tallest bar up to each bar: two to compare at a time, instead of all bars at once."""
    tallest = next(iter(values))
    parts = []
    for letter, value in values.items():
        if value > values[tallest]:
            tallest = letter
        parts.append(f"{tallest} {values[tallest]}")
    return f"Tallest so far: {', '.join(parts)}."
