"""Shows weights over an image: yellow where a model looked most, red less, blue elsewhere."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

COLOURS = ("midnightblue", "orangered", "yellow")  # of no weight, half of the most, the most
SHARE_OF_HEAT = 0.5  # the rest is the image


def heat_over(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """An image in grey with its weights as colours over it.

    Args:
        image: as the weights were found for, upright.
        weights: (rows, columns) from `where_it_looked`. Cells are shown as they are, since nothing
            between them is known. Colours go by the root of a weight, so that small ones are seen.

    Returns:
        RGB, of the image's size.
    """
    levels = np.round(255 * np.sqrt(weights / weights.max())).astype(np.uint8)
    heat = ImageOps.colorize(Image.fromarray(levels), *COLOURS[::2], mid=COLOURS[1])
    heat = heat.resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("L").convert("RGB"), heat, SHARE_OF_HEAT)
