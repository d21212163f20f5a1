"""Where a training goes on after an interruption, and whether an output directory is this run's.

`run.json` in the output directory describes the run; `checkpoint-*` are what Trainer writes while
training.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

import durable
from training.recipe import RecipeArguments

logger = logging.get_logger(__name__)

COMPLETE_FILE = "complete.json"  # in a checkpoint: the sizes of its files
# Settings that decide the result of a training, apart from the recipe and the data
DECISIVE_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "max_length",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "bf16",
    "fp16",
    "neftune_noise_alpha",
    "label_smoothing_factor",
    # of GRPO
    "num_generations",
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "mask_truncated_completions",
    "importance_sampling_level",
    "use_vllm",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "beta",
    "epsilon",
    "epsilon_high",
    "delta",
    "num_iterations",
    "steps_per_generation",
    "loss_type",
    "scale_rewards",
    "reward_weights",
)
CONSTANT_RATES = ("constant", "constant_with_warmup")  # by lr_scheduler_type
# Values of a recipe that may change while a training goes on. The global batch size is described by
# the samples of a step.
FREE_VALUES = (
    "save",
    "max_broken_share",
    "global_batch_size",
    "eval_data",
    "eval_answers",
    "eval_new_tokens",
    "early_stopping_patience",
)


def describe_run(
    recipe: RecipeArguments, config: TrainingArguments, fingerprint: str
) -> dict[str, Any]:
    """What has to stay the same for a training to go on, in JSON's types.

    Args:
        fingerprint: changes with the data.
    """
    described = {**dataclasses.asdict(recipe), "data_fingerprint": fingerprint}
    for name in DECISIVE_SETTINGS:
        described[name] = getattr(config, name, None)
    at_once = config.per_device_train_batch_size * config.world_size
    described["samples of a step"] = at_once * config.gradient_accumulation_steps
    for name in FREE_VALUES:
        del described[name]
    return json.loads(json.dumps(described, default=str))


def check_same_run(folder: str | Path, described: dict[str, Any]) -> None:
    """Check that an output directory is of this run, and record this run in its run.json.

    A run with a constant learning rate may go on to another number of steps than before.

    Raises:
        ValueError: the directory has checkpoints of another run.
    """
    path = Path(folder) / "run.json"
    before = durable.read_json(path)
    checkpoints = checkpoints_of(folder)
    if before is not None and checkpoints:
        steps_taken = step_of(checkpoints[-1])
        differences = []
        for name, value in described.items():
            if name == "max_steps" and _may_end_elsewhere(described, steps_taken):
                continue
            if before.get(name) != value:
                differences.append(f"{name} {before.get(name)!r}, now {value!r}")
        if differences:
            raise ValueError(
                f"output_dir={folder} has checkpoints of another run, from which this one cannot "
                f"go on ({', '.join(differences[:3])}). Use another output_dir, or delete that one."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_json(path, described)


def _may_end_elsewhere(described: dict[str, Any], steps_taken: int) -> bool:
    """Whether a run would have taken the same steps so far with any number of steps.

    Args:
        described: the run as it goes on.
        steps_taken: up to its last checkpoint.
    """
    warmup_steps = described.get("warmup_steps", 0)
    has_constant_rate = described.get("lr_scheduler_type") in CONSTANT_RATES
    is_warmed_by_share = 0 < warmup_steps < 1
    return has_constant_rate and not is_warmed_by_share and described["max_steps"] >= steps_taken


def checkpoints_of(folder: str | Path) -> list[Path]:
    """The checkpoints that Trainer has written below output_dir, by step.

    Any other directory beside them, such as `checkpoint-200-merged`, is the user's own.
    """
    checkpoints = []
    for path in Path(folder).glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", path.name):
            checkpoints.append(path)
    return sorted(checkpoints, key=step_of)


def step_of(checkpoint: str | Path) -> int:
    """The optimizer step of a checkpoint, from its name."""
    return int(str(checkpoint).rpartition("-")[2])


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end, or None; incomplete ones are removed."""
    last = None
    for path in checkpoints_of(folder):
        if _is_complete(path):
            last = str(path)
        else:
            logger.warning(f"{path} was not written to its end; it is removed.")
            shutil.rmtree(path, ignore_errors=True)
    return last


def mark_complete(checkpoint: str | Path) -> None:
    """Record that a checkpoint was written to its end, and with which files."""
    checkpoint = Path(checkpoint)
    sizes = durable.sizes_of_files(checkpoint)
    for name in sizes:
        durable.flush(checkpoint / name)
    durable.write_json(checkpoint / COMPLETE_FILE, sizes)


def _is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there with the size that it was written with."""
    sizes = durable.read_json(checkpoint / COMPLETE_FILE)
    return bool(sizes) and durable.has_files(checkpoint, sizes)


def is_at_end(config: TrainingArguments, checkpoint: str | None) -> bool:
    """Whether a checkpoint has reached `max_steps`; Trainer would take one step more from it."""
    return checkpoint is not None and 0 < config.max_steps <= step_of(checkpoint)


def finished(
    recipe: RecipeArguments, config: TrainingArguments, checkpoint: str | None
) -> dict[str, Any] | None:
    """The summary of a run that was finished before, or None if steps or results are missing."""
    folder = Path(str(config.output_dir))
    summary = durable.read_json(folder / "summary.json")
    if checkpoint is None or summary is None:
        return None
    is_done = is_at_end(config, checkpoint)
    if config.max_steps <= 0:  # a number of epochs ends at the step that the summary says
        is_done = summary.get("steps") == step_of(checkpoint)
    if not is_done:
        return None
    return summary if has_results(folder, summary, recipe.save) else None


def has_results(folder: Path, summary: dict[str, Any], names: Iterable[str] | None = None) -> bool:
    """Whether the files of results are there, with the sizes that a summary has.

    Args:
        folder: the output directory.
        summary: as in its summary.json.
        names: of the results; by default all of the summary.
    """
    results = summary.get("results", {})
    for name in results if names is None else names:
        if not results.get(name) or not durable.has_files(folder / name, results[name]):
            return False
    return bool(results)
