"""Names of colours: which of twelve a colour has, and whether everybody would call it so.

    name_of((220, 30, 40))   # "red"
    is_clear((220, 30, 40))  # True: so is every colour near it

The borders are those of everyday English, stated in hue, saturation and value. Every colour has a
name, so that whatever is drawn can be put into words; questions are asked about clear colours only.
"""

from __future__ import annotations

import colorsys
import functools
import itertools

import numpy as np

from tasks.drawing import LARGEST_CHANNEL, Color, luminance, random_color

COLOURS = (
    "black",
    "gray",
    "white",
    "red",
    "orange",
    "brown",
    "yellow",
    "green",
    "teal",
    "blue",
    "purple",
    "pink",
)
COLOURLESS = ("black", "gray", "white")
# Hues in degrees at which a name ends and the next begins, for saturated colours.
HUES = (
    (14, "red"),
    (44, "orange"),
    (70, "yellow"),
    (160, "green"),
    (198, "teal"),
    (255, "blue"),
    (310, "purple"),
    (342, "pink"),
    (360, "red"),
)
DARKEST = 0.24  # of the value; what is darker is black
PALEST = 0.13  # of the saturation; what is paler is gray or white
WHITEST = 0.88  # of the value; what is pale and brighter is white
BROWNEST = 0.62  # of the value; what is of an orange's hue and darker is brown
PALE_RED = 0.5  # of the saturation; what is red and paler, and bright, is pink
# How far a clear colour is from another name: in degrees, and in saturation and value.
CLEAR_HUE = 7
CLEAR_SHARE = 0.06
CLEAR_SATURATION = 0.35  # at least, of a colour that is neither black nor gray nor white
NUM_TRIES = 400  # to find an ink of a name, which another ground may forbid


def name_of(color: Color) -> str:
    """The name of a colour, one of COLOURS."""
    red, green, blue = color
    hue, saturation, value = colorsys.rgb_to_hsv(
        red / LARGEST_CHANNEL, green / LARGEST_CHANNEL, blue / LARGEST_CHANNEL
    )
    return _name_of_hsv(360 * hue, saturation, value)


def _name_of_hsv(hue: float, saturation: float, value: float) -> str:
    """The name of a hue in degrees at a saturation and value from 0 to 1."""
    if value < DARKEST:
        return "black"
    if saturation < PALEST:
        if value > WHITEST:
            return "white"
        return "gray"
    name = next(name for end, name in HUES if hue % 360 <= end)
    if name == "orange" and value < BROWNEST:
        return "brown"
    if name == "red" and saturation < PALE_RED and value > BROWNEST:
        return "pink"
    return name


@functools.lru_cache(maxsize=4096)
def is_clear(color: Color) -> bool:
    """Whether all colours near this one have its name, and it is not too pale for it."""
    red, green, blue = color
    hue, saturation, value = colorsys.rgb_to_hsv(
        red / LARGEST_CHANNEL, green / LARGEST_CHANNEL, blue / LARGEST_CHANNEL
    )
    names = set()
    for across, pale, bright in itertools.product((-1, 0, 1), repeat=3):
        names.add(
            _name_of_hsv(
                360 * hue + across * CLEAR_HUE,
                min(max(saturation + pale * CLEAR_SHARE, 0), 1),
                min(max(value + bright * CLEAR_SHARE, 0), 1),
            )
        )
    if name_of(color) not in COLOURLESS and saturation < CLEAR_SATURATION:
        return False
    return len(names) == 1


def random_named_ink(rng: np.random.Generator, background: Color, min_contrast: float) -> Color:
    """A clear colour that stands out from a background; every name that can is as likely.

    Args:
        min_contrast: the least difference in luminance.
    """
    while True:
        name = COLOURS[rng.integers(len(COLOURS))]
        for _ in range(NUM_TRIES):
            color = random_color(rng, 0.0, 1.0)
            if name_of(color) != name or not is_clear(color):
                continue
            if abs(luminance(color) - luminance(background)) >= min_contrast:
                return color
