"""TRL's SFTTrainer for recipes: samples grouped by length, speed in the log, questions asked.

Learning rates of the parts and checkpoints of only what trains are in training/parts_trainer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import EarlyStoppingCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

# trl exports its names lazily, which static tools do not see
from trl import SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from training.asking import count_right
from training.mixture import Mixture
from training.parts_trainer import PartsTrainer, state_of
from training.progress import (
    PLOT_FILE,
    ProgressLog,
    Throughput,
    plot_history,
    values_by_step,
)
from training.recipe import RecipeArguments
from training.sources import Conversations, StreamedConversations


class RecipeTrainer(PartsTrainer, SFTTrainer):
    """SFTTrainer whose checkpoints hold what trains, without the frozen 38 billion parameters.

    Args:
        source: the samples behind `train_dataset`.
        recipe: says what trains, with which learning rates, and what is asked in an evaluation.
        arguments, keywords: those of PartsTrainer and SFTTrainer.
    """

    def __init__(
        self,
        *arguments: Any,
        source: Conversations | StreamedConversations,
        recipe: RecipeArguments,
        **keywords: Any,
    ) -> None:
        self.source = source
        super().__init__(*arguments, recipe=recipe, **keywords)
        self.throughput = Throughput(self.args.world_size)
        self.add_callback(ProgressLog(plot_history, PLOT_FILE))
        if recipe.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))

    # -- progress ----------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, **keywords: Any) -> Any:
        """As SFTTrainer's; the number of tokens goes on where a checkpoint had it."""
        if resume_from_checkpoint:
            history = state_of(resume_from_checkpoint).log_history
            before = values_by_step(history, "num_tokens")
            if before:
                self._total_train_tokens = list(before.values())[-1]
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **keywords)

    def training_step(self, model: Any, inputs: Any, *rest: Any, **keywords: Any) -> torch.Tensor:
        """As SFTTrainer's, counted."""
        if self.throughput.first_step is None:
            self.throughput.start(self.state.global_step)
        self.throughput.add(inputs)
        return super().training_step(model, inputs, *rest, **keywords)

    def log(self, logs: dict[str, Any], *rest: Any, **keywords: Any) -> None:
        """As SFTTrainer's, with samples, tokens and tiles per second, and the remaining time.

        Of a mixture, also how many times each data set was passed over.
        """
        if "loss" in logs:
            logs = {**logs, **self.throughput.rates()}
            if isinstance(self.source, Mixture):
                epochs = self.source.epochs(float(self.state.epoch or 0))
                logs |= {f"epochs of {name}": round(count, 4) for name, count in epochs.items()}
            seconds = self.throughput.remaining(self.state.global_step, self.state.max_steps)
            if seconds is not None:
                logs["remaining_seconds"] = seconds
        super().log(logs, *rest, **keywords)

    # -- evaluation --------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, *rest: Any, metric_key_prefix: str = "eval", **keywords: Any
    ) -> dict[str, float]:
        """As SFTTrainer's; with `eval_answers` also the share of questions answered right."""
        metrics = super().evaluate(
            eval_dataset, *rest, metric_key_prefix=metric_key_prefix, **keywords
        )
        if self.recipe.eval_answers:
            share = {f"{metric_key_prefix}_right": self._share_right(eval_dataset)}
            metrics.update(share)
            self.log(share)
        return metrics

    def _share_right(self, eval_dataset: Any) -> float:
        """The share of right answers to the first `eval_answers` samples, over all processes."""
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        count = min(self.recipe.eval_answers, len(data))
        mine = range(self.args.process_index, count, self.args.world_size)
        model = self.accelerator.unwrap_model(self.model)
        processor: Any = self.processing_class
        was_training = model.training
        model.eval()
        right = count_right(
            model,
            processor.tokenizer,
            (data[number]["sample"] for number in mine),
            self.recipe.eval_new_tokens,
        )
        model.train(was_training)
        total: Any = self.accelerator.reduce(torch.tensor(right, device=self.accelerator.device))
        return int(total) / count

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """By length where the recipe says so, with an order that depends on the epoch alone."""
        is_by_length = self.args.train_sampling_strategy == "group_by_length"
        if not is_by_length or not isinstance(self.source, Conversations):
            return super()._get_train_sampler(train_dataset)
        lengths = [self.source.length(number) for number in self.source.numbers]
        # The size of a step over all processes, so that their number does not change the order
        samples_of_step = (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size
        )
        return EpochSeededLengthSampler(samples_of_step, lengths, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        """In the order of the data: a mean does not depend on it."""
        return SequentialSampler(eval_dataset)


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
