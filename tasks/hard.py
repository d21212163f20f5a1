"""Harder variants of the nano tasks, which the shipped checkpoint was not taught.

    drawing = draw_long_calculation(numpy.random.default_rng(0))

- calculations of three numbers, in letters down to 0.07 of the longer side;
- 8 to 14 shapes, which may overlap by a quarter of their radii;
- the sum of two bars, or of all bars, of a chart;
- three images, of which one shows the most shapes (`tasks.samples.three`).
"""

from __future__ import annotations

import numpy as np

from tasks import charts, draw
from tasks.drawing import CANVAS_SIDES, Drawing

SUM_QUESTION = "What is the sum of bars {} and {}?"
TOTAL_QUESTION = "What is the sum of all bars?"

SMALLEST_FONT_SHARE = 0.07  # of the longer side
CROWD = (8, 14)  # shapes, at least and at most
OVERLAP = 0.25  # of the sum of two radii


def random_chain(rng: np.random.Generator) -> tuple[int, str, int, str, int]:
    """Three numbers up to 99 with two signs; what the first two give is not negative."""
    first, second, third = (int(number) for number in rng.integers(0, 100, 3))
    signs = ("+", "-")
    left_sign, right_sign = (signs[place] for place in rng.integers(0, 2, 2))
    if left_sign == "-" and first < second:
        first, second = second, first
    return first, left_sign, second, right_sign, third


def solve_chain(first: int, sign: str, second: int, next_sign: str, third: int) -> tuple[str, int]:
    """Reasoning in words and the result of a calculation of three numbers, from left to right."""
    thinking, between = draw.solve(first, sign, second)
    next_thinking, result = draw.solve(between, next_sign, third)
    return f"{thinking} Then: {next_thinking}", result


def draw_long_calculation(
    rng: np.random.Generator, sides: tuple[int, int] = CANVAS_SIDES
) -> Drawing:
    """A calculation of three numbers anywhere on a canvas, in smaller letters than others.

    Args:
        sides: the least and the largest side of the canvas in pixels.
    """
    chain = random_chain(rng)
    space = " " * int(rng.random() < 0.5)
    text = str(chain[0])
    for sign, number in (chain[1:3], chain[3:5]):
        written = draw.WRITTEN_SIGNS[sign]
        text += f"{space}{written[rng.integers(len(written))]}{space}{number}"
    size, marks, sketch = draw.write_somewhere(rng, text, sides, SMALLEST_FONT_SHARE)
    thinking, result = solve_chain(*chain)
    question = draw.CALCULATION_QUESTION
    return Drawing(size, question, thinking, str(result), marks, chain, sketch.paint)


def draw_crowd(rng: np.random.Generator, sides: tuple[int, int] = CANVAS_SIDES) -> Drawing:
    """8 to 14 shapes, which may overlap.

    Args:
        sides: the least and the largest side of the canvas in pixels.
    """
    count = int(rng.integers(CROWD[0], CROWD[1] + 1))
    return draw.draw_shapes(rng, sides, count, OVERLAP)


def draw_sum_chart(
    rng: np.random.Generator, sides: tuple[int, int] = charts.CHART_SIDES
) -> Drawing:
    """A bar chart with a question about sums.

    Args:
        sides: the least and the largest side in pixels, which are at least 160.
    """
    return charts.draw_chart_with(rng, sum_question, sides)


def sum_question(rng: np.random.Generator, values: dict[str, int]) -> tuple[str, str, str]:
    """(question, thinking, answer) about the sum of two bars, or of all bars."""
    letters = list(values)
    question = TOTAL_QUESTION
    if rng.random() < 0.5:
        chosen = sorted(rng.choice(len(letters), 2, replace=False))
        letters = [letters[place] for place in chosen]
        question = SUM_QUESTION.format(*letters)
    thinking = charts.bar_words(values)
    total = values[letters[0]]
    for letter in letters[1:]:
        thinking += f" {total} + {values[letter]} = {total + values[letter]}."
        total += values[letter]
    return question, f"{thinking} Together {total}.", str(total)
