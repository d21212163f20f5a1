"""What a distillation will take, before it starts: requests, tokens, hours and money.

Tokens of prompts are counted from characters and tiles of some of the samples; those of replies are
the recipe's (`cost`), or the mean of what is there already.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import durable
from evaluation.page_parts import evenly
from preprocessor.image_loading import open_image
from preprocessor.tiling import count_tiles
from training.distill.output import records_of
from training.distill.prompt_files import Prompt
from training.distill.recipe import DistillRecipe
from training.distill.records import Entry, Sample

CHARACTERS_PER_TOKEN = 4
LOOKED_AT = 100  # samples whose images are opened
# The stages that ask a judge, each with its prompt
PROMPT_OF = {"necessity": "necessity", "text": "text", "integration": "integration"}


class Work(NamedTuple):
    """What is left of a stage.

    Attributes:
        stage: its name.
        requests: that are left.
        read: tokens of their prompts.
        written: tokens of the replies.
        is_measured: whether the length of a reply is a mean of this run.
    """

    stage: str
    requests: int
    read: float
    written: float
    is_measured: bool


def work_left(
    recipe: DistillRecipe, samples: Sequence[Sample], prompts: dict[str, Prompt]
) -> list[Work]:
    """What is left of the stages that ask a model.

    Args:
        recipe: of the distillation.
        samples: of its shard.
        prompts: by use.
    """
    if not samples:
        return []
    looked_at = evenly(list(samples), LOOKED_AT)
    question = statistics.fmean(len(s.question) for s in looked_at) / CHARACTERS_PER_TOKEN
    images = statistics.fmean(tokens_of_images(sample, recipe) for sample in looked_at)
    works = []
    if recipe.judge.kind == "endpoint":
        works += _scoring(recipe, samples, prompts, question + images)
    works.append(_tries(recipe, len(samples), question + images))
    if recipe.revise == "judge":
        works.append(_revision(recipe, len(samples), question + images))
    return works


def tokens_of_images(sample: Sample, recipe: DistillRecipe) -> int:
    """Tokens of a sample's images; 0 for one that cannot be read, which will be set aside."""
    tiling = recipe.tiling
    tiles = 0
    for path in sample.images:
        try:
            width, height = open_image(path).size
        except (ValueError, OSError):
            continue
        tiles += count_tiles(width, height, max_tiles=tiling.max_tiles, tile_size=tiling.tile_size)
    return tiles * tiling.tokens_per_tile


def _scoring(
    recipe: DistillRecipe, samples: Sequence[Sample], prompts: dict[str, Prompt], prompt: float
) -> list[Work]:
    """The stages in which the judge scores."""
    works = []
    with_images = sum(bool(sample.images) for sample in samples)
    wanted = {"necessity": with_images, "text": len(samples), "integration": with_images}
    if recipe.integration == "rules":
        del wanted["integration"]
    for stage, count in wanted.items():
        entries = _entries(recipe.folder / f"{stage}.jsonl")
        asked = [record["written"] for entry in entries for record in records_of(entry)]
        own = len(prompts[PROMPT_OF[stage]].text) / CHARACTERS_PER_TOKEN
        left = max(0, count - len(asked))
        mean = statistics.fmean(asked) if asked else recipe.cost.judge_tokens
        works.append(Work(stage, left, left * (prompt + own), left * mean, bool(asked)))
    return works


def _tries(recipe: DistillRecipe, samples: int, prompt: float) -> Work:
    """The stage in which the model writes its chains."""
    entries = _entries(recipe.folder / "tries.jsonl")
    written = [entry["tokens"] for entry in entries if "tokens" in entry]
    left = max(0, samples * recipe.tries - len(written))
    mean = statistics.fmean(written) if written else recipe.cost.chain_tokens
    return Work("tries", left, left * prompt, left * mean, bool(written))


def _revision(recipe: DistillRecipe, samples: int, prompt: float) -> Work:
    """The stage in which the judge revises."""
    checked = _entries(recipe.folder / "check.jsonl")
    revised = len(_entries(recipe.folder / "revision.jsonl"))
    share = recipe.cost.wrong_share
    if checked:
        share = sum(entry.get("kept", 0) is None for entry in checked) / len(checked)
    left = max(0, round(share * samples) - revised)
    chain = recipe.cost.chain_tokens
    return Work("revision", left, left * (prompt + chain), left * chain, bool(checked))


def _entries(path: Path) -> list[Entry]:
    """The lines of a stage so far; the file is left as it is, since another process may write."""
    return [json.loads(line) for line in durable.whole_lines(path)]


def lines_of(works: Sequence[Work], recipe: DistillRecipe) -> list[str]:
    """The estimate in words, a line for each stage and one for all."""
    lines, hours_of_all, money = [], 0.0, 0.0
    cost = recipe.cost
    for work in works:
        speed, gpus = cost.judge_tokens_per_second, cost.judge_gpus
        if work.stage == "tries":
            speed, gpus = cost.generator_tokens_per_second, cost.generator_gpus
        source = "mean so far" if work.is_measured else "assumed"
        line = (
            f"{work.stage}: {work.requests} requests, {work.read / 1e6:.3f} M tokens to read, "
            f"{work.written / 1e6:.3f} M to write ({source})"
        )
        if speed is not None:
            hours = work.written / speed / 3600
            hours_of_all += hours
            line += f", {hours:.2f} h at {speed:g} tokens/s"
            if gpus is not None and cost.gpu_hour is not None:
                money += hours * gpus * cost.gpu_hour
        lines.append(line)
    total = f"all: {sum(work.requests for work in works)} requests"
    if hours_of_all:
        total += f", {hours_of_all:.2f} h"
    if money:
        total += f", {money:.2f} at {cost.gpu_hour:g} a GPU hour"
    return [*lines, total]
