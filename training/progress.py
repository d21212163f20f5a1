"""What a training says of itself while it runs: log.jsonl, a plot, throughput, remaining time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import durable

LOG_FILE = "log.jsonl"
PLOT_FILE = "loss.png"
REWARD_PLOT_FILE = "rewards.png"
# What a plot of GRPO shows below the rewards: (label of the axis, keys of the log with their names)
PANELS_OF_REWARDS = (
    ("tokens", {"completions/mean_length": "mean length of completions"}),
    (
        "share",
        {
            "frac_reward_zero_std": "groups without signal",
            "clip_ratio/region_mean": "clipped tokens",
            "groups_from_buffer": "groups from the buffer",
        },
    ),
    ("nats", {"entropy": "entropy of a token", "kl": "KL to the start"}),
)
AVERAGED_LOSSES = 20  # in a point of the plot's second line
LOGARITHMIC_FROM = 10  # times that the highest loss is above the lowest


class Throughput:
    """Samples, tokens and tiles per second since the last time that it was asked.

    Args:
        processes: number of them; each counts its own, and all are taken to be alike.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.started = time.monotonic()
        self.first_step: int | None = None
        self._reset()

    def _reset(self) -> None:
        self.since = time.monotonic()
        self.counts = {"samples": 0, "tokens": 0, "tiles": 0}

    def add(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch: its samples, the tokens that are not padding, and its tiles."""
        if "position_ids" in inputs:  # samples are packed, and each begins at position 0
            self.counts["samples"] += int((inputs["position_ids"] == 0).sum())
            self.counts["tokens"] += inputs["input_ids"].numel()
        else:
            self.counts["samples"] += len(inputs["input_ids"])
            self.counts["tokens"] += int(inputs["attention_mask"].sum())
        if "pixel_values" in inputs:
            self.counts["tiles"] += len(inputs["pixel_values"])

    def rates(self) -> dict[str, float]:
        """`samples_per_second` and so on; then the counts start again."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        rates = {}
        for name, count in self.counts.items():
            rates[f"{name}_per_second"] = round(self.processes * count / seconds, 2)
        self._reset()
        return rates

    def remaining(self, step: int, last_step: int) -> int | None:
        """Seconds until the last step at the speed so far; None at the start."""
        if self.first_step is None or step <= self.first_step:
            return None
        seconds_of_step = (time.monotonic() - self.started) / (step - self.first_step)
        return round((last_step - step) * seconds_of_step)

    def start(self, step: int) -> None:
        """Begin to measure at a step, which is not 0 where a training goes on."""
        self.started = time.monotonic()
        self.first_step = step
        self._reset()


class ProgressLog(TrainerCallback):
    """Writes log.jsonl line by line, and the plot at every checkpoint.

    Lines of steps after the checkpoint that a training goes on from are written anew.

    Args:
        plot: draws a history into a file, such as `plot_history`.
        plot_file: the name of that file.
    """

    def __init__(self, plot: Callable[[list[dict[str, Any]], Path], None], plot_file: str) -> None:
        self.plot = plot
        self.plot_file = plot_file

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Write what the checkpoint knows."""
        if state.is_world_process_zero:
            Path(str(args.output_dir)).mkdir(parents=True, exist_ok=True)
            write_log(state.log_history, args.output_dir)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the newest entry."""
        if state.is_world_process_zero:
            with open(Path(str(args.output_dir)) / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Draw what there is."""
        if state.is_world_process_zero:
            self.plot(state.log_history, Path(str(args.output_dir)) / self.plot_file)


def write_log(history: list[dict[str, Any]], folder: str | Path | None) -> None:
    """Write the whole history of a Trainer, an entry on each line."""
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    durable.write_text(Path(str(folder)) / LOG_FILE, lines)


def values_by_step(history: list[dict[str, Any]], key: str) -> dict[int, float]:
    """The values of a key in a Trainer's history, such as "loss", by optimizer step."""
    return {entry["step"]: entry[key] for entry in history if key in entry}


def plot_history(history: list[dict[str, Any]], path: Path) -> None:
    """Write a plot of losses, their running mean, evaluations and learning rate as PNG."""
    plt = plotting()
    losses = values_by_step(history, "loss")
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(list(losses), list(losses.values()), alpha=0.35, label="loss of answers")
    means = running_mean(list(losses.values()), AVERAGED_LOSSES)
    axes.plot(list(losses), means, color="C0", label=f"mean of {AVERAGED_LOSSES}")
    evaluations = values_by_step(history, "eval_loss")
    if evaluations:
        axes.plot(
            list(evaluations), list(evaluations.values()), "o-", color="C1", label="evaluation"
        )
    positive = [loss for loss in [*losses.values(), *evaluations.values()] if loss > 0]
    if positive and max(positive) > LOGARITHMIC_FROM * min(positive):
        axes.set_yscale("log")
    axes.set(xlabel="optimizer step", ylabel="loss", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    rates = values_by_step(history, "learning_rate")
    rate_axes = axes.twinx()
    rate_axes.plot(list(rates), list(rates.values()), color="grey", linewidth=0.8)
    rate_axes.set_ylabel("learning rate", color="grey")
    write_figure(figure, path)


def plot_rewards(history: list[dict[str, Any]], path: Path) -> None:
    """Write a plot of rewards, lengths, signal, entropy and KL by step as PNG."""
    plt = plotting()
    figure, panels = plt.subplots(1 + len(PANELS_OF_REWARDS), sharex=True, figsize=(7, 10))
    rewards = {"reward": "sum"}
    for key in sorted({key for entry in history for key in entry}):
        if key.startswith("rewards/") and key.endswith("/mean"):
            rewards[key] = key.removeprefix("rewards/").removesuffix("/mean")
    for axes, (unit, lines) in zip(panels, (("mean reward", rewards), *PANELS_OF_REWARDS)):
        for key, label in lines.items():
            values = values_by_step(history, key)
            if values:
                axes.plot(list(values), list(values.values()), label=label)
        axes.set(ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set(title=path.parent.name)
    panels[-1].set(xlabel="optimizer step")
    write_figure(figure, path)


def plotting() -> Any:
    """matplotlib without a display; it is imported where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, and give its memory back."""
    figure.tight_layout()
    with durable.writing(path) as file:
        figure.savefig(file, format="png")
    plotting().close(figure)


def running_mean(values: list[float], count: int) -> list[float]:
    """For each value the mean of it and of the values before it, `count` at most."""
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - count) : end]
        means.append(sum(window) / len(window))
    return means
