"""Supervised training of a Skywork-R1V repository on conversations about images, on TRL.

    python -m training.sft --config training/recipes/nano/mlp_init_1.yaml
    accelerate launch --config_file training/recipes/accelerate/fsdp.yaml \\
        -m training.sft --config training/recipes/38b/alignment_sft.yaml

A YAML file holds fields of `RecipeArguments` (training/recipe.py) and of TRL's `SFTConfig`; the
command line overrides it (`--learning_rate 1e-4`). The stages of the report (section 2.1 and 2.2,
step 1) are in `training/recipes`. What is not named in `train` is frozen, and shown to be unchanged
at the end. Run again after an interruption, it goes on from the last complete checkpoint.

The output directory holds `checkpoint-*` while training, then `model` (a complete repository), or
`adapter`, or `mlp1`; with `loss.png`, `log.jsonl` and `summary.json`.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import time
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from training.frozen import assert_frozen, freeze
from training.parts import adapters_among
from training.parts_trainer import PartsTrainer
from training.recipe import (
    RecipeArguments,
    TrainingConfig,
    lora_config,
    parse,
    set_accumulation,
    set_evaluation,
)
from training.recipe_data import build_dataset, build_eval_dataset, workers_of_stream
from training.results import gather_results, summarize, write_results
from training.resume import check_same_run, describe_run, finished, is_at_end, last_checkpoint
from training.sample_encoder import Collator, SampleEncoder
from training.sharded import kind_of_sharding
from training.sources import StreamedConversations
from training.trainer import RecipeTrainer


def train(recipe: RecipeArguments, config: TrainingConfig) -> dict[str, Any]:
    """Run a recipe to its end.

    Returns:
        The summary, as in summary.json.

    Raises:
        FileNotFoundError, ValueError: a recipe, data or an output directory that does not fit.
        RuntimeError: frozen weights have changed.
    """
    trainer = make_trainer(recipe, config)
    start = time.time()
    summary = train_what_is_left(trainer, recipe)
    if summary is not None:
        return summary
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    unchanged = assert_frozen(model, trainer.frozen)
    gathered = gather_results(trainer, recipe)
    summary = summarize(trainer, time.time() - start, unchanged)
    if trainer.is_world_process_zero():
        write_results(trainer, recipe, summary, gathered)
    return summary


def make_trainer(recipe: RecipeArguments, config: TrainingConfig) -> RecipeTrainer:
    """Everything up to the first step: checks, data, model, frozen parts.

    Raises:
        FileNotFoundError, ValueError: a recipe, data or an output directory that does not fit.
    """
    config = copy.copy(config)  # some settings follow from the recipe and the data
    shards = kind_of_sharding(config) is not None
    check_processes(recipe, config, shards)
    if recipe.global_batch_size:
        set_accumulation(config, recipe.global_batch_size)
    set_evaluation(recipe, config)
    if not torch.cuda.is_available():
        config.dataloader_pin_memory = False  # there is no other memory to copy to
    processor: Any = AutoProcessor.from_pretrained(recipe.model, trust_remote_code=True)
    encoder = _make_encoder(recipe, config, processor)
    data, source = build_dataset(recipe, config, encoder)
    if isinstance(source, StreamedConversations):
        config.dataloader_num_workers = workers_of_stream(source, config)
    if config.process_index == 0:  # before 38 billion parameters are read
        described = describe_run(recipe, config, source.fingerprint)
        check_same_run(str(config.output_dir), described)
    keywords: Any = config.model_init_kwargs or {}
    model = load_model(recipe, shards, keywords)
    config.model_init_kwargs = None  # done; TRL would warn that it ignores them
    return RecipeTrainer(
        model,
        args=config,
        train_dataset=data,
        eval_dataset=build_eval_dataset(recipe, config, encoder, source),
        data_collator=_make_collator(processor),
        processing_class=processor,
        peft_config=lora_config(recipe),
        source=source,
        recipe=recipe,
        is_sharded=shards,
    )


def check_processes(recipe: RecipeArguments, config: Any, shards: bool) -> None:
    """Raise ValueError for processes or sharding with which the recipe cannot run."""
    if config.n_gpu > 1:
        # transformers would replicate the model with DataParallel, which separates tiles from the
        # rows they belong to
        raise ValueError(
            f"{config.n_gpu} GPUs are visible to one process: start one for each with `accelerate "
            "launch --config_file training/recipes/accelerate/….yaml -m …`, or show it one with "
            "CUDA_VISIBLE_DEVICES=0."
        )
    if shards and recipe.eval_answers:
        raise ValueError(
            "eval_answers: a model that is sharded over processes cannot be asked while it trains. "
            "Leave it out; eval_loss works."
        )
    if shards and recipe.load_in_4bit:
        raise ValueError(
            "load_in_4bit runs on one GPU, or on several that hold the whole model each (DDP): not "
            "with FSDP or ZeRO-3."
        )
    if shards and adapters_among(recipe.train) and recipe.save != ["adapter"]:
        raise ValueError(
            "LoRA over FSDP or ZeRO-3 can only save the adapter (save: [adapter]); merge it "
            "afterwards: PeftModel.from_pretrained(model, adapter).merge_and_unload()"
            ".save_pretrained(folder)."
        )


def _make_encoder(recipe: RecipeArguments, config: TrainingConfig, processor: Any) -> SampleEncoder:
    """The encoder of the recipe's model.

    Raises:
        ValueError: a max_length beyond the model's context.
    """
    model_config: Any = AutoConfig.from_pretrained(recipe.model, trust_remote_code=True)
    context = model_config.llm_config.max_position_embeddings
    if not config.max_length or config.max_length > context:
        raise ValueError(
            f"max_length={config.max_length}: expected a number up to the model's context, "
            f"{context} tokens."
        )
    return SampleEncoder(
        model_config,
        processor.tokenizer,
        processor.image_processor,
        config.max_length,
        recipe.max_tiles,
        recipe.long_samples,
        recipe.loss_on_skipped_thinking,
    )


def _make_collator(processor: Any) -> Any:
    """The data collator for rows with one column, "sample" or "samples"."""
    side = processor.image_processor.size
    collator = Collator(processor.tokenizer.pad_token_id, (3, side, side))
    # A partial, because spawned workers get the collator as a pickle.
    return functools.partial(_collate_rows, collator)


def _collate_rows(collator: Collator, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of the samples in the rows, each of which has one, or several to be packed."""
    if "samples" in rows[0]:
        return collator.pack([sample for row in rows for sample in row["samples"]])
    return collator([row["sample"] for row in rows])


def load_model(recipe: RecipeArguments, shards: bool, keywords: dict[str, Any]) -> Any:
    """The recipe's model, of which only what trains has gradients, and in float32.

    Args:
        keywords: of `from_pretrained`, besides those that the recipe decides.
    """
    if recipe.load_in_4bit:
        # Quantized weights cannot be moved; they are loaded where they stay.
        keywords = {"load_in_4bit": True, "device_map": {"": PartialState().device}, **keywords}
    model: Any = AutoModelForImageTextToText.from_pretrained(
        recipe.model,
        dtype=getattr(torch, recipe.model_dtype),
        trust_remote_code=True,
        **keywords,
    )
    freeze(model, recipe.train)
    if shards:
        # ZeRO-3 keeps a float32 copy of the weights by itself, and accelerate makes one for FSDP
        model.whole_batches_of_tiles = True  # every rank makes the same calls of every module
        return model
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def train_what_is_left(trainer: PartsTrainer, recipe: RecipeArguments) -> dict[str, Any] | None:
    """Train to the end from where an earlier start came.

    Returns:
        The summary of a run that was finished before, otherwise None.
    """
    checkpoint, summary = _progress_before(trainer, recipe)
    if summary is not None:
        return summary
    config: Any = trainer.args
    if checkpoint is not None and is_at_end(config, checkpoint):
        trainer.load_finished(checkpoint)  # only its results are missing
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    return None


def _progress_before(
    trainer: PartsTrainer, recipe: RecipeArguments
) -> tuple[str | None, dict[str, Any] | None]:
    """What an earlier start has left, on all processes the same.

    The first process decides, on storage that all of them see.

    Returns:
        The last complete checkpoint; and the summary if everything was finished.
    """
    progress: list[Any] = [None, None]
    if trainer.is_world_process_zero():
        config: Any = trainer.args
        checkpoint = last_checkpoint(config.output_dir)
        progress = [checkpoint, finished(recipe, config, checkpoint)]
    checkpoint, summary = broadcast_object_list(progress)
    return checkpoint, summary


def main() -> None:
    """Train by the command line and print the summary as JSON."""
    try:
        summary = train(*parse())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
