"""What all drawings of the nano tasks share: marks, strokes, fonts, colours, and labels of cells.

Coordinates are pixels from the upper left corner, x to the right and y down. Everything random
comes from the generator that is passed in, in a fixed order, so that a seed always gives the same
picture.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # left, upper, right, lower
Point = tuple[float, float]
Size = tuple[int, int]  # width, height
Color = tuple[int, int, int]

CANVAS_SIDES = (100, 800)  # pixels
GLYPHS = "0123456789+-×=?"
SHAPES = ("circle", "square", "triangle")
LETTERS = "ABCDEF"
# What a mark can be, as a number from 1; 0 is nothing.
LABELS = dict(zip([*GLYPHS, *SHAPES, *LETTERS, "bar"], itertools.count(1)))
LARGEST_CHANNEL = 255


@dataclasses.dataclass(frozen=True)
class Mark:
    """A glyph, shape or bar in a picture.

    Attributes:
        label: one of LABELS' numbers.
        box: that its ink fills.
        words: what a transcription of the picture says about it: nothing, a glyph, the name of a
            shape, or a letter and a value.
        anchor: (x, y) that places it in a transcription, if that is not the middle of its box.
        seen_with: a box that has to be in sight as well for the second of two words to be known.
        ink: the colour of a shape.
        is_largest: whether a shape is clearly larger than every other; None if it nearly is.
    """

    label: int
    box: Box
    words: tuple[str, ...] = ()
    anchor: Point | None = None
    seen_with: Box | None = None
    ink: Color | None = None
    is_largest: bool | None = False

    @property
    def middle(self) -> Point:
        """(x, y) that places it in a transcription."""
        if self.anchor is not None:
            return self.anchor
        left, upper, right, lower = self.box
        return ((left + right) / 2, (upper + lower) / 2)


@dataclasses.dataclass
class Drawing:
    """A picture that is painted when it is asked for, so that texts about pictures stay cheap.

    Attributes:
        size: (width, height) in pixels.
        question: about the picture.
        thinking: the reasoning that leads to the answer.
        answer: to the question.
        marks: everything that there is to see.
        facts: (left, sign, right) of a calculation, which may go on with further signs and
            numbers; the number of each of SHAPES; or {letter: value} of a chart.
        paint: makes the picture.
    """

    size: Size
    question: str
    thinking: str
    answer: str
    marks: list[Mark]
    facts: Any
    paint: Callable[[], Image.Image]

    @functools.cached_property
    def image(self) -> Image.Image:
        """The picture, RGB."""
        return self.paint()


@dataclasses.dataclass(frozen=True)
class Stroke:
    """A call of one of the methods of `PIL.ImageDraw.ImageDraw`.

    Attributes:
        method: its name.
        where: the coordinates that it takes first.
        ink: the colour.
        options: further keywords.
    """

    method: str
    where: Any
    ink: Color
    options: dict[str, Any]


class Sketch:
    """A picture in the making: what will be painted onto a canvas, in order.

    Attributes:
        size: (width, height) of the canvas in pixels.
        background: its colour.
        strokes: what is painted.
    """

    def __init__(self, size: Size, background: Color) -> None:
        self.size = size
        self.background = background
        self.strokes: list[Stroke] = []

    def add(self, method: str, where: Any, ink: Color, **options: Any) -> None:
        """Add a stroke; see `Stroke`."""
        self.strokes.append(Stroke(method, where, ink, options))

    def add_glyph(
        self,
        glyph: str,
        middle_x: float,
        upper_y: float,
        font: ImageFont.FreeTypeFont,
        ink: Color,
    ) -> Box:
        """Add a glyph.

        Args:
            middle_x: where the middle of its ink lies.
            upper_y: where the upper edge of its ink lies.
            font: that it is written in.
            ink: its colour.

        Returns:
            The box of its ink.
        """
        left, upper, right, lower = font.getbbox(glyph)
        x = middle_x - (left + right) / 2
        y = upper_y - upper
        self.add("text", (x, y), ink, text=glyph, font=font)
        return (x + left, y + upper, x + right, y + lower)

    def paint(self) -> Image.Image:
        """The picture, RGB."""
        image = Image.new("RGB", self.size, self.background)
        canvas = ImageDraw.Draw(image)
        for stroke in self.strokes:
            draw_stroke = getattr(canvas, stroke.method)
            draw_stroke(stroke.where, fill=stroke.ink, **stroke.options)
        return image


# -- fonts and sizes -------------------------------------------------------------------------------


@functools.cache
def font_paths() -> list[Path]:
    """matplotlib's DejaVu fonts that have digits; the two Display fonts do not."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(path for path in folder.glob("DejaVu*.ttf") if "Display" not in path.name)


@functools.lru_cache(maxsize=512)
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels."""
    return ImageFont.truetype(str(path), size)


def random_font_path(rng: np.random.Generator) -> Path:
    """One of the fonts."""
    paths = font_paths()
    return paths[rng.integers(len(paths))]


def random_size(rng: np.random.Generator, sides: tuple[int, int]) -> Size:
    """(width, height) in pixels, both within the bounds."""
    width, height = rng.integers(sides[0], sides[1] + 1, 2)
    return (int(width), int(height))


# -- colours ---------------------------------------------------------------------------------------


def luminance(color: Color) -> float:
    """How bright a colour is, from 0 to 1 (ITU-R BT.601)."""
    red, green, blue = color
    return (0.299 * red + 0.587 * green + 0.114 * blue) / LARGEST_CHANNEL


def random_color(rng: np.random.Generator, low: float, high: float) -> Color:
    """A colour of a luminance within the bounds, of any hue and saturation."""
    while True:
        hue = rng.random()
        saturation = rng.random() ** 0.7
        value = rng.random()
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        color = (
            int(LARGEST_CHANNEL * red),
            int(LARGEST_CHANNEL * green),
            int(LARGEST_CHANNEL * blue),
        )
        if low <= luminance(color) <= high:
            return color


def random_background(rng: np.random.Generator) -> Color:
    """White, another light colour, or now and then a dark one."""
    if rng.random() < 0.4:
        return (255, 255, 255)
    if rng.random() < 0.8:
        return random_color(rng, 0.75, 1.0)
    return random_color(rng, 0.0, 0.3)


def random_ink(rng: np.random.Generator, background: Color, min_contrast: float) -> Color:
    """A colour that stands out by its luminance, so that a colour-blind reader sees it, too.

    Args:
        min_contrast: the least difference in luminance.
    """
    is_light = luminance(background) > 0.5
    if is_light and rng.random() < 0.3:
        red, green, blue = rng.integers(0, 60, 3)
        return (int(red), int(green), int(blue))
    if is_light:
        return random_color(rng, 0.0, luminance(background) - min_contrast)
    return random_color(rng, luminance(background) + min_contrast, 1.0)


# -- labels ----------------------------------------------------------------------------------------


def label_cells(
    marks: list[Mark], image_size: Size, cells_across: int, cells_down: int
) -> tuple[np.ndarray, np.ndarray]:
    """What each cell of a grid over the resized picture shows.

    Args:
        marks: of the drawing.
        image_size: (width, height) of the drawing in pixels.
        cells_across, cells_down: the grid over the resized picture.

    Returns:
        Two int64 arrays (cells_down, cells_across): the label of the mark whose box covers the
        cell's middle, and of the mark whose own middle lies in the cell; 0 where there is none.
    """
    covering = np.zeros((cells_down, cells_across), dtype=np.int64)
    centred = np.zeros((cells_down, cells_across), dtype=np.int64)
    scale_x = cells_across / image_size[0]
    scale_y = cells_down / image_size[1]
    for mark in marks:
        left, upper, right, lower = mark.box
        rows = _cells_between(upper, lower, scale_y)
        columns = _cells_between(left, right, scale_x)
        covering[rows, columns] = mark.label
        row = _cell_of((upper + lower) / 2, scale_y, cells_down)
        column = _cell_of((left + right) / 2, scale_x, cells_across)
        centred[row, column] = mark.label
    return covering, centred


def _cells_between(low: float, high: float, scale: float) -> slice:
    """The cells along a side whose middles lie between two coordinates."""
    start = max(0, math.ceil(low * scale - 0.5))
    stop = max(0, math.ceil(high * scale - 0.5))
    return slice(start, stop)


def _cell_of(coordinate: float, scale: float, num_cells: int) -> int:
    """The cell along a side that a coordinate lies in; the first or last for one outside."""
    return min(num_cells - 1, max(0, int(coordinate * scale)))
