"""TRL's GRPOTrainer with checkpoints of only what trains, and the completions of each step kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# trl exports its names lazily, which static tools do not see
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.trainer.utils import RepeatSampler

from training.parts_trainer import PartsTrainer
from training.rewards import text_of

COMPLETIONS_FILE = "completions.jsonl"


class GrpoTrainer(PartsTrainer, GRPOTrainer):
    """GRPOTrainer whose checkpoints hold what trains, without the frozen 38 billion parameters.

    Args:
        arguments, keywords: those of PartsTrainer and GRPOTrainer.
    """

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """As GRPOTrainer's, with an order that depends on the epoch alone."""
        args: Any = self.args
        return EpochSeededRepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=args.seed,
        )

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """As GRPOTrainer's; then the completions, with their rewards, go into a file."""
        scored = super()._generate_and_score_completions(inputs)
        if self.is_world_process_zero() and self.model.training:
            self._write_completions(len(inputs) * self.accelerator.num_processes)
        return scored

    def _write_completions(self, count: int) -> None:
        """Append the last completions of TRL's log, a line each; a resumed step writes again."""
        logs: Any = self._logs
        rewards = {name: _last(values, count) for name, values in logs["rewards"].items()}
        advantages = _last(logs["advantages"], count)
        path = Path(str(self.args.output_dir)) / COMPLETIONS_FILE
        with path.open("a", encoding="utf-8") as file:
            for number, completion in enumerate(_last(logs["completion"], count)):
                line = {
                    "step": self.state.global_step,
                    "prompt": prompt_text(_last(logs["prompt"], count)[number]),
                    "completion": text_of(completion),
                    "rewards": {name: values[number] for name, values in rewards.items()},
                    "advantage": advantages[number],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


class EpochSeededRepeatSampler(RepeatSampler):
    """TRL's order of prompts, which here depends only on seed and epoch.

    So a resumed training has the order of an unbroken one.

    Args:
        keywords: those of RepeatSampler.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, whose order comes next; Trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self.epoch)
        return super().__iter__()


def _last(values: Any, count: int) -> list[Any]:
    return list(islice(values, max(0, len(values) - count), None))


def prompt_text(prompt: Any) -> str:
    """The texts of a prompt's messages, with `<image>` for images."""
    texts = []
    for message in prompt:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
            continue
        for part in content:
            texts.append("<image>" if part["type"] == "image" else part["text"])
    return "\n".join(texts)
