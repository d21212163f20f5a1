"""Where the model looked for its last answer: heat maps, drawn over the pictures.

The one place at which the page gets such maps is `heat_map_function`; without a function there, the
page has no button for them.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.conversation import ANSWERING, DONE, STOPPED, Turn, images_of
from demo.pictures import open_picture
from demo.seen import SIDE, as_data_url

# (model, processor or tokenizer, pictures, question, text of the answer) -> for each picture the
# weight of its pixels, floats (height, width).
HeatMaps = Callable[[Any, Any, list[Image.Image], str, str], list[np.ndarray]]
HEAT = np.array([255, 70, 0], dtype=np.float64)  # the colour of the largest weight


def heat_map_function() -> HeatMaps | None:
    """The function that computes the heat maps, or None while there is none."""
    return None


def page_of(turns: Sequence[Turn], compute: Callable[..., list[np.ndarray]]) -> str:
    """Where the model looked for its last answer, as HTML.

    Args:
        turns: of the conversation.
        compute: of (pictures, question, text of the answer), a model's `HeatMaps`.

    Raises:
        ValueError: there is no answer about a picture yet.
    """
    answers = [turn for turn in turns if turn.status in (ANSWERING, DONE, STOPPED) and turn.answer]
    paths = images_of(turns)
    if not answers or not paths:
        raise ValueError("There is no answer about a picture yet: ask about one first.")
    pictures = [open_picture(path) for path in paths]
    heat_maps = compute(pictures, answers[-1].text, answers[-1].answer)
    figures = []
    for number, (path, picture, heat) in enumerate(zip(paths, pictures, heat_maps), 1):
        image = as_data_url(overlay(picture, heat))
        figures.append(
            f'<figure class="seen"><img src="{image}" alt="Picture {number} with its heat map">'
            f"<figcaption>{number}. {html.escape(Path(path).name)}</figcaption></figure>"
        )
    return "".join(figures)


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """A picture, small enough for the page, that is the redder the larger the weight.

    Args:
        heat: (height, width) of the picture in pixels, or of any other resolution; at least 0.
    """
    scale = min(1.0, SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    grey = np.asarray(picture.convert("L").convert("RGB").resize(size), dtype=np.float64)
    largest = float(heat.max(initial=0.0))
    share = np.zeros(heat.shape) if largest <= 0 else np.clip(heat, 0, None) / largest
    levels = Image.fromarray((share * 255).astype(np.uint8)).resize(size)
    opacity = np.asarray(levels, dtype=np.float64)[..., None] / 255 * 0.75
    return Image.fromarray((grey * (1 - opacity) + HEAT * opacity).astype(np.uint8))
