"""Draws the pictures and lines of this example: python -m examples.finetune.draw_data. Replace them by your own."""

import json
from pathlib import Path

import numpy as np

from tasks import draw

HERE = Path(__file__).resolve().parent
QUESTION = "How many circles are in the image?"


def write(name, count, seed):
    """`name`.jsonl and its pictures."""
    rng = np.random.default_rng([0xF17E, seed])
    (HERE / "images").mkdir(exist_ok=True)
    with open(HERE / f"{name}.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            drawing = draw.draw_shapes(rng, (100, 220))
            image = f"images/{name}_{number:03d}.png"
            drawing.image.quantize(32).save(HERE / image, optimize=True)
            circles = drawing.facts[0]
            thinking = f"{drawing.thinking.split('.')[0]}. Only the circles count. {circles}."
            answer = f"{thinking}\n</think>\n\nAnswer: \\boxed{{{circles}}}"
            turns = [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": answer},
            ]
            file.write(json.dumps({"id": number, "image": image, "conversations": turns}) + "\n")


if __name__ == "__main__":
    write("train", 160, 0)
    write("test", 60, 1)
