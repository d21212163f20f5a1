"""TRL's SFTTrainer with checkpoints of only what trains, and samples grouped by length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler

# trl exports its names lazily, which static tools do not see
from trl import SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from training.resume import mark_complete
from training.sources import Conversations, StreamedConversations


class RecipeTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints hold what trains, without the frozen 38 billion parameters.

    That is so on one GPU and with DDP. Under FSDP and ZeRO-3 the libraries write shards of all
    parameters.

    Args:
        source: the samples behind `train_dataset`.
        arguments, keywords: those of SFTTrainer.
    """

    def __init__(
        self, *arguments: Any, source: Conversations | StreamedConversations, **keywords: Any
    ) -> None:
        self.source = source
        super().__init__(*arguments, **keywords)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state_dict = model.state_dict() if state_dict is None else state_dict
        trained = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name in state_dict:
                trained[name] = state_dict[name].detach().contiguous()
        save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's; then, when every process has written its part, it is marked as complete."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero() and folder.is_dir():
            mark_complete(folder)

    def load_finished(self, checkpoint: str) -> None:
        """Take weights and history of a checkpoint without training on.

        `train` would take one step more.
        """
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))

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
            raise ValueError(
                f"The checkpoint does not fit what trains: it lacks {absent[:3]} and has "
                f"{load_result.unexpected_keys[:3]} besides. Resume with the recipe it was written "
                "with, or use another output_dir."
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """By length where the recipe says so, with an order that depends on the epoch alone."""
        is_by_length = self.args.train_sampling_strategy == "group_by_length"
        if not is_by_length or not isinstance(self.source, Conversations):
            return super()._get_train_sampler(train_dataset)
        lengths = [self.source.length(index) for index in range(len(self.source))]
        # The size of a step over all processes, so that their number does not change the order
        samples_of_step = (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size
        )
        return EpochSeededLengthSampler(samples_of_step, lengths, self.args.seed)


class EpochSeededLengthSampler(LengthGroupedSampler):
    """LengthGroupedSampler whose order depends only on seed and epoch.

    So a resumed training has the order of an unbroken one.

    Args:
        batch_size: number of samples that get about the same length.
        lengths: number of tokens of each sample.
        seed: that of the first epoch; each further epoch adds 1.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, whose order comes next; Trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()
