"""Draws the pictures of the nano tasks, with question, reasoning, answer and where everything is.

    drawing = draw_calculation(numpy.random.default_rng(0))
    drawing.image, drawing.question, drawing.thinking, drawing.answer

The range of what is drawn is the range that the nano checkpoint is meant for:

- canvases of 100 to 800 pixels a side;
- text in any of matplotlib's DejaVu fonts, with a size of at least a tenth of the longer side;
- shapes of at least 7 pixels and a twentieth of the shorter side in radius that do not touch;
- bar charts (`tasks.charts`) of 160 to 800 pixels a side, no more than 1.8 times as long as wide or
  wide as long, of two to six bars with whole values from 1 to 9 on an axis from 0 with its numbers.

Harder variants are in `tasks.hard`, shapes in colours with a clear name in `tasks.coloured`.

The order in which random numbers are taken must not change: a seed has to give the same picture as
ever, because the shipped checkpoint's scores are those of certain seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageFont

from tasks.charts import draw_chart
from tasks.drawing import (
    CANVAS_SIDES,
    LABELS,
    SHAPES,
    Box,
    Color,
    Drawing,
    Mark,
    Point,
    Size,
    Sketch,
    load_font,
    random_background,
    random_font_path,
    random_ink,
    random_size,
)

CALCULATION_QUESTION = "What is the result of the calculation in the image?"
COUNTING_QUESTION = "How many shapes are in the image?"

MIN_FONT_SHARE = 0.1  # of the longer side
MIN_RADIUS = 7  # pixels
MIN_RADIUS_SHARE = 0.05  # of the shorter side
MAX_COUNT = 9  # shapes in a picture
CLEARLY_LARGER = 1.4  # times the area of every other shape, for a shape to be the largest
NEARLY_LARGER = 1.15  # times: from here on a reader may call a shape the largest, or may not
# The area of each of SHAPES over the square of the radius of the circle that holds it.
AREAS = {"circle": math.pi, "square": 2.0, "triangle": 0.75 * math.sqrt(3)}
NUM_TRIES = 60  # to find a place for a shape, before all are placed anew

# The glyphs that a sign of a calculation is written with, as often as they occur, and back again.
WRITTEN_SIGNS = {"+": ("+",), "-": ("−", "-"), "×": ("×", "×", "×", "x")}
SAME_GLYPH = {"−": "-", "x": "×", "*": "×"}

# -- calculations ----------------------------------------------------------------------------------


def random_operands(rng: np.random.Generator) -> tuple[int, str, int]:
    """(left, sign, right) of a calculation: up to 99, and up to 12 where they are multiplied."""
    sign = ("+", "-", "×")[rng.integers(3)]
    bound = 100
    if sign == "×":
        bound = 13
    left = int(rng.integers(bound))
    right = int(rng.integers(bound))
    return left, sign, right


def solve(left: int, sign: str, right: int) -> tuple[str, int]:
    """Reasoning in words and the result of a calculation, digit by digit as in school."""
    if sign == "×":
        product = left * right
        return f"I read {left} × {right}. That is {product}.", product
    if sign == "+":
        return addition_words(left, right), left + right
    return subtraction_words(left, right), left - right


def addition_words(left: int, right: int) -> str:
    """Reasoning of an addition: ones, then tens with the carry."""
    ones = left % 10 + right % 10
    carry = ones // 10
    tens = left // 10 + right // 10 + carry
    return (
        f"I read {left} + {right}. Ones: {left % 10} + {right % 10} = {ones}. "
        f"Tens: {left // 10} + {right // 10} + {carry} = {tens}. Together {left + right}."
    )


def subtraction_words(left: int, right: int) -> str:
    """Reasoning of a subtraction: the smaller from the larger, ones, then tens with the borrow."""
    larger = max(left, right)
    smaller = min(left, right)
    borrow = int(larger % 10 < smaller % 10)
    upper_ones = larger % 10 + 10 * borrow
    ones = upper_ones - smaller % 10
    tens = larger // 10 - smaller // 10 - borrow
    sign_words = "is not negative."
    if left < right:
        sign_words = "is negative."
    return (
        f"I read {left} - {right}. The result {sign_words} From {larger} take {smaller}. "
        f"Ones: {upper_ones} - {smaller % 10} = {ones}. "
        f"Tens: {larger // 10} - {smaller // 10} - {borrow} = {tens}. "
        f"Together {left - right}."
    )


def calculation_text(rng: np.random.Generator, left: int, sign: str, right: int) -> str:
    """The calculation as one writes it: with or without spaces, equals sign and question mark."""
    space = ""
    if rng.random() < 0.7:
        space = " "
    endings = ("", f"{space}=", f"{space}={space}?")
    ending = endings[rng.choice(3, p=[0.6, 0.2, 0.2])]
    signs = WRITTEN_SIGNS[sign]
    written_sign = signs[rng.integers(len(signs))]
    return f"{left}{space}{written_sign}{space}{right}{ending}"


def largest_font(path: Path, text: str, size: Size) -> int:
    """The largest font size in pixels at which the text fits a canvas."""
    left, upper, right, lower = load_font(path, 100).getbbox(text)
    widest = 0.96 * size[0] / (right - left)
    highest = 0.96 * size[1] / (lower - upper)
    return int(min(widest, highest) * 100)


def draw_calculation(rng: np.random.Generator, sides: tuple[int, int] = CANVAS_SIDES) -> Drawing:
    """A calculation anywhere on a canvas.

    Args:
        sides: the least and the largest side of the canvas in pixels.
    """
    operands = random_operands(rng)
    text = calculation_text(rng, *operands)
    size, marks, sketch = write_somewhere(rng, text, sides, MIN_FONT_SHARE)
    thinking, result = solve(*operands)
    question = CALCULATION_QUESTION
    return Drawing(size, question, thinking, str(result), marks, operands, sketch.paint)


def write_somewhere(
    rng: np.random.Generator, text: str, sides: tuple[int, int], min_font_share: float
) -> tuple[Size, list[Mark], Sketch]:
    """A text anywhere on a canvas; one that would be too small on it gets another canvas.

    Args:
        sides: the least and the largest side of the canvas in pixels.
        min_font_share: the smallest font's size, as a share of the longer side.

    Returns:
        The canvas's size, the marks of the glyphs, and what is painted.
    """
    path = random_font_path(rng)
    while True:
        size = random_size(rng, sides)
        smallest = math.ceil(min_font_share * max(size))
        largest = largest_font(path, text, size)
        if largest >= smallest:
            break
    font = load_font(path, int(rng.integers(smallest, largest + 1)))
    left, upper, right, lower = font.getbbox(text)
    free_across = int(max(size[0] - (right - left), 0))
    free_down = int(max(size[1] - (lower - upper), 0))
    x = int(rng.integers(0, free_across + 1)) - left
    y = int(rng.integers(0, free_down + 1)) - upper
    sketch = Sketch(size, random_background(rng))
    ink = random_ink(rng, sketch.background, 0.35)
    sketch.add("text", (x, y), ink, text=text, font=font)
    return size, glyph_marks(font, text, x, y), sketch


def glyph_marks(font: ImageFont.FreeTypeFont, text: str, x: float, y: float) -> list[Mark]:
    """Marks of a line of text at (x, y).

    All glyphs stand on the middle of the line, and "=" and "?" go without a word.
    """
    _, upper, _, lower = font.getbbox(text)
    middle_y = y + (upper + lower) / 2
    marks = []
    for index, written in enumerate(text):
        if written == " ":
            continue
        start = x + font.getlength(text[:index])
        inked = font.getbbox(written)
        box = (start + inked[0], y + inked[1], start + inked[2], y + inked[3])
        glyph = SAME_GLYPH.get(written, written)
        words = ()
        if glyph not in "=?":
            words = (glyph,)
        anchor = ((box[0] + box[2]) / 2, middle_y)
        marks.append(Mark(LABELS[glyph], box, words, anchor))
    return marks


# -- shapes ----------------------------------------------------------------------------------------


class Circle(NamedTuple):
    """A circle that holds a shape: its centre and radius in pixels."""

    x: float
    y: float
    radius: float


def place_shapes(
    rng: np.random.Generator, width: int, height: int, count: int, overlap: float = 0.0
) -> list[Circle]:
    """Circles for `count` shapes on a canvas in pixels, none touching another or the border.

    Args:
        overlap: the share of the sum of their radii by which two of them may overlap.
    """
    shorter = min(width, height)
    smallest = max(MIN_RADIUS, MIN_RADIUS_SHARE * shorter)
    largest = max(smallest, min(0.3 * shorter, 0.42 * math.sqrt(width * height / count)))
    placed: list[Circle] = []
    while len(placed) < count:
        circle = _free_circle(rng, (width, height), (smallest, largest), placed, overlap)
        if circle is None:
            # There is no room left: all are placed anew, smaller.
            placed = []
            largest = max(smallest, 0.85 * largest)
        else:
            placed.append(circle)
    return placed


def _free_circle(
    rng: np.random.Generator,
    size: Size,
    radii: tuple[float, float],
    placed: list[Circle],
    overlap: float,
) -> Circle | None:
    """A circle of a radius within the bounds that touches no other, or None after some tries."""
    width, height = size
    gap = max(2.0, 0.01 * max(size))
    for _ in range(NUM_TRIES):
        radius = rng.uniform(*radii)
        x = rng.uniform(radius + 1, width - radius - 1)
        y = rng.uniform(radius + 1, height - radius - 1)
        circle = Circle(x, y, radius)
        if all(_are_apart(circle, other, gap, overlap) for other in placed):
            return circle
    return None


def _are_apart(first: Circle, second: Circle, gap: float, overlap: float) -> bool:
    """Whether there is more than a gap in pixels between two circles, or they overlap little."""
    distance = math.hypot(first.x - second.x, first.y - second.y)
    radii = first.radius + second.radius
    if overlap:
        return distance > (1 - overlap) * radii
    return distance > radii + gap


def corner_points(rng: np.random.Generator, shape: str, circle: Circle) -> list[Point]:
    """Corners of a square or triangle on a circle, most often upright, else turned."""
    corners = 3
    upright = -math.pi / 2
    if shape == "square":
        corners = 4
        upright = math.pi / 4
    turn = upright
    if rng.random() < 0.3:
        turn = rng.uniform(0, 2 * math.pi)
    points = []
    for corner in range(corners):
        angle = turn + 2 * math.pi * corner / corners
        x = circle.x + circle.radius * math.cos(angle)
        y = circle.y + circle.radius * math.sin(angle)
        points.append((x, y))
    return points


def box_around(points: list[Point]) -> Box:
    """The smallest box that holds the points."""
    across, down = zip(*points)
    return (min(across), min(down), max(across), max(down))


def count_words(counts: Sequence[int]) -> str:
    """The number of each of SHAPES in words, and their sum."""
    parts = []
    for count, name in zip(counts, SHAPES):
        if count != 1:
            name += "s"
        parts.append(f"{count} {name}")
    total = sum(counts)
    return (
        f"I see {parts[0]}, {parts[1]} and {parts[2]}. "
        f"{counts[0]} + {counts[1]} + {counts[2]} = {total}. Together {total}."
    )


class Shape(NamedTuple):
    """A shape in a picture.

    Attributes:
        name: one of SHAPES.
        ink: its colour.
        box: that it fills, in pixels.
        area: in pixels.
    """

    name: str
    ink: Color
    box: Box
    area: float


def add_shape(
    rng: np.random.Generator, sketch: Sketch, name: str, circle: Circle, ink: Color
) -> Shape:
    """Add a shape that a circle holds, most often upright, else turned."""
    if name == "circle":
        x, y, radius = circle
        box = (x - radius, y - radius, x + radius, y + radius)
        sketch.add("ellipse", box, ink)
    else:
        points = corner_points(rng, name, circle)
        box = box_around(points)
        sketch.add("polygon", points, ink)
    return Shape(name, ink, box, AREAS[name] * circle.radius**2)


def largest_shape(shapes: Sequence[Shape]) -> Shape | None:
    """The shape that is clearly larger than every other, if there is one."""
    largest, ratio = _largest_and_ratio(shapes)
    if ratio < CLEARLY_LARGER:
        return None
    return largest


def _largest_and_ratio(shapes: Sequence[Shape]) -> tuple[Shape, float]:
    """The largest shape, and how many times as large as the next one it is."""
    *others, largest = sorted(shapes, key=lambda shape: shape.area)
    if not others:
        return largest, math.inf
    return largest, largest.area / others[-1].area


def shape_marks(shapes: Sequence[Shape]) -> list[Mark]:
    """Marks of the shapes of a picture, in their order."""
    largest, ratio = _largest_and_ratio(shapes)
    marks = []
    for shape in shapes:
        is_largest: bool | None = False
        if shape is largest and ratio >= CLEARLY_LARGER:
            is_largest = True
        elif shape is largest and ratio >= NEARLY_LARGER:
            is_largest = None
        label = LABELS[shape.name]
        words = (shape.name,)
        marks.append(Mark(label, shape.box, words, ink=shape.ink, is_largest=is_largest))
    return marks


def count_shapes(shapes: Sequence[Shape]) -> tuple[int, ...]:
    """The number of each of SHAPES."""
    names = [shape.name for shape in shapes]
    return tuple(names.count(name) for name in SHAPES)


def draw_shapes(
    rng: np.random.Generator,
    sides: tuple[int, int] = CANVAS_SIDES,
    count: int | None = None,
    overlap: float = 0.0,
) -> Drawing:
    """One to nine circles, squares and triangles that do not touch.

    Args:
        sides: the least and the largest side of the canvas in pixels.
        count: of shapes; None for any number.
        overlap: see `place_shapes`.
    """
    size = random_size(rng, sides)
    background = random_background(rng)
    sketch = Sketch(size, background)
    count = count or int(rng.integers(1, MAX_COUNT + 1))
    one_ink = None
    if rng.random() < 0.2 and not overlap:
        one_ink = random_ink(rng, background, 0.2)
    shapes = []
    for circle in place_shapes(rng, *size, count, overlap):
        name = SHAPES[rng.integers(len(SHAPES))]
        ink = one_ink or random_ink(rng, background, 0.2)
        shapes.append(add_shape(rng, sketch, name, circle, ink))
    facts = count_shapes(shapes)
    marks = shape_marks(shapes)
    thinking = count_words(facts)
    return Drawing(size, COUNTING_QUESTION, thinking, str(count), marks, facts, sketch.paint)


KINDS = (draw_calculation, draw_shapes, draw_chart)
