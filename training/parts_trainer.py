"""Trainer of transformers for some parts of a model: checkpoints of only what trains.

What SFT (training/trainer.py) and GRPO (training/grpo_trainer.py) share: learning rates of the
parts, checkpoints without the frozen 38 billion parameters, and going on from them, sharded or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import save_file
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from training.frozen import checksums
from training.optimizer import RATE_OF_PART, parameter_groups
from training.recipe import RecipeArguments
from training.resume import mark_complete
from training.sharded import gather, load_trained, misfit, trained_parameters


class PartsTrainer(Trainer):
    """Trainer whose checkpoints hold what trains. It comes before TRL's trainer among the bases.

    Args:
        recipe: says what trains, with which learning rates.
        is_sharded: whether FSDP2 or ZeRO-3 shares the parameters out over the processes.
        arguments, keywords: those of TRL's trainer.

    Attributes:
        frozen: `checksums` of what does not train, from before the first step.
    """

    def __init__(
        self, *arguments: Any, recipe: RecipeArguments, is_sharded: bool = False, **keywords: Any
    ) -> None:
        self.recipe = recipe
        self.is_sharded = is_sharded
        self.frozen: dict[str, str] = {}
        super().__init__(*arguments, **keywords)
        if recipe.load_in_4bit:
            _keep_whole_modules_in_float32(self.model)
        if not is_sharded:
            self.frozen = checksums(self.accelerator.unwrap_model(self.model))

    # -- learning rates ----------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """An optimizer with the learning rates of the recipe's parts.

        Raises:
            ValueError: an optimizer that takes no parameter groups.
        """
        rates = self._rates()
        is_plain = len(set(rates.values())) == 1 and self.recipe.vision_layer_decay == 1
        if self.optimizer is None and not is_plain:
            trained: Any = self.model if model is None else model
            optimizer_class, keywords = self.get_optimizer_cls_and_kwargs(self.args, trained)
            takes_groups = isinstance(optimizer_class, type) and issubclass(
                optimizer_class, torch.optim.Optimizer
            )
            if not takes_groups or "params" in keywords or "model" in keywords:
                raise ValueError(
                    f"optim={self.args.optim} takes no learning rate for each part: use another, "
                    "or learning_rate alone."
                )
            config = self.accelerator.unwrap_model(self.model).config
            groups = parameter_groups(
                trained,
                rates,
                config.vision_config.num_hidden_layers,
                self.recipe.vision_layer_decay,
                self.args.weight_decay,
                set(self.get_decay_parameter_names(trained)),
            )
            self.optimizer = optimizer_class(groups, **keywords)
        return super().create_optimizer(model)

    def _rates(self) -> dict[str, float]:
        """The learning rate of each part."""
        rates = {}
        for part, key in RATE_OF_PART.items():
            rate = getattr(self.recipe, key)
            rates[part] = self.args.learning_rate if rate is None else rate
        return rates

    # -- checkpoints -------------------------------------------------------------------------------

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config") and not self.is_sharded:
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state_dict = model.state_dict() if state_dict is None else state_dict
        trained = {}
        for name, _ in trained_parameters(model):
            if name in state_dict:
                trained[name] = state_dict[name].detach().contiguous()
        save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; where weights are sharded, only those that train are gathered."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)
            return
        trained = trained_parameters(self.accelerator.unwrap_model(self.model))
        self._save(output_dir, gather(trained, keep=self.is_world_process_zero()))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer's; where weights are sharded, without those that are frozen."""
        engine: Any = self.model_wrapped
        scheduler: Any = self.lr_scheduler
        if self.is_deepspeed_enabled:
            engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        elif self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.args.should_save:
            torch.save(scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """As Trainer's; then, where weights are sharded, what is frozen gets its checksums.

        A checkpoint of ZeRO-3 is loaded here, since it lacks the frozen parameters, which Trainer
        would miss.
        """
        loads_here = self.is_deepspeed_enabled and resume_from_checkpoint is not None
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, None if loads_here else resume_from_checkpoint
        )
        if loads_here:
            deepspeed_load_checkpoint(
                self.model_wrapped, str(resume_from_checkpoint), load_module_strict=False
            )
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        if self.is_sharded and not self.frozen:
            self.frozen = checksums(self.accelerator.unwrap_model(self.model))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As Trainer's; under FSDP, what trains is shared out over the processes."""
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        weights = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        load_trained(self.accelerator.unwrap_model(self.model), weights)

    def _load_best_model(self) -> None:
        """As Trainer's; see `_load_from_checkpoint`."""
        if self.is_fsdp_enabled:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's; then, when every process has written its part, it is marked as complete.

        Older ones are removed after that, so that there is a complete one at any time.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero() and folder.is_dir():
            mark_complete(folder)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the results get a card of their own (training/card.py), when they are there."""

    def load_finished(self, checkpoint: str) -> None:
        """Take weights and history of a checkpoint without training on.

        `train` would take one step more. Where weights are sharded, it is `train` that shares them
        out, and it is left before that step.
        """
        if not self.is_sharded:
            self._load_from_checkpoint(checkpoint)
            self.state = state_of(checkpoint)
            return
        leave = LeaveBeforeStep()
        self.add_callback(leave)
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except AtTheEnd:
            pass
        finally:
            self.remove_callback(leave)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise ValueError for a checkpoint of other weights than those that train."""
        model = self.accelerator.unwrap_model(self.model)
        not_saved = {name for name, _ in model.named_buffers()}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                not_saved.add(name)
        absent = []
        for name in load_result.missing_keys:
            if name not in not_saved and name.removeprefix("module.") not in not_saved:
                absent.append(name)
        if absent or load_result.unexpected_keys:
            raise misfit(absent, load_result.unexpected_keys)


class AtTheEnd(Exception):
    """A training has taken all its steps."""


class LeaveBeforeStep(TrainerCallback):
    """Ends a training that has taken all its steps, before its model is asked anything."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Raise AtTheEnd."""
        raise AtTheEnd


def _keep_whole_modules_in_float32(model: Any) -> None:
    """What trains beside adapters is kept in float32, as in any other run.

    TRL makes everything that trains on a quantized model bfloat16, as QLoRA has its adapters.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "modules_to_save" in name:
            parameter.data = parameter.data.float()


def state_of(checkpoint: Any) -> TrainerState:
    """Trainer's state as a checkpoint has it."""
    return TrainerState.load_from_json(str(Path(str(checkpoint)) / "trainer_state.json"))
