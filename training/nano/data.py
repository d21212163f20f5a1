"""Writes the nano training sets: JSONL conversations about drawn images, as a user's own would be.

    python -m training.nano.data init_1 runs/nano/data --count 20000

There is one set for each stage of the report, in its answers' style:

- `init_1`: everything, mostly descriptions and direct answers, of which some are wrong, as in any
  large collection;
- `init_2`: the same, a pool from which `training.select` chooses;
- `init_3`: chains of thought, where the question asks to think step by step;
- `alignment`: questions as users ask them, answered as the reasoning model does;
- `further`: the same of families that the shipped checkpoint was not taught;
- `rechecked`: questions of all families, with thinking that checks itself any number of times;
- `distillation`: fresh questions of all families, of which chains are distilled;
- `hybrid`: all families, for iterations of SFT and GRPO: some answers are about another picture,
  and some that are right have no box, so that a reward model has something to tell apart.

Each line says its family, and the right answer as its `solution`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import durable
from tasks import samples
from tasks.colours import COLOURS
from tasks.drawing import LETTERS, SHAPES
from training.nano.rechecking import rechecked
from training.nano.text import STEP_BY_STEP

# Keeps these pictures apart from those of the encoder's training and of evaluation.
STREAM = 0xDA7A
ROWS_AT_A_TIME = 16  # that a process draws
HARDEST = 10.0  # of the difficulty
WORDS_OF_A_POINT = 5  # of the reasoning, for a point of the difficulty
PAIR_ANSWERS = ("first", "second", "equal")


class StageShares(NamedTuple):
    """How many of a stage's samples are of which kind.

    Attributes:
        descriptions: share of descriptions.
        wrong: share of wrong answers.
        families: what else is asked, each as often.
        mistaken: share of answers, with their thinking, about another picture.
        unboxed: share of right answers that have no box.
        further: share of the other samples that are of `samples.FURTHER_FAMILIES`.
    """

    descriptions: float
    wrong: float
    families: Mapping[str, samples.Family] = samples.FAMILIES
    mistaken: float = 0.0
    unboxed: float = 0.0
    further: float = 0.0


STAGES = {
    "init_1": StageShares(0.4, 0.05),
    "init_2": StageShares(0.3, 0.1),
    "init_3": StageShares(0.0, 0.0),
    "alignment": StageShares(0.05, 0.0),
    "further": StageShares(0.0, 0.0, samples.FURTHER_FAMILIES),
    "rechecked": StageShares(0.0, 0.0, samples.ALL_FAMILIES),
    "distillation": StageShares(0.0, 0.0, samples.ALL_FAMILIES),
    "hybrid": StageShares(0.0, 0.0, mistaken=0.2, unboxed=0.1, further=0.6),
}
THINKING_STAGES = ("alignment", "further", "rechecked", "distillation", "hybrid")
DESCRIPTION = "description"


class DrawnSample(NamedTuple):
    """A sample of a training set.

    Attributes:
        sample: the question with its pictures.
        family: of `samples.ALL_FAMILIES`, or DESCRIPTION.
        is_wrong: whether its answer is wrong on purpose.
        solution: the right answer.
        is_boxed: whether its answer is in a box.
    """

    sample: samples.Sample
    family: str
    is_wrong: bool
    solution: str
    is_boxed: bool = True


def random_sample(rng: np.random.Generator, stage: str) -> DrawnSample:
    """A sample of a stage."""
    shares = STAGES[stage]
    families = shares.families
    # Where a share is 0 no number is drawn for it: the data of the older stages stay as they are
    if shares.further and rng.random() < shares.further:
        families = samples.FURTHER_FAMILIES
    if rng.random() < shares.descriptions:
        family = DESCRIPTION
        sample = samples.description(rng)
    else:
        names = list(families)
        family = names[rng.integers(len(names))]
        if shares.mistaken and rng.random() < shares.mistaken:
            return mistaken_sample(rng, family)
        sample = families[family](rng, wordings=True)
    solution = sample.answer
    if rng.random() < shares.wrong:
        sample.answer = wrong_answer(rng, sample)
        return DrawnSample(sample, family, True, solution)
    is_boxed = not (shares.unboxed and rng.random() < shares.unboxed)
    return DrawnSample(sample, family, False, solution, is_boxed)


def mistaken_sample(rng: np.random.Generator, family: str) -> DrawnSample:
    """A sample whose thinking and answer are about another picture, to the same question."""
    draw_sample = samples.ALL_FAMILIES[family]
    other = draw_sample(rng)
    shown = draw_sample(rng)
    while shown.question != other.question or shown.answer == other.answer:
        shown = draw_sample(rng)
    sample = dataclasses.replace(shown, thinking=other.thinking, answer=other.answer)
    return DrawnSample(sample, family, True, shown.answer)


def wrong_answer(rng: np.random.Generator, sample: samples.Sample) -> str:
    """An answer of the same kind that is another one."""
    candidates = _answers_like(rng, sample.answer)
    others = [candidate for candidate in candidates if candidate != sample.answer]
    return others[rng.integers(len(others))]


def _answers_like(rng: np.random.Generator, answer: str) -> Sequence[str]:
    """Answers of the same kind; for a description, those of other pictures."""
    if answer in PAIR_ANSWERS:
        return PAIR_ANSWERS
    for answers in (samples.PLACES, LETTERS, SHAPES, COLOURS):
        if answer in answers:
            return answers
    if answer.lstrip("-").isdigit():
        return [str(int(answer) + difference) for difference in (-3, -2, -1, 1, 2, 3)]
    return [samples.description(rng).answer for _ in range(3)]


def row_of(drawn: DrawnSample, stage: str, image_names: list[str]) -> dict[str, Any]:
    """A sample as a line of a training set has it.

    Args:
        image_names: file names of the sample's images.
    """
    sample = drawn.sample
    question = "<image>\n" * len(image_names) + sample.question
    if stage == "init_3":
        question += STEP_BY_STEP
    answer = f"Answer: \\boxed{{{sample.answer}}}"
    if stage == "init_3":
        answer = samples.stepwise(sample)
    elif stage in THINKING_STAGES:
        answer = samples.reasoned(sample)
    if not drawn.is_boxed:
        answer = f"{sample.thinking}\n</think>\n\nAnswer: {sample.answer}"
    image: str | list[str] = image_names
    if len(image_names) == 1:
        image = image_names[0]
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


def difficulty_of(sample: samples.Sample) -> float:
    """How hard a sample is, from 0 to 10: a fifth of the words of its reasoning, at most 10."""
    return min(HARDEST, round(len(sample.thinking.split()) / WORDS_OF_A_POINT, 1))


def write(stage: str, folder: Path, count: int, seed: int = 0) -> Path:
    """Write `stage`.jsonl and its images; the same for the same seed.

    All cores draw. Lines that are wrong say so, for the figures.

    Args:
        folder: of all training sets.
        count: number of samples.

    Returns:
        The path of the JSONL file, which appears when it is whole.
    """
    (folder / stage).mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage}.jsonl"
    draw_row = functools.partial(_drawn_row, stage, folder, seed)
    numbers = range(count)
    with durable.writing(path) as file, ProcessPoolExecutor() as pool:
        rows = pool.map(draw_row, numbers, chunksize=ROWS_AT_A_TIME)
        for row in tqdm(rows, total=count, desc=stage, unit="sample", mininterval=5):
            file.write(json.dumps(row).encode() + b"\n")
    return path


def _drawn_row(stage: str, folder: Path, seed: int, number: int) -> dict[str, Any]:
    """A line of a training set; its images are saved."""
    rng = np.random.default_rng([STREAM, seed, list(STAGES).index(stage), number])
    drawn = random_sample(rng, stage)
    names = _save_images(drawn.sample, folder, f"{stage}/{number:06d}")
    facts = {
        "id": number,
        "family": drawn.family,
        "wrong": drawn.is_wrong,
        "difficulty": difficulty_of(drawn.sample),
        "solution": drawn.solution,
    }
    if stage == "rechecked":
        told = dataclasses.replace(drawn.sample, thinking=rechecked(rng, drawn.sample))
        drawn = drawn._replace(sample=told)
    return {**facts, **row_of(drawn, stage, names)}


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
