"""Writes the nano training sets: JSONL conversations about drawn images, as a user's own would be.

    python -m training.nano.data init_1 runs/nano/data --count 20000

One set for each stage of the report, in its answers' style:

- `init_1`: everything, mostly descriptions and direct answers, of which some are wrong, as in any large collection;
- `init_2`: the same, a pool from which `training.select` chooses;
- `init_3`: chains of thought, where the question asks to think step by step;
- `alignment`: questions as users ask them, answered as the reasoning model does.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tasks import draw, drawing, samples
from training.nano.text import STEP_BY_STEP

STREAM = 0xDA7A  # keeps these pictures apart from those of the encoder's training and of evaluation
# Shares of descriptions, and of wrong answers
STAGES = {"init_1": (0.4, 0.05), "init_2": (0.3, 0.1), "init_3": (0.0, 0.0), "alignment": (0.05, 0.0)}
FAMILY_SHARES = {"calculation": 0.25, "counting": 0.25, "two images": 0.25, "charts": 0.25}


def random_sample(rng, stage):
    """(sample, whether its answer is wrong)."""
    described, wrong = STAGES[stage]
    if rng.random() < described:
        sample = samples.description(rng)
    else:
        names = list(FAMILY_SHARES)
        sample = samples.FAMILIES[names[rng.choice(len(names), p=list(FAMILY_SHARES.values()))]](rng, wordings=True)
    if rng.random() < wrong:
        sample.answer = wrong_answer(rng, sample)
        return sample, True
    return sample, False


def wrong_answer(rng, sample):
    """An answer of the same kind that is another one."""
    if sample.answer in ("first", "second", "equal"):
        choices = ("first", "second", "equal")
    elif sample.answer in drawing.LETTERS:
        choices = drawing.LETTERS
    elif sample.answer.lstrip("-").isdigit():
        choices = [str(int(sample.answer) + step) for step in (-3, -2, -1, 1, 2, 3)]
    else:  # a description: that of another picture
        choices = [samples.description(rng).answer for _ in range(3)]
    others = [choice for choice in choices if choice != sample.answer]
    return others[rng.integers(len(others))]


def row_of(sample, stage, image_names):
    question = "<image>\n" * len(image_names) + sample.question + (STEP_BY_STEP if stage == "init_3" else "")
    if stage in ("init_3", "alignment"):
        answer = samples.reasoned(sample)
    else:
        answer = f"Answer: \\boxed{{{sample.answer}}}"
    return {
        "image": image_names if len(image_names) > 1 else image_names[0],
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }


def write(stage, folder, count, seed=0):
    """Write `stage`.jsonl and its images; the same for the same seed. Lines that are wrong say so, for the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / stage).mkdir(exist_ok=True)
    rng = np.random.default_rng([STREAM, seed, sorted(STAGES).index(stage)])
    temporary = folder / f"{stage}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        for number in tqdm(range(count), desc=stage, unit="sample", mininterval=5):
            sample, is_wrong = random_sample(rng, stage)
            names = []
            for place, image in enumerate(sample.images):
                names.append(f"{stage}/{number:06d}-{place}.png")
                image.save(folder / names[-1], compress_level=1)
            file.write(json.dumps({"id": number, "wrong": is_wrong, **row_of(sample, stage, names)}) + "\n")
    path = folder / f"{stage}.jsonl"
    temporary.replace(path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, required=True, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.stage, arguments.folder, arguments.count, arguments.seed)


if __name__ == "__main__":
    main()
