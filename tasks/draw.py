"""Draws the pictures of the nano checkpoint's tasks, with question, reasoning, answer and where everything is.

    drawing = draw_calculation(numpy.random.default_rng(0))
    drawing.image, drawing.question, drawing.thinking, drawing.answer

The range of what is drawn is the range that the nano checkpoint is meant for: canvases of 100 to 800 pixels a side;
text in any of matplotlib's DejaVu fonts with a size of at least a tenth of the longer side; shapes of at least 7
pixels and a twentieth of the shorter side in radius that do not touch; bar charts of 160 to 800 pixels a side, no
more than 1.8 times as long as wide or wide as long, of two to six bars with whole values from 1 to 9 on an axis from
0 with its numbers.
"""

import colorsys
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CALCULATION_QUESTION = "What is the result of the calculation in the image?"
COUNTING_QUESTION = "How many shapes are in the image?"
TALLEST_QUESTION = "Which bar is the tallest?"
VALUE_QUESTION = "What is the value of bar {}?"

CANVAS_SIDES = (100, 800)  # pixels
MIN_FONT_SHARE = 0.1  # of the longer side
MIN_RADIUS = 7  # pixels
MIN_RADIUS_SHARE = 0.05  # of the shorter side
CHART_SIDES = (160, 800)  # pixels
MAX_CHART_ASPECT = 1.8
CHART_FONT_SHARE = 0.085  # of the longer side

GLYPHS = "0123456789+-×=?"
SHAPES = ("circle", "square", "triangle")
LETTERS = "ABCDEF"
# What a mark can be; 0 is nothing
LABELS = {name: index + 1 for index, name in enumerate([*GLYPHS, *SHAPES, *LETTERS, "bar"])}
SAME_GLYPH = {"−": "-", "x": "×", "*": "×"}
MINUS_SIGNS, TIMES_SIGNS = ("−", "-"), ("×", "×", "×", "x")


@dataclasses.dataclass
class Mark:
    """A glyph, shape or bar in the picture.

    Attributes:
        box: (left, upper, right, lower) in pixels.
        words: what a transcription of the picture says about it: nothing, a glyph, a shape's name, a letter and a
        value. middle: (x, y) of what it belongs to, which places it in a transcription; by default its own.
        seen_with: a box that has to be in sight as well for the second of two words to be known.
    """

    label: int
    box: tuple
    words: tuple = ()
    middle: tuple | None = None
    seen_with: tuple | None = None

    def __post_init__(self):
        if self.middle is None:
            left, upper, right, lower = self.box
            self.middle = ((left + right) / 2, (upper + lower) / 2)


@dataclasses.dataclass
class Drawing:
    """A picture that is painted when it is asked for, so that text about pictures costs no painting.

    Attributes:
        size: (width, height) in pixels.
        facts: (left, sign, right) of a calculation, the number of each of SHAPES, or {letter: value} of a chart.
    """

    size: tuple
    question: str
    thinking: str
    answer: str
    marks: list
    facts: object
    paint: Callable

    @functools.cached_property
    def image(self):
        return self.paint()


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


def random_size(rng, sides):
    return tuple(int(value) for value in rng.integers(sides[0], sides[1] + 1, 2))


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
        size = random_size(rng, sides)
        smallest = math.ceil(MIN_FONT_SHARE * max(size))
        largest = largest_font(path, text, *size, smallest)
        if largest:
            break
    font = load_font(path, int(rng.integers(smallest, largest + 1)))
    left, upper, right, lower = font.getbbox(text)
    x = int(rng.integers(0, max(size[0] - (right - left), 0) + 1)) - left
    y = int(rng.integers(0, max(size[1] - (lower - upper), 0) + 1)) - upper
    background = random_background(rng)
    ink = random_ink(rng, background, 0.35)

    def paint():
        image = Image.new("RGB", size, background)
        ImageDraw.Draw(image).text((x, y), text, fill=ink, font=font)
        return image

    thinking, result = solve(*operands)
    marks = glyph_marks(font, text, x, y)
    return Drawing(size, CALCULATION_QUESTION, thinking, str(result), marks, operands, paint)


def glyph_marks(font, text, x, y):
    """Marks of a line of text; all glyphs stand on the middle of the line, and "=" and "?" go without a word."""
    _, upper, _, lower = font.getbbox(text)
    marks = []
    for index, glyph in enumerate(text):
        if glyph == " ":
            continue
        start = x + font.getlength(text[:index])
        box = font.getbbox(glyph)
        box = (start + box[0], y + box[1], start + box[2], y + box[3])
        glyph = SAME_GLYPH.get(glyph, glyph)
        middle = ((box[0] + box[2]) / 2, y + (upper + lower) / 2)
        marks.append(Mark(LABELS[glyph], box, () if glyph in "=?" else (glyph,), middle))
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
            x, y = (
                rng.uniform(radius + 1, width - radius - 1),
                rng.uniform(radius + 1, height - radius - 1),
            )
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
    turn = (
        rng.uniform(0, 2 * math.pi)
        if rng.random() < 0.3
        else (math.pi / 4 if corners == 4 else -math.pi / 2)
    )
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def count_words(counts):
    parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in zip(SHAPES, counts)]
    return (
        f"I see {parts[0]}, {parts[1]} and {parts[2]}. "
        f"{counts[0]} + {counts[1]} + {counts[2]} = {sum(counts)}. Together {sum(counts)}."
    )


def draw_shapes(rng, sides=CANVAS_SIDES, count=None):
    """One to nine circles, squares and triangles that do not touch."""
    size = random_size(rng, sides)
    background = random_background(rng)
    count = count or int(rng.integers(1, 10))
    counts, marks, strokes = [0, 0, 0], [], []
    one_ink = random_ink(rng, background, 0.2) if rng.random() < 0.2 else None
    for x, y, radius in place_shapes(rng, *size, count):
        kind = int(rng.integers(3))
        ink = one_ink or random_ink(rng, background, 0.2)
        box = (x - radius, y - radius, x + radius, y + radius)
        if SHAPES[kind] == "circle":
            strokes.append(("ellipse", box, ink))
        else:
            points = shape_points(rng, SHAPES[kind], x, y, radius)
            strokes.append(("polygon", points, ink))
            across, down = zip(*points)
            box = (min(across), min(down), max(across), max(down))
        counts[kind] += 1
        marks.append(Mark(LABELS[SHAPES[kind]], box, (SHAPES[kind],)))
    paint = functools.partial(paint_strokes, size, background, strokes)
    return Drawing(
        size, COUNTING_QUESTION, count_words(counts), str(count), marks, tuple(counts), paint
    )


def paint_strokes(size, background, strokes):
    """Draw (method of ImageDraw, where, colour[, more arguments]) onto a canvas."""
    image = Image.new("RGB", size, background)
    canvas = ImageDraw.Draw(image)
    for method, where, ink, *more in strokes:
        getattr(canvas, method)(where, fill=ink, **(more[0] if more else {}))
    return image


def bar_words(values):
    parts = [f"{letter} {value}" for letter, value in values.items()]
    return f"The bars are {', '.join(parts[:-1])} and {parts[-1]}."


def tallest_words(values):
    """The tallest bar up to each bar: two neighbours to compare at a time, instead of all bars at once."""
    so_far = [max(list(values)[: end + 1], key=values.get) for end in range(len(values))]
    return f"Tallest so far: {', '.join(f'{letter} {values[letter]}' for letter in so_far)}."


def random_chart_size(rng, sides):
    while True:
        size = random_size(rng, sides)
        if max(size) <= MAX_CHART_ASPECT * min(size):
            return size


def draw_chart(rng, sides=CHART_SIDES):
    """A bar chart of two to six bars, of which one is the tallest, and a question about it."""
    size = random_chart_size(rng, (max(sides[0], CHART_SIDES[0]), max(sides[1], CHART_SIDES[0])))
    width, height = size
    smallest = CHART_FONT_SHARE * max(size)
    font_size = max(smallest, rng.uniform(CHART_FONT_SHARE, 0.13) * min(size))
    font = load_font(font_paths()[rng.integers(len(font_paths()))], math.ceil(font_size))
    background = random_background(rng)
    text_ink = random_ink(rng, background, 0.4)
    baseline, ceiling = height - 1.35 * font_size, 0.6 * font_size
    top = int(rng.integers(5, 10))
    unit = (baseline - ceiling) / (top + rng.uniform(0, 0.5))  # pixels of height of a value of 1
    step = (
        1 if unit >= 0.85 * font_size and rng.random() < 0.7 else 2
    )  # between the numbers on the axis
    axis_x = 0.15 * font_size + font.getlength("0")
    strokes, marks = [], []
    line = max(1, round(min(size) / 150))
    if rng.random() < 0.5:
        grid_ink = tuple((3 * back + ink) // 4 for back, ink in zip(background, text_ink))
        for value in range(step, top + 1, step):
            y = baseline - value * unit
            strokes.append(
                ("line", (axis_x + 0.2 * font_size, y, width, y), grid_ink, {"width": line})
            )
    count = int(rng.integers(2, len(LETTERS) + 1))
    values = [int(value) for value in rng.integers(1, top + 1, count)]
    while values.count(max(values)) > 1:
        values[int(rng.integers(count))] = int(rng.integers(1, top + 1))
    tallest = values.index(max(values))
    start = axis_x + 0.35 * font_size
    slot = (width - start - 0.1 * font_size) / count
    bar_width = max(2 * line, slot * rng.uniform(0.4, 0.85))
    one_ink = random_ink(rng, background, 0.25) if rng.random() < 0.6 else None
    for index, value in enumerate(values):
        middle = start + (index + 0.5) * slot
        box = (middle - bar_width / 2, baseline - value * unit, middle + bar_width / 2, baseline)
        strokes.append(("rectangle", box, one_ink or random_ink(rng, background, 0.25)))
        marks.append(Mark(LABELS["bar"], box))
        letter = LETTERS[index]
        marks.append(
            write(
                strokes,
                font,
                letter,
                middle,
                baseline + 0.15 * font_size,
                text_ink,
                words=(letter, str(value)),
            )
        )
        marks[-1].seen_with = (axis_x / 2, box[1], middle, baseline)
    for value in range(0, top + 1, step):
        y = baseline - value * unit - 0.37 * font_size
        marks.append(
            write(strokes, font, str(value), axis_x - font.getlength("0") / 2, y, text_ink)
        )
    if rng.random() < 0.7:
        corner = axis_x + 0.2 * font_size
        strokes.append(("line", (corner, baseline, width, baseline), text_ink, {"width": line}))
        strokes.append(("line", (corner, 0, corner, baseline), text_ink, {"width": line}))
    values = dict(zip(LETTERS, values))
    if rng.random() < 0.5:
        question, answer = TALLEST_QUESTION, LETTERS[tallest]
        thinking = f"{bar_words(values)} {tallest_words(values)} The tallest is {answer}."
    else:
        letter = LETTERS[rng.integers(count)]
        question, answer = VALUE_QUESTION.format(letter), str(values[letter])
        thinking = f"{bar_words(values)} Bar {letter} is {answer}."
    paint = functools.partial(paint_strokes, size, background, strokes)
    return Drawing(size, question, thinking, answer, marks, values, paint)


def write(strokes, font, glyph, middle_x, upper_y, ink, words=()):
    """Add a glyph, its ink's upper edge at upper_y and its middle at middle_x; returns its mark."""
    left, upper, right, lower = font.getbbox(glyph)
    x, y = middle_x - (left + right) / 2, upper_y - upper
    strokes.append(("text", (x, y), ink, {"text": glyph, "font": font}))
    return Mark(LABELS[glyph], (x + left, y + upper, x + right, y + lower), words)


KINDS = (draw_calculation, draw_shapes, draw_chart)


def draw(rng, sides=CANVAS_SIDES):
    """A calculation, shapes or a chart; most often what is hardest to read."""
    return KINDS[rng.choice(3, p=(0.38, 0.44, 0.18))](rng, sides)


def label_cells(marks, image_size, cells_across, cells_down):
    """What each cell of a grid over the resized picture shows.

    Args:
        image_size: (width, height) of the drawing in pixels.
        cells_across, cells_down: the grid over the resized picture.

    Returns:
        Two int64 arrays (cells_down, cells_across): the label of the mark whose box covers the cell's middle, and of
        the mark whose own middle lies in the cell; 0 where there is none.
    """
    covering = np.zeros((cells_down, cells_across), dtype=np.int64)
    centred = np.zeros((cells_down, cells_across), dtype=np.int64)
    scale_x, scale_y = cells_across / image_size[0], cells_down / image_size[1]
    for mark in marks:
        left, upper, right, lower = mark.box
        columns = slice(
            max(0, math.ceil(left * scale_x - 0.5)), max(0, math.ceil(right * scale_x - 0.5))
        )
        rows = slice(
            max(0, math.ceil(upper * scale_y - 0.5)), max(0, math.ceil(lower * scale_y - 0.5))
        )
        covering[rows, columns] = mark.label
        column = min(cells_across - 1, max(0, int((left + right) / 2 * scale_x)))
        row = min(cells_down - 1, max(0, int((upper + lower) / 2 * scale_y)))
        centred[row, column] = mark.label
    return covering, centred
