"""Writes the nano training sets: JSONL conversations about drawn images, as a user's own would be.

    python -m training.nano.data init_1 runs/nano/data --count 20000

There is one set for each stage of the report, in its answers' style:

- `init_1`: everything, mostly descriptions and direct answers, of which some are wrong, as in any
  large collection;
- `init_2`: the same, a pool from which `training.select` chooses;
- `init_3`: chains of thought, where the question asks to think step by step;
- `alignment`: questions as users ask them, answered as the reasoning model does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import durable
from tasks import samples
from tasks.drawing import LETTERS
from training.nano.text import STEP_BY_STEP

# Keeps these pictures apart from those of the encoder's training and of evaluation.
STREAM = 0xDA7A
HARDEST = 10.0
WORDS_OF_A_POINT = 5
PAIR_ANSWERS = ("first", "second", "equal")


class StageShares(NamedTuple):
    """How many of a stage's samples are of which kind.

    Attributes:
        descriptions: share of descriptions.
        wrong: share of wrong answers.
    """

    descriptions: float
    wrong: float


STAGES = {
    "init_1": StageShares(0.4, 0.05),
    "init_2": StageShares(0.3, 0.1),
    "init_3": StageShares(0.0, 0.0),
    "alignment": StageShares(0.05, 0.0),
}
REASONING_STAGES = ("init_3", "alignment")
FAMILY_SHARES = {"calculation": 0.25, "counting": 0.25, "two images": 0.25, "charts": 0.25}


def random_sample(rng: np.random.Generator, stage: str) -> tuple[samples.Sample, bool]:
    """A sample of a stage, and whether its answer is wrong."""
    shares = STAGES[stage]
    if rng.random() < shares.descriptions:
        sample = samples.description(rng)
    else:
        names = list(FAMILY_SHARES)
        name = names[rng.choice(len(names), p=list(FAMILY_SHARES.values()))]
        sample = samples.FAMILIES[name](rng, wordings=True)
    if rng.random() < shares.wrong:
        sample.answer = wrong_answer(rng, sample)
        return sample, True
    return sample, False


def wrong_answer(rng: np.random.Generator, sample: samples.Sample) -> str:
    """An answer of the same kind that is another one."""
    candidates = _answers_like(rng, sample.answer)
    others = [candidate for candidate in candidates if candidate != sample.answer]
    return others[rng.integers(len(others))]


def _answers_like(rng: np.random.Generator, answer: str) -> Sequence[str]:
    """Answers of the same kind; for a description, those of other pictures."""
    if answer in PAIR_ANSWERS:
        return PAIR_ANSWERS
    if answer in LETTERS:
        return LETTERS
    if answer.lstrip("-").isdigit():
        return [str(int(answer) + difference) for difference in (-3, -2, -1, 1, 2, 3)]
    return [samples.description(rng).answer for _ in range(3)]


def row_of(sample: samples.Sample, stage: str, image_names: list[str]) -> dict[str, Any]:
    """A sample as a line of a training set has it.

    Args:
        image_names: file names of the sample's images.
    """
    question = "<image>\n" * len(image_names) + sample.question
    if stage == "init_3":
        question += STEP_BY_STEP
    answer = f"Answer: \\boxed{{{sample.answer}}}"
    if stage in REASONING_STAGES:
        answer = samples.reasoned(sample)
    image: str | list[str] = image_names
    if len(image_names) == 1:
        image = image_names[0]
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns, "difficulty": difficulty_of(sample)}


def difficulty_of(sample: samples.Sample) -> float:
    """How hard a sample is, from 0 to 10: a fifth of the words of its reasoning, at most 10."""
    return min(HARDEST, round(len(sample.thinking.split()) / WORDS_OF_A_POINT, 1))


def write(stage: str, folder: Path, count: int, seed: int = 0) -> Path:
    """Write `stage`.jsonl and its images; the same for the same seed.

    Lines that are wrong say so, for the figures.

    Args:
        folder: of all training sets.
        count: number of samples.

    Returns:
        The path of the JSONL file, which appears when it is whole.
    """
    (folder / stage).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([STREAM, seed, sorted(STAGES).index(stage)])
    path = folder / f"{stage}.jsonl"
    with durable.writing(path) as file:
        for number in tqdm(range(count), desc=stage, unit="sample", mininterval=5):
            sample, is_wrong = random_sample(rng, stage)
            names = _save_images(sample, folder, f"{stage}/{number:06d}")
            row = {"id": number, "wrong": is_wrong, **row_of(sample, stage, names)}
            file.write(json.dumps(row).encode() + b"\n")
    return path


def _save_images(sample: samples.Sample, folder: Path, prefix: str) -> list[str]:
    """Save a sample's images as PNG; returns their names below the folder."""
    names = []
    for place, image in enumerate(sample.images):
        name = f"{prefix}-{place}.png"
        image.save(folder / name, compress_level=1)
        names.append(name)
    return names


def main() -> None:
    """Write the training set that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=STAGES, help="the stage of training that the set is for")
    parser.add_argument("folder", type=Path, help="the directory of all training sets")
    parser.add_argument("--count", type=int, required=True, help="the number of samples")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the samples")
    arguments = parser.parse_args()
    write(arguments.stage, arguments.folder, arguments.count, arguments.seed)


if __name__ == "__main__":
    main()
