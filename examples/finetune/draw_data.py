"""Draws the pictures and lines of this example. Replace them by your own.

python -m examples.finetune.draw_data
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tasks import draw
from tasks.drawing import SHAPES, Drawing

HERE = Path(__file__).resolve().parent
QUESTION = "How many circles are in the image?"
SIDES = (100, 220)  # pixels
STREAM = 0xF17E  # keeps these pictures apart from those of the nano checkpoint's training


def write(name: str, count: int, seed: int) -> None:
    """Write `name`.jsonl and its pictures."""
    rng = np.random.default_rng([STREAM, seed])
    (HERE / "images").mkdir(exist_ok=True)
    with open(HERE / f"{name}.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            drawing = draw.draw_shapes(rng, SIDES)
            image = f"images/{name}_{number:03d}.png"
            drawing.image.quantize(32).save(HERE / image, optimize=True)
            row = {"id": number, "image": image, "conversations": conversation_about(drawing)}
            file.write(json.dumps(row) + "\n")


def conversation_about(drawing: Drawing) -> list[dict[str, Any]]:
    """The question and its answer, which counts all shapes but says the number of circles only."""
    circles = drawing.facts[SHAPES.index("circle")]
    shapes_seen = drawing.thinking.split(".")[0]
    thinking = f"{shapes_seen}. Only the circles count. {circles}."
    answer = f"{thinking}\n</think>\n\nAnswer: \\boxed{{{circles}}}"
    return [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": answer},
    ]


if __name__ == "__main__":
    write("train", 160, 0)
    write("test", 60, 1)
