"""Draws shapes in clear colours, with questions about colours.

    drawing = draw_coloured(numpy.random.default_rng(0))

Pictures are as those of `draw.draw_shapes`, down to 64 pixels a side and with at most six shapes,
all of them in colours that everybody would call by the same name (`tasks.colours`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.colours import COLOURS, name_of, random_named_ink
from tasks.draw import Shape, add_shape, largest_shape, place_shapes, shape_marks
from tasks.drawing import SHAPES, Drawing, Sketch, random_background, random_size

ONLY_QUESTION = "What colour is the shape?"
SHAPE_QUESTION = "What colour is the {}?"
LARGEST_QUESTION = "What colour is the largest shape?"
WHICH_QUESTION = "Which shape is {}?"
COUNT_QUESTION = "How many {} shapes are there?"

COLOURED_SIDES = (64, 800)  # pixels
MAX_COLOURED = 6  # shapes in a picture
MIN_CONTRAST = 0.15  # of inks and ground, in luminance

Exchange = tuple[str, str, str]  # question, thinking, answer


def draw_coloured(
    rng: np.random.Generator, sides: tuple[int, int] = COLOURED_SIDES, count: int | None = None
) -> Drawing:
    """One to six shapes in clear colours, and a question about their colours.

    Args:
        sides: the least and the largest side of the canvas in pixels.
        count: of shapes; None for any number.
    """
    size = random_size(rng, sides)
    background = random_background(rng)
    sketch = Sketch(size, background)
    count = count or int(rng.integers(1, MAX_COLOURED + 1))
    shapes = []
    for circle in place_shapes(rng, *size, count):
        name = SHAPES[rng.integers(len(SHAPES))]
        ink = random_named_ink(rng, background, MIN_CONTRAST)
        shapes.append(add_shape(rng, sketch, name, circle, ink))
    marks = shape_marks(shapes)
    shapes.sort(key=lambda shape: shape.box[0] + shape.box[2])
    asked = possible_questions(rng, shapes)
    question, thinking, answer = asked[rng.integers(len(asked))]
    facts = [(name_of(shape.ink), shape.name) for shape in shapes]
    return Drawing(size, question, thinking, answer, marks, facts, sketch.paint)


def possible_questions(rng: np.random.Generator, shapes: Sequence[Shape]) -> list[Exchange]:
    """A question of every kind that has one answer for these shapes.

    Args:
        shapes: of a picture, from left to right.
    """
    listed = list_words(shapes)
    names = [shape.name for shape in shapes]
    inks = [name_of(shape.ink) for shape in shapes]
    color = COLOURS[rng.integers(len(COLOURS))]
    if rng.random() < 0.7:
        color = inks[rng.integers(len(inks))]
    asked = [_count_question(listed, color, inks)]
    if len(shapes) == 1:
        asked.append((ONLY_QUESTION, f"{listed} It is {inks[0]}.", inks[0]))
    single = [name for name in SHAPES if names.count(name) == 1]
    if single:
        name = single[rng.integers(len(single))]
        ink = inks[names.index(name)]
        asked.append((SHAPE_QUESTION.format(name), f"{listed} The {name} is {ink}.", ink))
    single = [ink for ink in inks if inks.count(ink) == 1]
    if single:
        ink = single[rng.integers(len(single))]
        name = names[inks.index(ink)]
        asked.append((WHICH_QUESTION.format(ink), f"{listed} The {name} is {ink}.", name))
    largest = largest_shape(shapes)
    if largest is not None and len(shapes) > 1:
        ink = name_of(largest.ink)
        thinking = f"{listed} The largest is the {ink} {largest.name}."
        asked.append((LARGEST_QUESTION, thinking, ink))
    return asked


def _count_question(listed: str, color: str, inks: Sequence[str]) -> Exchange:
    """How many shapes have a colour."""
    number = inks.count(color)
    verb = "are"
    if number == 1:
        verb = "is"
    return COUNT_QUESTION.format(color), f"{listed} {number} {verb} {color}.", str(number)


def list_words(shapes: Sequence[Shape]) -> str:
    """The shapes with their colours in words, in their order."""
    parts = [f"{name_of(shape.ink)} {shape.name}" for shape in shapes]
    if len(parts) == 1:
        return f"I see {parts[0]}."
    return f"I see {', '.join(parts[:-1])} and {parts[-1]}."
