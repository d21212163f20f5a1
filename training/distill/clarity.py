"""How clear an image is to the model, from the image alone: the first half of S_v (report, 2.3).

    clarity = resolution · sharpness, from 0 to 1

    resolution = min(1, sqrt(w · h / (columns · rows · tile²)))
    sharpness  = n / (n + 0.01),  n = Var(Laplacian of g) / Var(g)

(columns, rows) is the grid that tiling chooses for the image of w × h pixels; where the grid has
more pixels than the image, the image is enlarged, and its resolution is below 1: pixels of the
image for each pixel of the tiles, along a side. g is the image in grey, in its proportions, with as
many pixels as a square of 448: blur is measured at that size whatever the image's own is. Dividing
by the variance of g makes a dim photograph as sharp as a bright one. 0.01 is between a sharp image
(0.03 and more on most of the package scikit-image's) and one that is blurred by a hundredth of its
side (0.01 and less on most). An image of a single colour has nothing to see: its clarity is 0.

The variance of the Laplacian as a measure of focus: J. L. Pech-Pacheco et al., "Diatom
autofocusing in brightfield microscopy: a comparative study", 2000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from preprocessor.image_loading import open_image
from preprocessor.tiling import select_grid

NORMALISED_SIDE = (
    448  # pixels of the square that has as many as the image on which blur is measured
)
HALF_SHARP = 0.01  # of the Laplacian's variance over the image's, where sharpness is one half
SMALLEST_SIDE = 3  # pixels that a Laplacian needs
BLANK = 1e-8  # variance of an image of a single colour, with grey from 0 to 1


class Clarity(NamedTuple):
    """How clear an image is.

    Attributes:
        resolution: pixels of the image for each of its tiles', along a side; 1 at most.
        sharpness: from 0, blurred, to 1.
    """

    resolution: float
    sharpness: float

    @property
    def value(self) -> float:
        """The product of both."""
        return self.resolution * self.sharpness


def clarity_of(image: Image.Image, tile_size: int = 448, max_tiles: int = 12) -> Clarity:
    """The clarity of an image.

    Args:
        image: in any mode.
        tile_size: side of a tile, pixels.
        max_tiles: of an image, thumbnail not counted.
    """
    return Clarity(resolution_of(image.width, image.height, tile_size, max_tiles), sharpness(image))


def resolution_of(width: int, height: int, tile_size: int, max_tiles: int) -> float:
    """Pixels of an image for each of its tiles', along a side; 1 where the tiles keep fewer."""
    columns, rows = select_grid(width, height, max_tiles=max_tiles, tile_size=tile_size)
    return min(1.0, math.sqrt(width * height / (columns * rows)) / tile_size)


def sharpness(image: Image.Image) -> float:
    """The sharpness of an image, from 0 to 1; see this module."""
    grey = _normalised(image)
    spread = float(grey.var())
    if spread < BLANK:
        return 0.0
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = neighbours - 4 * grey[1:-1, 1:-1]  # (rows - 2, columns - 2)
    share = float(laplacian.var()) / spread
    return share / (share + HALF_SHARP)


def _normalised(image: Image.Image) -> np.ndarray:
    """An image in grey from 0 to 1, (rows, columns), of as many pixels as a square of 448."""
    factor = NORMALISED_SIDE / math.sqrt(image.width * image.height)
    width = max(SMALLEST_SIDE, round(image.width * factor))
    height = max(SMALLEST_SIDE, round(image.height * factor))
    resized = image.convert("L").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32) / 255


def clarity_of_files(paths: Sequence[str], tile_size: int, max_tiles: int) -> list[Clarity]:
    """The clarity of each image file of a question.

    Raises:
        ValueError, OSError: a file that is no image.
    """
    found = []
    for path in paths:
        found.append(clarity_of(open_image(path), tile_size, max_tiles))
    return found
