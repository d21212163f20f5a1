"""What a training leaves in its output directory, as far as the recipe's `save` names it.

`model` is a complete repository, `adapter` is LoRA's, `mlp1` the projector alone. `log.jsonl` has
the history, `loss.png` its losses, and `summary.json` what came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import durable
from training.card import model_card
from training.parts_trainer import PartsTrainer
from training.progress import PLOT_FILE, plot_history, values_by_step, write_log
from training.recipe import RecipeArguments
from training.sharded import Weights, gather, trained_parameters
from training.trainer import RecipeTrainer


def summarize(trainer: RecipeTrainer, seconds: float, unchanged: int) -> dict[str, Any]:
    """The summary of a training, as in summary.json; every process has to call it.

    Args:
        seconds: how long the training took.
        unchanged: number of frozen tensors that were found unchanged.

    Returns:
        Values that JSON has; the losses are None where fewer steps were taken than are logged.
    """
    history = trainer.state.log_history
    losses = list(values_by_step(history, "loss").values()) or [None]
    return {
        "steps": trainer.state.global_step,
        "seconds": round(seconds),
        "trained_parameters": count_trained(trainer.model),
        "frozen_tensors_unchanged": unchanged,
        "samples": trainer.source.counts.over_processes(trainer.accelerator),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **first_and_last(history, ("eval_loss", "eval_right")),
        "best_checkpoint": trainer.state.best_model_checkpoint,
    }


def first_and_last(
    history: list[dict[str, Any]], keys: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The first and last value of each key that a Trainer's history has."""
    found = {}
    for key in keys:
        values = list(values_by_step(history, key).values())
        if values:
            found[key] = {"first": values[0], "last": values[-1]}
    return found


def count_trained(model: Any) -> int:
    """The number of elements of all parameters that train."""
    total = 0
    for _, parameter in trained_parameters(model):
        # Between steps ZeRO-3 leaves placeholders, which remember the size
        total += getattr(parameter, "ds_numel", parameter.numel())
    return total


def gather_results(trainer: PartsTrainer, recipe: RecipeArguments) -> Weights | None:
    """The weights that the results need, on the first process, where each holds a part of them.

    Only a whole repository needs all weights. Every process has to call it.

    Returns:
        None where every process holds the whole model.
    """
    if not trainer.is_sharded:
        return None
    accelerator: Any = trainer.accelerator
    if "model" in recipe.save:
        return accelerator.get_state_dict(trainer.model_wrapped)
    model: Any = accelerator.unwrap_model(trainer.model)
    needed = trained_parameters(model)
    if "mlp1" in recipe.save and "mlp1" not in recipe.train:
        needed += [pair for pair in model.named_parameters() if pair[0].startswith("mlp1.")]
    return gather(needed, keep=trainer.is_world_process_zero())


def write_results(
    trainer: RecipeTrainer,
    recipe: RecipeArguments,
    summary: dict[str, Any],
    gathered: Weights | None,
) -> None:
    """Write everything into the output directory; the summary comes last and marks the end.

    Args:
        summary: gets the sizes of the files of all results.
        gathered: all weights, where no process holds a whole model.
    """
    folder = Path(str(trainer.args.output_dir))
    history = trainer.state.log_history
    # While results are written, those of an earlier start are not complete.
    (folder / "summary.json").unlink(missing_ok=True)
    save_results(trainer, recipe, folder, gathered)
    write_log(history, folder)
    plot_history(history, folder / PLOT_FILE)
    config: Any = trainer.args
    for name in recipe.save:
        card = model_card(recipe, config, summary, name)
        durable.write_text(folder / name / "README.md", card)
    summary["results"] = {name: durable.sizes_of_files(folder / name) for name in recipe.save}
    durable.write_json(folder / "summary.json", summary)


def save_results(
    trainer: PartsTrainer, recipe: RecipeArguments, folder: Path, gathered: Weights | None = None
) -> None:
    """Write below the folder what the recipe's `save` names.

    Args:
        gathered: all weights, where no process holds a whole model.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    processor: Any = trainer.processing_class
    if "adapter" in recipe.save:
        with durable.new_directory(folder / "adapter") as adapter:
            model.save_pretrained(adapter, state_dict=gathered)
    if recipe.save == ["adapter"]:
        return
    weights = gathered
    if weights is None:
        if hasattr(model, "peft_config"):
            model = model.merge_and_unload()
        weights = dict(model.state_dict())
    dtype = getattr(torch, recipe.model_dtype)
    if "model" in recipe.save:
        _save_model(model, weights, dtype, folder)
    if "mlp1" in recipe.save:
        with durable.new_directory(folder / "mlp1") as mlp1:
            _save_projector(model, weights, dtype, mlp1)
            processor.tokenizer.save_pretrained(mlp1)


def _save_model(model: Any, weights: Weights, dtype: torch.dtype, folder: Path) -> None:
    """Write a complete repository, `model`."""
    converted = {name: tensor.detach().to(dtype) for name, tensor in weights.items()}
    with durable.new_directory(folder / "model") as temporary:
        model.save_pretrained(temporary, state_dict=converted)


def _save_projector(model: Any, weights: Weights, dtype: torch.dtype, folder: Path) -> None:
    """Write the projector's weights, with the model's config."""
    projector = {}
    for name, tensor in weights.items():
        if name.startswith("mlp1."):
            projector[name] = tensor.detach().to("cpu", dtype).contiguous()
    save_file(projector, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
