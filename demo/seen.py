"""What the model saw of a conversation's pictures: their tiles, drawn over them, and tokens.

A picture is resized to the grid that fits it best, cut into tiles, and each tile becomes a fixed
number of tokens; where there are several tiles, the whole picture follows as a thumbnail.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from demo.conversation import Turn, images_of
from demo.pictures import open_picture
from preprocessor.image_processing_skywork_chat import picture_sizes
from preprocessor.image_settings import settings_of_call

SIDE = 560  # pixels of a picture on the page, at most
QUALITY = 85  # of its JPEG
TILE_COLOUR = (220, 30, 90)
TOKEN_COLOUR = (255, 255, 255)
SMALLEST_TOKEN = 6  # pixels; squares of smaller tokens would hide the picture


class Cut(NamedTuple):
    """How a picture was cut.

    Attributes:
        columns, rows: of its grid.
        has_thumbnail: whether the whole picture follows as a tile of its own.
        tokens: of all its tiles.
    """

    columns: int
    rows: int
    has_thumbnail: bool
    tokens: int

    @property
    def tiles(self) -> int:
        """Their number, with the thumbnail."""
        return self.columns * self.rows + int(self.has_thumbnail)


class Tiling:
    """How a checkpoint cuts pictures.

    Args:
        image_processor: of the checkpoint.
        tokens_of_tile: number of tokens that a tile becomes.
        source: whose settings these are, for the page.
    """

    def __init__(self, image_processor: Any, tokens_of_tile: int, source: str) -> None:
        self.image_processor = image_processor
        self.tokens_of_tile = tokens_of_tile
        self.source = source

    @property
    def side(self) -> int:
        """Of a tile, in pixels."""
        return self.image_processor.size

    def cut(self, width: int, height: int) -> Cut:
        """How a picture of this size in pixels is cut."""
        settings = settings_of_call(self.image_processor, {})
        sizes = picture_sizes(width, height, settings, self.side)
        columns = sizes[0][0] // self.side
        rows = sizes[0][1] // self.side
        has_thumbnail = len(sizes) > 1
        tiles = columns * rows + int(has_thumbnail)
        return Cut(columns, rows, has_thumbnail, tiles * self.tokens_of_tile)


def draw_tiles(picture: Image.Image, tiling: Tiling) -> Image.Image:
    """A picture, small enough for the page, with the edges of its tiles and of their tokens."""
    cut = tiling.cut(*picture.size)
    scale = min(1.0, SIDE / max(picture.size))
    width = max(1, round(picture.width * scale))
    height = max(1, round(picture.height * scale))
    drawn = picture.resize((width, height))
    draw = ImageDraw.Draw(drawn, "RGBA")
    tokens_per_side = math.isqrt(tiling.tokens_of_tile)
    token_width = width / (cut.columns * tokens_per_side)
    token_height = height / (cut.rows * tokens_per_side)
    if min(token_width, token_height) >= SMALLEST_TOKEN:
        _draw_grid(draw, drawn.size, cut.columns * tokens_per_side, cut.rows * tokens_per_side, 1)
    _draw_grid(draw, drawn.size, cut.columns, cut.rows, 3)
    return drawn


def _draw_grid(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], columns: int, rows: int, line: int
) -> None:
    """Draw a grid, its outline included, with lines of so many pixels."""
    colour = (*TILE_COLOUR, 255) if line > 1 else (*TOKEN_COLOUR, 110)
    width, height = size
    for column in range(columns + 1):
        x = min(round(column * width / columns), width - 1)
        draw.line([(x, 0), (x, height)], colour, line)
    for row in range(rows + 1):
        y = min(round(row * height / rows), height - 1)
        draw.line([(0, y), (width, y)], colour, line)


# -- on the page -----------------------------------------------------------------------------------


def page_of(turns: Sequence[Turn], tiling: Tiling, context: int | None) -> str:
    """What the model saw of a conversation, as HTML.

    Args:
        context: tokens that it may have, or None where nobody says.

    Raises:
        ValueError: a picture is damaged.
    """
    figures = []
    tokens = 0
    for number, path in enumerate(images_of(turns), 1):
        picture = open_picture(path)
        cut = tiling.cut(*picture.size)
        tokens += cut.tokens
        figures.append(_figure(number, Path(path).name, picture, tiling))
    if not figures:
        figures.append("<p>There is no picture in this conversation.</p>")
    how = f"<p>Cut by the settings of {html.escape(tiling.source)}.</p>"
    return "".join([*figures, how, _share_of_context(turns, tokens, context)])


def _figure(number: int, name: str, picture: Image.Image, tiling: Tiling) -> str:
    """A picture with its tiles, its thumbnail and a sentence on both."""
    cut = tiling.cut(*picture.size)
    size = f"{picture.width} × {picture.height} pixels"
    grid = f"a grid of {cut.columns} × {cut.rows} tiles"
    if cut.columns * cut.rows == 1:
        grid = "one tile"
    described = f"{grid} of {tiling.side} × {tiling.side} pixels"
    thumbnail = ""
    if cut.has_thumbnail:
        described += f", and the whole picture once more as a thumbnail: {cut.tiles} tiles"
        small = picture.resize((tiling.side, tiling.side))
        small.thumbnail((SIDE // 4, SIDE // 4))
        thumbnail = f'<img src="{as_data_url(small)}" alt="The thumbnail of picture {number}">'
    tiles = as_data_url(draw_tiles(picture, tiling))
    return (
        f'<figure class="seen"><img src="{tiles}" alt="Picture {number} with its tiles">{thumbnail}'
        f"<figcaption><b>{number}. {html.escape(name)}</b>, {size}: {described}, "
        f"<b>{cut.tokens:,} tokens</b>.</figcaption></figure>"
    )


def _share_of_context(turns: Sequence[Turn], tokens: int, context: int | None) -> str:
    """A sentence on the tokens of the conversation, and a bar."""
    if not turns:
        return ""
    counts = turns[-1].counts
    if counts.prompt is None:
        return f"<p>The pictures take {tokens:,} tokens.</p>"
    used = counts.prompt + (counts.thinking or 0) + (counts.answer or 0)
    if context is None:
        return f"<p>The conversation takes {used:,} tokens, {tokens:,} of them for pictures.</p>"
    return (
        f"<p>The conversation takes {used:,} of the {context:,} tokens of the context "
        f"({used / context:.1%}), {tokens:,} of them for pictures.</p>"
        f'<meter min="0" max="{context}" value="{used}" aria-label="Share of the context used">'
        f"{used / context:.1%}</meter>"
    )


def as_data_url(picture: Image.Image) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
