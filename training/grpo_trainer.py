"""TRL's GRPOTrainer with checkpoints of only what trains, and the completions of each step kept."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# trl exports its names lazily, which static tools do not see
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.trainer.utils import RepeatSampler

import durable
from training import grpo_vllm
from training.grpo_recipe import GrpoArguments, GrpoConfig
from training.parts_trainer import PartsTrainer
from training.progress import REWARD_PLOT_FILE, ProgressLog, plot_rewards
from training.rewards import text_of
from training.sample_buffer import SampleBuffer
from training.sharded import Weights, local_part, trained_parameters

COMPLETIONS_FILE = "completions.jsonl"


class GrpoTrainer(PartsTrainer, GRPOTrainer):
    """GRPOTrainer whose checkpoints hold what trains, without the frozen 38 billion parameters.

    Args:
        model: of which some parameters train.
        args: settings of TRL.
        recipe: says what trains, and whether there is a buffer of samples.
        keywords: those of PartsTrainer and GRPOTrainer.
    """

    def __init__(
        self, model: Any, args: GrpoConfig, recipe: GrpoArguments, **keywords: Any
    ) -> None:
        # TRL would load the whole model once more for the KL term. Adapters need no copy there.
        beta = args.beta
        needs_reference = beta != 0 and keywords.get("peft_config") is None
        if needs_reference:
            args = copy.copy(args)
            args.beta = 0.0
        super().__init__(model, args=args, recipe=recipe, **keywords)
        if needs_reference:
            args.beta = self.beta = beta
            self.ref_model = StartingModel(self.accelerator.unwrap_model(self.model))
        if self.accelerator.num_processes > 1:
            # TRL gathers the images of every process, and one whose questions have none takes no
            # part: all would wait forever.
            self.log_multimodal = False
        if args.use_vllm:
            processor: Any = self.processing_class
            unwrapped = self.accelerator.unwrap_model(self.model)
            grpo_vllm.prepare(self.vllm_generation, unwrapped, processor.tokenizer)
        self.add_callback(ProgressLog(plot_rewards, REWARD_PLOT_FILE))
        self.add_callback(ForgetLaterCompletions())
        self.sample_buffer: SampleBuffer | None = None
        if recipe.sample_buffer:
            seed = self.args.seed + self.args.process_index
            size: Any = self.num_generations
            self.sample_buffer = SampleBuffer(recipe.sample_buffer, size, seed)

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
        """As GRPOTrainer's; the completions go into a file, and groups into the buffer."""
        scored = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return scored
        images = gather_object([row["image_paths"] for row in inputs])
        if self.is_world_process_zero():
            self._write_completions(images)
        if self.sample_buffer is None:
            return scored
        if scored.get("old_per_token_logps") is None:
            scored["old_per_token_logps"] = self._log_probabilities(scored)
        scored, share = self.sample_buffer.exchange(scored)
        gather: Any = self.accelerator.gather
        scored["num_items_in_batch"] = gather(scored["completion_mask"].sum()).sum()
        share_here = torch.tensor(share, device=self.accelerator.device)
        self._metrics["train"]["groups_from_buffer"].append(gather(share_here).mean().item())
        return scored

    @torch.no_grad()
    def _log_probabilities(self, batch: dict[str, Any]) -> torch.Tensor:
        """Of the completions (rows, tokens), by the model that has just written them.

        A group may come again after the model has changed. Its ratio is to these.
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        images = {name: batch.get(name) for name in ("pixel_values", "num_images", "num_tiles")}
        found, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            ids,
            mask,
            batch["completion_ids"].shape[1],
            batch_size=self.args.per_device_train_batch_size,
            **images,
        )
        return found

    def _write_completions(self, images: list[list[str]]) -> None:
        """Append the last completions of TRL's log, a line each.

        Args:
            images: files of each completion's prompt, of all processes.
        """
        logs: Any = self._logs
        count = len(images)
        rewards = {name: _last(values, count) for name, values in logs["rewards"].items()}
        advantages = _last(logs["advantages"], count)
        prompts = _last(logs["prompt"], count)
        path = Path(str(self.args.output_dir)) / COMPLETIONS_FILE
        with path.open("a", encoding="utf-8") as file:
            for number, completion in enumerate(_last(logs["completion"], count)):
                line = {
                    "step": self.state.global_step,
                    "prompt": prompt_text(prompts[number]),
                    "images": images[number],
                    "completion": text_of(completion),
                    "rewards": {
                        # NaN is TRL's for a completion that a reward says nothing about.
                        name: None if math.isnan(values[number]) else values[number]
                        for name, values in rewards.items()
                    },
                    "advantage": advantages[number],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    # -- the reference -----------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As PartsTrainer's; the reference is what was there before."""
        self._keep_reference()
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(self, *arguments: Any, **keywords: Any) -> tuple[Any, Any]:
        """As PartsTrainer's; then each process has its part of the reference."""
        prepared = super()._prepare_for_training(*arguments, **keywords)
        self._keep_reference()
        return prepared

    def _keep_reference(self) -> None:
        """Take the model as it is for the reference, unless that is done."""
        if self.ref_model is not None and not self.ref_model.weights:
            self.ref_model.keep()

    # -- the buffer in checkpoints -----------------------------------------------------------------

    def _save_rng_state(self, output_dir: str) -> None:
        """As Trainer's, for every process; then its buffer."""
        super()._save_rng_state(output_dir)
        if self.sample_buffer is not None:
            torch.save(self.sample_buffer.state(), self._buffer_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As Trainer's, for every process; then its buffer."""
        super()._load_rng_state(checkpoint)
        if self.sample_buffer is not None and checkpoint is not None:
            file = self._buffer_file(checkpoint)
            self.sample_buffer.load(torch.load(file, map_location="cpu", weights_only=True))

    def _buffer_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"sample_buffer_{self.args.process_index}.pt"


class StartingModel:
    """A model as it was at the start of its training: the reference of the KL term.

    What is frozen has not changed since. So this is the model itself, with the weights of the start
    in the place of what trains while it computes.

    Args:
        model: that trains; under FSDP2, each process has its part of the weights.

    Attributes:
        weights: those of the start by name, or this process's part of them; none before `keep`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.weights: Weights = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Take the model as it is for that of the start."""
        for name, parameter in trained_parameters(self.model):
            self.weights[name] = local_part(parameter).detach().clone()

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """What the model at the start gives for these inputs, without gradients."""
        self._exchange()
        try:
            return self.model(**inputs)
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Exchange the weights of the start and those of now, one by one."""
        for name, parameter in trained_parameters(self.model):
            part = local_part(parameter)
            now = part.clone()
            part.copy_(self.weights[name])
            self.weights[name] = now


class ForgetLaterCompletions(TrainerCallback):
    """Removes the completions of steps that a training does again after an interruption."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep those from before the checkpoint that the training goes on from."""
        path = Path(str(args.output_dir)) / COMPLETIONS_FILE
        if not state.is_world_process_zero or not path.exists():
            return
        durable.drop_half_line(path)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] < state.global_step]
        if len(kept) < len(lines):
            durable.write_text(path, "".join(kept))


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
