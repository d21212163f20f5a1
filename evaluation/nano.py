"""Scores a checkpoint on the nano tasks, on pictures drawn afresh.

    python -m evaluation.nano --model nano --count 500 --seed 12345
    python -m evaluation.nano --model nano --quantization "bitsandbytes nf4"

Draws `count` pictures of each task (training uses the seeds below 100,000 of another generator stream), asks through
`batch_chat` with PIL images, greedily, and compares what is in the last \\boxed{}. Prints a table with 95 % Wilson
intervals, and JSON as the last line.
"""

import argparse
import json
import math
import re
import sys
import time

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from evaluation.quantization import QUANTIZATIONS, stored_bytes
from training.nano import draw

TASKS = {"calculation": draw.draw_calculation, "counting": draw.draw_shapes}
STREAM = 0x5EED  # keeps these pictures apart from those of training, whatever the seed


def boxed(text):
    """What is in the last `\\boxed{}` of an answer, or None."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1].strip() if found else None


def wilson(right, total, z=1.96):
    """95 % interval of a share (E. B. Wilson, 1927)."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return middle - half, middle + half


def score(model, tokenizer, task, count, seed, batch_size, progress=None):
    """(number right, list of wrong ones as (index, size of the picture, expected, answer))."""
    rng = np.random.default_rng([STREAM, seed, sorted(TASKS).index(task)])
    drawings = [TASKS[task](rng) for _ in range(count)]
    right, wrong = 0, []
    for start in range(0, count, batch_size):
        batch = drawings[start : start + batch_size]
        answers = model.batch_chat(
            tokenizer,
            [drawing.image for drawing in batch],
            [drawing.question for drawing in batch],
            {"max_new_tokens": 160, "do_sample": False},
        )
        for index, (drawing, answer) in enumerate(zip(batch, answers)):
            if boxed(answer) == drawing.answer:
                right += 1
            else:
                wrong.append((start + index, drawing.image.size, drawing.answer, answer))
        if progress:
            progress(task, start + len(batch), right)
    return right, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--show-wrong", type=int, default=0, help="print so many wrong answers of each task")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="none", help="of the decoder layers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of everything else")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    loading = QUANTIZATIONS[arguments.quantization]()
    model = AutoModel.from_pretrained(
        arguments.model, torch_dtype=getattr(torch, arguments.dtype), trust_remote_code=True, **loading
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=True)
    results, begun = {}, time.time()

    def progress(task, done, right):
        if sys.stderr.isatty():
            print(f"\r{task}: {right}/{done}", end="", file=sys.stderr)

    for task in TASKS:
        right, wrong = score(model, tokenizer, task, arguments.count, arguments.seed, arguments.batch_size, progress)
        low, high = wilson(right, arguments.count)
        results[task] = {"right": right, "total": arguments.count, "interval": [round(low, 4), round(high, 4)]}
        print(f"{task:12} {right}/{arguments.count} = {right / arguments.count:.1%}  (95 %: {low:.1%} to {high:.1%})")
        for index, size, expected, answer in wrong[: arguments.show_wrong]:
            print(f"  #{index} {size}: expected {expected}, said {answer!r}")
    record = {
        "seed": arguments.seed,
        "seconds": round(time.time() - begun),
        "quantization": arguments.quantization,
        "dtype": arguments.dtype,
        "bytes": {part: stored_bytes(getattr(model, part)) for part in ("vision_model", "mlp1", "language_model")},
        "decoder_layers_bytes": stored_bytes(model.get_decoder().layers),
        "tasks": results,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
