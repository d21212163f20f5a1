"""Checks on drawings, of which it is known what is where, whether maps lie on what was asked about.

    python -m explain.check --count 50

Asks a checkpoint of the nano tasks about fresh drawings and makes maps of its answers: by occlusion
(what `where_it_looked` gives) and by attention. Prints the share of their weight that lies on what
the question is about, beside the share of the picture that this covers, which chance would give:

- counting: on the shapes, for the whole answer;
- the asked bar of a chart: on the bar and its letter, for the passage of the thinking that says
  what its value is. Charts whose value was misread have none, and are left out.

The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from explain.attention import attended
from explain.looking import as_weights
from explain.occlusion import Occlusion, TiledImage
from explain.scoring import Prompt, ScoredAnswer
from remote_code import chat_images
from tasks.charts import TALLEST_QUESTION, draw_chart
from tasks.draw import draw_shapes
from tasks.drawing import Drawing, Mark

METHODS = ("occlusion", "attention")
MAX_NEW_TOKENS = 256  # an answer to a nano task is shorter
MARKS_PER_BAR = 2  # the bar, and its letter


@dataclasses.dataclass(frozen=True)
class Asked:
    """A drawing with what the question is about.

    Attributes:
        drawing: with the question.
        marks: what the question is about.
        passage: of the answer that is explained; None is all of it.
    """

    drawing: Drawing
    marks: list[Mark]
    passage: str | None = None

    @property
    def covered(self) -> np.ndarray:
        """Whether each pixel lies in the box of one of the marks, bool (height, width)."""
        width, height = self.drawing.size
        covered = np.zeros((height, width), dtype=bool)
        for mark in self.marks:
            left, upper, right, lower = mark.box
            rows = slice(max(0, int(upper)), int(np.ceil(lower)))
            columns = slice(max(0, int(left)), int(np.ceil(right)))
            covered[rows, columns] = True
        return covered


def draw_counting(rng: np.random.Generator) -> Asked:
    """Shapes to be counted, all of which are asked about."""
    drawing = draw_shapes(rng)
    return Asked(drawing, drawing.marks)


def draw_asked_bar(rng: np.random.Generator) -> Asked:
    """A chart, with the bar that is asked about."""
    drawing = draw_chart(rng)
    letter = drawing.answer
    if drawing.question != TALLEST_QUESTION:
        letter = drawing.question[-2]  # before the question mark
    place = MARKS_PER_BAR * list(drawing.facts).index(letter)
    marks = drawing.marks[place : place + MARKS_PER_BAR]
    return Asked(drawing, marks, f"{letter} {drawing.facts[letter]}")


TASKS = {"counting": draw_counting, "asked bar": draw_asked_bar}


def drawings(task: str, count: int, seed: int) -> Iterator[Asked]:
    """Fresh drawings of a task; each has random numbers of its own."""
    for number in range(count):
        yield TASKS[task](np.random.default_rng([seed, list(TASKS).index(task), number]))


def share_on(weights: np.ndarray, covered: np.ndarray) -> float:
    """The share of the weight of cells that lies on pixels.

    Args:
        weights: (rows, columns), with a sum of 1.
        covered: the pixels, bool (height, width).
    """
    rows, columns = weights.shape
    height, width = covered.shape
    row_of_pixel = np.arange(height) * rows // height
    column_of_pixel = np.arange(width) * columns // width
    of_pixels = weights[row_of_pixel][:, column_of_pixel]
    return float(of_pixels[covered].sum() / of_pixels.sum())


class Checked:
    """Makes the maps of drawings with a model of eager attention, by every method.

    Args:
        path: of the checkpoint.
        cells_per_side: of the maps.
    """

    def __init__(self, path: str, cells_per_side: int) -> None:
        self.model = AutoModel.from_pretrained(
            path, torch_dtype=torch.float32, attn_implementation="eager", trust_remote_code=True
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        self.image_processor = chat_images.load_image_processor(self.model)
        self.cells_per_side = cells_per_side

    def answer(self, drawing: Drawing) -> str:
        """What the model writes, greedily."""
        options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
        return self.model.chat(self.tokenizer, drawing.image, drawing.question, options)

    def maps(self, asked: Asked, answer: str) -> dict[str, np.ndarray]:
        """The map of each method, (rows, columns)."""
        image = TiledImage.read(asked.drawing.image, self.image_processor, torch.float32)
        prompt = Prompt(asked.drawing.question, [len(image.boxes)])
        scored = ScoredAnswer(self.model, self.tokenizer, prompt, answer, asked.passage)
        drops = Occlusion(self.model, scored, [image]).drops(0, self.cells_per_side)
        [attention] = attended(
            self.model, self.image_processor, scored, [image], self.cells_per_side
        )
        return {"occlusion": as_weights(drops), "attention": attention}


def check(checked: Checked, task: str, count: int, seed: int) -> dict[str, Any]:
    """The shares on what is asked about, over drawings of a task.

    Returns:
        "pictures" (those with a map), "area" (the mean share of the picture that is covered), and
        for each method "share" (the mean) and "above_area" (the number of pictures in which it is
        more than the area).
    """
    areas = []
    shares: dict[str, list[float]] = {method: [] for method in METHODS}
    for asked in drawings(task, count, seed):
        answer = checked.answer(asked.drawing)
        if asked.passage is not None and asked.passage not in answer:
            continue
        areas.append(float(asked.covered.mean()))
        for method, weights in checked.maps(asked, answer).items():
            shares[method].append(share_on(weights, asked.covered))
    if not areas:
        raise ValueError(f"{task}: no answer names what is asked about; is it a nano checkpoint?")
    result: dict[str, Any] = {"pictures": len(areas), "area": round(float(np.mean(areas)), 3)}
    for method, found in shares.items():
        above = int(np.sum(np.array(found) > np.array(areas)))
        result[method] = {"share": round(float(np.mean(found)), 3), "above_area": above}
    return result


def main() -> int:
    """Check a checkpoint as the command line asks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano", help="a directory or a Hub id")
    parser.add_argument("--count", type=int, default=50, help="the drawings of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings")
    parser.add_argument("--cells", type=int, default=12, help="along the longer side of an image")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checked = Checked(arguments.model, arguments.cells)
    results = {}
    print(f"{'':12}pictures  area " + "".join(f"{method:>18}" for method in METHODS))
    for task in TASKS:
        result = check(checked, task, arguments.count, arguments.seed)
        results[task] = result
        line = f"{task:12}{result['pictures']:8}{result['area']:6.1%}"
        for method in METHODS:
            found = result[method]
            line += f"{found['share']:9.1%} ({found['above_area']:3} >)"
        print(line, flush=True)
    print(json.dumps({"seed": arguments.seed, "cells": arguments.cells, "tasks": results}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
