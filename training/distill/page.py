"""The page of a distillation: one HTML file that needs no network.

It shows the distribution of the scores and of P, the length of the chains against P and difficulty,
and samples with image, scores, all chains that the model wrote and the one that was kept, so that
one sees why each sample has its length. Samples are taken at even distances in the order of P.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import durable
from evaluation.page_parts import evenly, filled, packed, small_copy

NAME = "page.html"
TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = 150
POINTS = 4000  # in a scatter plot


def write(path: Path, samples: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        path: of it.
        samples: as output.py has them for the page.
        report: the figures.
    """
    ordered = sorted(samples, key=lambda sample: (sample["told"]["P"], sample["told"]["number"]))
    shown = []
    images: dict[str, str] = {}
    for sample in evenly(ordered, SHOWN):
        for image in sample["images"]:
            images.setdefault(image, small_copy(Path(image)))
        shown.append(_sample(sample))
    points = [_point(sample["told"]) for sample in evenly(ordered, POINTS)]
    content = {"report": report, "points": points, "images": images, "samples": shown}
    durable.write_text(path, filled(TEMPLATE, content))


def _point(told: Mapping[str, Any]) -> dict[str, Any]:
    """A sample in the plots."""
    return {
        "P": told["P"],
        "vision": told["scores"]["vision"],
        "text": told["scores"]["text"],
        "integration": told["scores"]["integration"],
        "difficulty": told["scores"]["difficulty"],
        "characters": told["characters"],
        "revised": told["revised_by"] is not None,
    }


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as the page knows it; its chains are unpacked when they are opened."""
    chains = {"kept": sample["chain"], "tries": sample["tries"]}
    told = sample["told"]
    return {
        "where": sample["where"],
        "question": sample["question"],
        "solution": sample["solution"],
        "images": sample["images"],
        "told": told,
        "chains": packed(chains),
    }
