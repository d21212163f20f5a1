"""GRPO of a Skywork-R1V repository with rule-based rewards, on TRL (report, section 2.2).

    python -m training.grpo --config training/recipes/nano/grpo.yaml
    accelerate launch --config_file training/recipes/accelerate/fsdp.yaml \\
        -m training.grpo --config training/recipes/38b/grpo.yaml

A YAML file holds fields of `GrpoArguments` (training/grpo_recipe.py) and of TRL's `GRPOConfig`; the
command line overrides it. To each question the model draws several completions, which are rewarded
by rule; those better than their group become likelier (GRPO, arXiv:2402.03300). What is not named
in `train` is frozen, and shown to be unchanged at the end. Run again after an interruption, it goes
on from the last complete checkpoint.

The output directory holds `checkpoint-*` while training, then what `save` names; `log.jsonl`,
`rewards.png`, `completions.jsonl`, `completions.html` and `summary.json`.
"""

from __future__ import annotations

import copy
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
from training import grpo_page, grpo_vllm, sft
from training.frozen import assert_frozen
from training.grpo_data import check_images, load_prompts
from training.grpo_recipe import MODEL, RULES, GrpoArguments, GrpoConfig, parse
from training.grpo_trainer import GrpoTrainer
from training.parts import adapters_among
from training.progress import REWARD_PLOT_FILE, plot_rewards, write_log
from training.raters import make_rater
from training.recipe import lora_config
from training.results import count_trained, first_and_last, gather_results, save_results
from training.resume import check_same_run, describe_run
from training.reward_model import ModelReward
from training.sharded import Weights, kind_of_sharding

RATINGS_FILE = "ratings.sqlite"
LOGGED = ("reward", "completions/mean_length", "frac_reward_zero_std", "entropy", "kl")


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
    gathered = gather_results(trainer, recipe)
    summary = summarize(trainer, time.time() - start, unchanged)
    if trainer.is_world_process_zero():
        write_results(trainer, recipe, summary, gathered)
    return summary


def make_trainer(recipe: GrpoArguments, config: GrpoConfig) -> GrpoTrainer:
    """Everything up to the first step: checks, data, model, frozen parts.

    Raises:
        FileNotFoundError, ValueError: a recipe, data or an output directory that does not fit; or
            weights that are shared out in a way that does not; or tiles that vLLM would not make.
    """
    config = copy.copy(config)  # some settings follow from the recipe and the machine
    sharding = kind_of_sharding(config)
    sft.check_processes(recipe, config, sharding is not None)
    if sharding is not None:
        _check_sharding(sharding, recipe, config)
    if not torch.cuda.is_available():
        config.dataloader_pin_memory = False  # there is no other memory to copy to
    model_config: Any = AutoConfig.from_pretrained(recipe.model, trust_remote_code=True)
    most_tiles = model_config.max_dynamic_patch
    if config.use_vllm and recipe.max_tiles not in (None, most_tiles):
        raise ValueError(
            f"max_tiles={recipe.max_tiles}: vLLM makes up to {most_tiles} tiles, as the model's "
            "config.json says (max_dynamic_patch). Leave max_tiles out, or change the model's."
        )
    if config.use_vllm:
        grpo_vllm.check_installed()
    prompts = load_prompts(recipe.data, recipe.image_root)
    _check_batches(recipe, config, len(prompts.dataset))
    check_images(prompts.dataset)
    processor: Any = AutoProcessor.from_pretrained(recipe.model, trust_remote_code=True)
    if recipe.max_tiles is not None:
        processor.image_processor.max_patches = recipe.max_tiles
    if config.process_index == 0:
        described = describe_run(recipe, config, prompts.fingerprint)
        check_same_run(str(config.output_dir), described)
    folder = Path(str(config.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    rewards = reward_functions(recipe, model_config.template, folder)
    keywords: Any = config.model_init_kwargs or {}
    model = sft.load_model(recipe, sharding is not None, keywords)
    config.model_init_kwargs = None  # done
    return GrpoTrainer(
        model,
        args=config,
        reward_funcs=rewards,
        train_dataset=prompts.dataset,
        processing_class=processor,
        peft_config=lora_config(recipe),
        recipe=recipe,
        is_sharded=sharding is not None,
    )


def _check_sharding(sharding: str, recipe: GrpoArguments, config: GrpoConfig) -> None:
    """Raise ValueError for settings with which GRPO cannot run on weights that are shared out.

    Args:
        sharding: of `kind_of_sharding`.
    """
    if sharding != "FSDP2":
        raise ValueError(
            f"GRPO with weights shared out by {sharding}: expected FSDP2, as in "
            "training/recipes/accelerate/fsdp.yaml."
        )
    if not config.use_vllm:
        raise ValueError(
            "FSDP without use_vllm: each token would gather all weights on every GPU. Let vLLM "
            "generate (use_vllm: true), or let each GPU hold the whole model (ddp.yaml)."
        )
    if adapters_among(recipe.train):
        raise ValueError(
            f"train={recipe.train} with FSDP: LoRA cannot be merged for vLLM where no GPU holds "
            "the whole weights. Let each hold the whole model (ddp.yaml), or leave LoRA out."
        )


def _check_batches(recipe: GrpoArguments, config: GrpoConfig, prompts: int) -> None:
    """Raise ValueError for settings that do not go with the number of prompts, or each other.

    TRL would find out when the model is loaded, or take no step.
    """
    completions = int(config.generation_batch_size or 0)  # of all processes
    to_each = int(config.num_generations or 1)
    wanted = completions // to_each
    if prompts < wanted:
        raise ValueError(
            f"data has {prompts} prompts, and {wanted} are asked at a time ({completions} "
            f"completions, {to_each} to each): there would be no step. Give more, "
            "or a smaller per_device_train_batch_size."
        )
    here = completions // config.world_size
    if recipe.sample_buffer and here % to_each:
        raise ValueError(
            f"sample_buffer={recipe.sample_buffer}: each process has {here} completions, no "
            f"multiple of num_generations={to_each}, so that groups would be split. "
            "Change per_device_train_batch_size or steps_per_generation."
        )
    weights = config.reward_weights
    if weights is not None and len(weights) != len(recipe.rewards):
        raise ValueError(
            f"reward_weights={weights}: expected one for each of rewards={recipe.rewards}."
        )


def reward_functions(recipe: GrpoArguments, template: str, folder: Path) -> list[Any]:
    """The recipe's rewards, which know whether the prompt opens the thinking.

    Args:
        template: of the model's conversations.
        folder: of the training, for the replies of a reward model.

    Raises:
        ValueError: a reward model that cannot be reached or does not fit.
    """
    opened = conversation.get_conv_template(template).opens_thinking
    functions: list[Any] = []
    for name in recipe.rewards:
        if name == MODEL:
            settings: Any = recipe.reward_settings()
            functions.append(ModelReward(make_rater(settings, folder / RATINGS_FILE)))
        else:
            functions.append(functools.partial(RULES[name], thinking_opened=opened))
    return functions


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


def write_results(
    trainer: GrpoTrainer, recipe: GrpoArguments, summary: dict[str, Any], gathered: Weights | None
) -> None:
    """Write everything into the output directory; the summary comes last and marks the end.

    Args:
        summary: gets the sizes of the files of all results.
        gathered: all weights, where no process holds a whole model.
    """
    folder = Path(str(trainer.args.output_dir))
    (folder / "summary.json").unlink(missing_ok=True)
    save_results(trainer, recipe, folder, gathered)
    history = trainer.state.log_history
    write_log(history, folder)
    plot_rewards(history, folder / REWARD_PLOT_FILE)
    grpo_page.write(folder)
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
