"""Where a model in this process looked for its last answer, drawn over the pictures (explain/)."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from demo.conversation import DONE, STOPPED, Turn, Turns, answered, images_of
from demo.pictures import open_picture
from demo.seen import SIDE, as_data_url
from explain.picture import heat_over

# The turns of a conversation, of which the last answer is explained -> for each picture the
# weights of its cells, (rows, columns).
Maps = Callable[[Turns], list[np.ndarray]]
EXPLANATION = (
    "Each part of a picture was covered in turn. The brighter a part, the less likely is the "
    "answer without it."
)


def page_of(turns: Sequence[Turn], maps_of: Maps) -> str:
    """Where the model looked for its last answer, as HTML.

    Args:
        turns: of the conversation.
        maps_of: makes the maps of a conversation that ends with an answer.

    Raises:
        ValueError: there is no answer about a picture yet.
    """
    told = explained(turns)
    paths = images_of(told)
    if not paths:
        raise ValueError("There is no answer about a picture yet: ask about one first.")
    figures = []
    for number, (path, weights) in enumerate(zip(paths, maps_of(told)), 1):
        drawn = heat_over(open_picture(path), weights)
        drawn.thumbnail((SIDE, SIDE))
        figures.append(
            f'<figure class="seen"><img src="{as_data_url(drawn)}" '
            f'alt="Picture {number} with its heat map">'
            f"<figcaption>{number}. {html.escape(Path(path).name)}</figcaption></figure>"
        )
    return "".join([*figures, f"<p>{EXPLANATION}</p>"])


def explained(turns: Sequence[Turn]) -> Turns:
    """The turns up to the last one with a complete or stopped answer; none without such a one."""
    told = answered(turns)
    while told and not (told[-1].status in (DONE, STOPPED) and told[-1].raw):
        told = told[:-1]
    return told
