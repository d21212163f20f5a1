"""GRPO of a Skywork-R1V repository with rule-based rewards, on TRL (report, section 2.2).

    python -m training.grpo --config training/recipes/nano/grpo.yaml
    accelerate launch --config_file training/recipes/accelerate/one_gpu.yaml \\
        -m training.grpo --config training/recipes/38b/grpo.yaml

A YAML file holds fields of `GrpoArguments` (training/grpo_recipe.py) and of TRL's `GRPOConfig`; the
command line overrides it. To each question the model draws several completions, which are rewarded
by rule; those better than their group become likelier (GRPO, arXiv:2402.03300). What is not named
in `train` is frozen, and shown to be unchanged at the end. Run again after an interruption, it goes
on from the last complete checkpoint.

The output directory holds `checkpoint-*` while training, then what `save` names; `log.jsonl`,
`rewards.png`, `completions.jsonl` and `summary.json`.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor

import durable
from remote_code import conversation
from training import sft
from training.frozen import assert_frozen
from training.grpo_data import load_prompts
from training.grpo_recipe import REWARDS, GrpoArguments, GrpoConfig, parse
from training.grpo_trainer import GrpoTrainer
from training.progress import plot_rewards, write_log
from training.recipe import lora_config
from training.results import count_trained, first_and_last, save_results
from training.resume import check_same_run, describe_run

LOGGED = ("reward", "completions/mean_length", "frac_reward_zero_std", "entropy", "kl")
PLOT_FILE = "rewards.png"


def train(recipe: GrpoArguments, config: GrpoConfig) -> dict[str, Any]:
    """Run a recipe to its end.

    Returns:
        The summary, as in summary.json.

    Raises:
        FileNotFoundError, ValueError: a recipe, data or an output directory that does not fit.
        RuntimeError: frozen weights have changed.
    """
    trainer = make_trainer(recipe, config)
    start = time.time()
    summary = sft.train_what_is_left(trainer, recipe)
    if summary is not None:
        return summary
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    unchanged = assert_frozen(model, trainer.frozen)
    summary = summarize(trainer, time.time() - start, unchanged)
    if trainer.is_world_process_zero():
        write_results(trainer, recipe, summary)
    return summary


def make_trainer(recipe: GrpoArguments, config: GrpoConfig) -> GrpoTrainer:
    """Everything up to the first step: checks, data, model, frozen parts.

    Raises:
        FileNotFoundError, ValueError: a recipe, data or an output directory that does not fit.
    """
    if not torch.cuda.is_available():
        config.dataloader_pin_memory = False  # there is no other memory to copy to
    prompts = load_prompts(recipe.data, recipe.image_root)
    model_config: Any = AutoConfig.from_pretrained(recipe.model, trust_remote_code=True)
    processor: Any = AutoProcessor.from_pretrained(recipe.model, trust_remote_code=True)
    if recipe.max_tiles is not None:
        processor.image_processor.max_patches = recipe.max_tiles
    if config.process_index == 0:
        described = describe_run(recipe, config, prompts.fingerprint)
        check_same_run(str(config.output_dir), described)
    keywords: Any = config.model_init_kwargs or {}
    model = sft.load_model(recipe, is_sharded=False, keywords=keywords)
    config.model_init_kwargs = None  # done
    return GrpoTrainer(
        model,
        args=config,
        reward_funcs=reward_functions(recipe, model_config.template),
        train_dataset=prompts.dataset,
        processing_class=processor,
        peft_config=lora_config(recipe),
        recipe=recipe,
    )


def reward_functions(recipe: GrpoArguments, template: str) -> list[Any]:
    """The recipe's rewards, which know whether the prompt opens the thinking."""
    opened = conversation.get_conv_template(template).opens_thinking
    return [functools.partial(REWARDS[name], thinking_opened=opened) for name in recipe.rewards]


def summarize(trainer: GrpoTrainer, seconds: float, unchanged: int) -> dict[str, Any]:
    """The summary of a training, as in summary.json.

    Args:
        trainer: after its last step.
        seconds: how long the training took.
        unchanged: number of frozen tensors that were found unchanged.
    """
    return {
        "steps": trainer.state.global_step,
        "seconds": round(seconds),
        "trained_parameters": count_trained(trainer.model),
        "frozen_tensors_unchanged": unchanged,
        **first_and_last(trainer.state.log_history, LOGGED),
    }


def write_results(trainer: GrpoTrainer, recipe: GrpoArguments, summary: dict[str, Any]) -> None:
    """Write everything into the output directory; the summary comes last and marks the end."""
    folder = Path(str(trainer.args.output_dir))
    (folder / "summary.json").unlink(missing_ok=True)
    save_results(trainer, recipe, folder)
    history = trainer.state.log_history
    write_log(history, folder)
    plot_rewards(history, folder / PLOT_FILE)
    summary["results"] = {name: durable.sizes_of_files(folder / name) for name in recipe.save}
    durable.write_json(folder / "summary.json", summary)


def main() -> None:
    """Train by the command line and print the summary as JSON."""
    try:
        summary = train(*parse())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
