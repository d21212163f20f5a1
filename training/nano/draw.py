"""Draws the pictures of the nano checkpoint's two tasks, with question, reasoning, answer and where everything is.

    drawing = draw_calculation(numpy.random.default_rng(0))
    drawing.image, drawing.question, drawing.thinking, drawing.answer

The range of what is drawn is the range that the nano checkpoint is meant for: canvases of 100 to 800 pixels a side; text
in any of matplotlib's DejaVu fonts with a size of at least a tenth of the longer side; shapes of at least 7 pixels and a
twentieth of the shorter side in radius that do not touch.
"""

import colorsys
import dataclasses
import functools
import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CALCULATION_QUESTION = "What is the result of the calculation in the image?"
COUNTING_QUESTION = "How many shapes are in the image?"

CANVAS_SIDES = (100, 800)  # pixels
MIN_FONT_SHARE = 0.1  # of the longer side
MIN_RADIUS = 7  # pixels
MIN_RADIUS_SHARE = 0.05  # of the shorter side

GLYPHS = "0123456789+-×=?"
SHAPES = ("circle", "square", "triangle")
# What a mark can be; 0 is nothing
LABELS = {name: index + 1 for index, name in enumerate([*GLYPHS, *SHAPES])}
SAME_GLYPH = {"−": "-", "x": "×", "*": "×"}
MINUS_SIGNS, TIMES_SIGNS = ("−", "-"), ("×", "×", "×", "x")


@dataclasses.dataclass
class Mark:
    """A glyph or a shape in the picture; `box` is (left, upper, right, lower) in pixels."""

    label: int
    box: tuple


@dataclasses.dataclass
class Drawing:
    image: Image.Image
    question: str
    thinking: str
    answer: str
    marks: list


@functools.cache
def font_paths():
    """matplotlib's DejaVu fonts that hold digits (the two Display fonts do not)."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(path for path in folder.glob("DejaVu*.ttf") if "Display" not in path.name)


@functools.lru_cache(maxsize=512)
def load_font(path, size):
    return ImageFont.truetype(str(path), size)


def luminance(color):
    return (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255


def random_color(rng, low, high):
    """A colour of a luminance within the bounds, of any hue and saturation."""
    while True:
        channels = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, rng.random())
        color = tuple(int(255 * channel) for channel in channels)
        if low <= luminance(color) <= high:
            return color


def random_background(rng):
    if rng.random() < 0.4:
        return (255, 255, 255)
    return random_color(rng, 0.75, 1.0) if rng.random() < 0.8 else random_color(rng, 0.0, 0.3)


def random_ink(rng, background, min_contrast):
    """A colour that stands out: by luminance, so that it does to a colour-blind reader too."""
    light = luminance(background) > 0.5
    if light and rng.random() < 0.3:
        return tuple(int(value) for value in rng.integers(0, 60, 3))
    if light:
        return random_color(rng, 0.0, luminance(background) - min_contrast)
    return random_color(rng, luminance(background) + min_contrast, 1.0)


def random_canvas(rng, sides=CANVAS_SIDES):
    width, height = (int(value) for value in rng.integers(sides[0], sides[1] + 1, 2))
    background = random_background(rng)
    return Image.new("RGB", (width, height), background), background


def solve(left, sign, right):
    """Reasoning in words and the result of a calculation, digit by digit as in school."""
    if sign == "×":
        return f"I read {left} × {right}. That is {left * right}.", left * right
    if sign == "+":
        ones = left % 10 + right % 10
        carry = ones // 10
        tens = left // 10 + right // 10 + carry
        return (
            f"I read {left} + {right}. Ones: {left % 10} + {right % 10} = {ones}. "
            f"Tens: {left // 10} + {right // 10} + {carry} = {tens}. Together {left + right}."
        ), left + right
    larger, smaller = max(left, right), min(left, right)
    borrow = int(larger % 10 < smaller % 10)
    ones = larger % 10 + 10 * borrow
    sign_words = "is negative." if left < right else "is not negative."
    return (
        f"I read {left} - {right}. The result {sign_words} From {larger} take {smaller}. "
        f"Ones: {ones} - {smaller % 10} = {ones - smaller % 10}. "
        f"Tens: {larger // 10} - {smaller // 10} - {borrow} = {larger // 10 - smaller // 10 - borrow}. "
        f"Together {left - right}."
    ), left - right


def random_operands(rng):
    sign = ("+", "-", "×")[rng.integers(3)]
    high = 13 if sign == "×" else 100
    return int(rng.integers(high)), sign, int(rng.integers(high))


def calculation_text(rng, left, sign, right):
    """The calculation as one writes it: with or without spaces, equals sign and question mark."""
    shown = {"-": MINUS_SIGNS, "×": TIMES_SIGNS, "+": ("+",)}[sign]
    space = " " if rng.random() < 0.7 else ""
    ending = ("", f"{space}=", f"{space}={space}?")[rng.choice(3, p=[0.6, 0.2, 0.2])]
    return f"{left}{space}{shown[rng.integers(len(shown))]}{space}{right}{ending}"


def largest_font(path, text, width, height, smallest):
    """The largest size in pixels at which the text fits the canvas; 0 if the smallest allowed does not."""
    left, upper, right, lower = load_font(path, 100).getbbox(text)
    fitting = int(min(0.96 * width / (right - left), 0.96 * height / (lower - upper)) * 100)
    return fitting if fitting >= smallest else 0


def draw_calculation(rng, sides=CANVAS_SIDES):
    """A calculation anywhere on a canvas; what cannot be shown large enough on a canvas gets another canvas."""
    operands = random_operands(rng)
    text = calculation_text(rng, *operands)
    path = font_paths()[rng.integers(len(font_paths()))]
    while True:
        image, background = random_canvas(rng, sides)
        smallest = math.ceil(MIN_FONT_SHARE * max(image.size))
        largest = largest_font(path, text, *image.size, smallest)
        if largest:
            break
    font = load_font(path, int(rng.integers(smallest, largest + 1)))
    left, upper, right, lower = font.getbbox(text)
    x = int(rng.integers(0, max(image.width - (right - left), 0) + 1)) - left
    y = int(rng.integers(0, max(image.height - (lower - upper), 0) + 1)) - upper
    ImageDraw.Draw(image).text((x, y), text, fill=random_ink(rng, background, 0.35), font=font)
    thinking, result = solve(*operands)
    return Drawing(image, CALCULATION_QUESTION, thinking, str(result), glyph_marks(font, text, x, y))


def glyph_marks(font, text, x, y):
    marks = []
    for index, glyph in enumerate(text):
        if glyph == " ":
            continue
        start = x + font.getlength(text[:index])
        left, upper, right, lower = font.getbbox(glyph)
        marks.append(
            Mark(LABELS[SAME_GLYPH.get(glyph, glyph)], (start + left, y + upper, start + right, y + lower))
        )
    return marks


def place_shapes(rng, width, height, count):
    """Centres and radii (pixels) of circles that hold the shapes, none touching another or the border."""
    shorter = min(width, height)
    smallest = max(MIN_RADIUS, MIN_RADIUS_SHARE * shorter)
    largest = max(smallest, min(0.3 * shorter, 0.42 * math.sqrt(width * height / count)))
    placed = []
    while len(placed) < count:
        for _ in range(60):
            radius = rng.uniform(smallest, largest)
            x, y = rng.uniform(radius + 1, width - radius - 1), rng.uniform(radius + 1, height - radius - 1)
            gap = max(2.0, 0.01 * max(width, height))
            if all(math.hypot(x - u, y - v) > radius + other + gap for u, v, other in placed):
                placed.append((x, y, radius))
                break
        else:
            placed, largest = [], max(smallest, 0.85 * largest)
    return placed


def shape_points(rng, shape, x, y, radius):
    """Corners of a square or triangle on the circle of that radius, often upright, else turned."""
    corners = 4 if shape == "square" else 3
    turn = rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else (math.pi / 4 if corners == 4 else -math.pi / 2)
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def count_words(counts):
    parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in zip(SHAPES, counts)]
    return (
        f"I see {parts[0]}, {parts[1]} and {parts[2]}. "
        f"{counts[0]} + {counts[1]} + {counts[2]} = {sum(counts)}. Together {sum(counts)}."
    )


def draw_shapes(rng, sides=CANVAS_SIDES):
    """One to nine circles, squares and triangles that do not touch."""
    image, background = random_canvas(rng, sides)
    count = int(rng.integers(1, 10))
    canvas, counts, marks = ImageDraw.Draw(image), [0, 0, 0], []
    one_ink = random_ink(rng, background, 0.2) if rng.random() < 0.2 else None
    for x, y, radius in place_shapes(rng, *image.size, count):
        kind = int(rng.integers(3))
        ink = one_ink or random_ink(rng, background, 0.2)
        box = (x - radius, y - radius, x + radius, y + radius)
        if SHAPES[kind] == "circle":
            canvas.ellipse(box, fill=ink)
        else:
            points = shape_points(rng, SHAPES[kind], x, y, radius)
            canvas.polygon(points, fill=ink)
            across, down = zip(*points)
            box = (min(across), min(down), max(across), max(down))
        counts[kind] += 1
        marks.append(Mark(LABELS[SHAPES[kind]], box))
    return Drawing(image, COUNTING_QUESTION, count_words(counts), str(count), marks)


def draw(rng, sides=CANVAS_SIDES):
    """One of the two tasks, with equal chances."""
    return (draw_calculation if rng.random() < 0.5 else draw_shapes)(rng, sides)


def label_cells(marks, image_size, cells_across, cells_down):
    """What each cell of a grid over the resized picture shows.

    Args:
        image_size: (width, height) of the drawing in pixels.
        cells_across, cells_down: the grid over the resized picture.

    Returns:
        Two int64 arrays (cells_down, cells_across): the label of the mark whose box covers the cell's middle, and of the
        mark whose own middle lies in the cell; 0 where there is none.
    """
    covering = np.zeros((cells_down, cells_across), dtype=np.int64)
    centred = np.zeros((cells_down, cells_across), dtype=np.int64)
    scale_x, scale_y = cells_across / image_size[0], cells_down / image_size[1]
    for mark in marks:
        left, upper, right, lower = mark.box
        columns = slice(max(0, math.ceil(left * scale_x - 0.5)), max(0, math.ceil(right * scale_x - 0.5)))
        rows = slice(max(0, math.ceil(upper * scale_y - 0.5)), max(0, math.ceil(lower * scale_y - 0.5)))
        covering[rows, columns] = mark.label
        column = min(cells_across - 1, max(0, int((left + right) / 2 * scale_x)))
        row = min(cells_down - 1, max(0, int((upper + lower) / 2 * scale_y)))
        centred[row, column] = mark.label
    return covering, centred
