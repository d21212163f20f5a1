"""What the nano trainings that are not on TRL share: schedule, optimizers, log.

They teach a network of a few million parameters from nothing, on a CPU or a GPU; Muon learns in
half the steps of AdamW. The stages of the report are on TRL (`training.sft`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from remote_code import modeling_intern_vit

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# A CPU without bf16 units converts the operands of every product, and takes several times as long
# for bf16 as for float32.
HAS_BF16_UNITS = DEVICE.type == "cuda" or modeling_intern_vit.CPU_HAS_BF16_UNITS
FAST_DTYPE = torch.bfloat16 if HAS_BF16_UNITS else torch.float32
FAST_DTYPE_NAME = str(FAST_DTYPE).removeprefix("torch.")
WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 1.0


def mixed_precision() -> torch.autocast:
    """Forward passes in bf16, with float32 weights, where that is faster on this device."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=FAST_DTYPE is torch.bfloat16)


def attention() -> str:
    """The faster attention at these lengths: with materialised weights on a CPU."""
    if DEVICE.type == "cuda":
        return "sdpa"
    return "eager"


def num_workers(share: float) -> int:
    """Processes that make samples: one beside a CPU's training, a share of the cores beside a GPU.

    Args:
        share: of the cores, in (0, 1].
    """
    if DEVICE.type == "cpu":
        return 1
    return max(1, int(share * (os.cpu_count() or 1)))


def on_device(batch: Any) -> Any:
    """A named tuple of tensors, each of them on the device of the training."""
    return type(batch)(*(tensor.to(DEVICE, non_blocking=True) for tensor in batch))


def schedule(progress: float, warmup: float = 0.03, decay: float = 0.6) -> float:
    """Factor of the learning rate: linear up, flat, linear down to zero.

    Args:
        progress: share of the steps that are done, in [0, 1].
        warmup: share of the steps in which it goes up.
        decay: share of the steps in which it goes down.
    """
    return max(0.0, min(1.0, progress / warmup, (1 - progress) / decay))


def optimizers_for(
    modules: Iterable[nn.Module], lr: float, betas: tuple[float, float] = (0.9, 0.98)
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the hidden layers, AdamW for everything else.

    Muon's step (K. Jordan, 2024) is scaled to the size of AdamW's, so that one learning rate serves
    both. Everything else is embeddings, heads, biases and gains.
    """
    hidden = []
    other_matrices = []
    vectors = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() == 2 and "layers." in name:
                hidden.append(parameter)
            elif parameter.dim() > 1:
                other_matrices.append(parameter)
            else:
                vectors.append(parameter)
    groups = [
        {"params": other_matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    muon = torch.optim.Muon(
        hidden, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


class KeepFloat32(TorchFunctionMode):
    """Within this context `Tensor.bfloat16()` copies a tensor and keeps its dtype.

    torch's Muon multiplies in bf16 whatever the CPU. Without bf16 units a step of the encoder then
    takes 17 seconds instead of 3.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or copy the tensor where it asks for bf16."""
        if func is torch.Tensor.bfloat16:
            return args[0].clone()
        return func(*args, **(kwargs or {}))


def step(
    optimizers: Iterable[torch.optim.Optimizer], parameters: list[nn.Parameter], lr: float
) -> None:
    """Clip the gradients, take a step of every optimizer at this learning rate, and zero them."""
    nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    fast_products: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if FAST_DTYPE is torch.float32:
        fast_products = KeepFloat32()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        with fast_products:
            optimizer.step()
        optimizer.zero_grad()


class Log:
    """Means of what was measured since the last line, in a file and beside the progress bar.

    Args:
        path: of the file, log.jsonl, to which lines are appended.
        stage: what is trained.
        steps: of the whole training.
        done: steps of an earlier run.
        every: steps between two lines.
    """

    def __init__(self, path: Path, stage: str, steps: int, done: int = 0, every: int = 50) -> None:
        self.path = path
        self.stage = stage
        self.every = every
        self.bar = tqdm(total=steps, initial=done, desc=stage, unit="step", mininterval=5)
        self.start = time.time()
        self.count = done
        self.values: dict[str, list[float]] = {}

    def update(self, **figures: float | torch.Tensor) -> None:
        """Add what a step has measured, by name."""
        self.count += 1
        self.bar.update()
        for name, value in figures.items():
            if isinstance(value, torch.Tensor):
                value = value.detach()
            self.values.setdefault(name, []).append(float(value))
        if self.count % self.every == 0 or self.count == self.bar.total:
            self._write()

    def _write(self) -> None:
        means: dict[str, float] = {"seconds": round(time.time() - self.start)}
        for name, values in self.values.items():
            means[name] = round(sum(values) / len(values), 4)
        self.values = {}
        self.bar.set_postfix(means)
        record = {"stage": self.stage, "step": self.count, **means}
        with open(self.path, "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
