"""Freezes what a recipe does not train, and shows at the end that it is unchanged."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import Checkpoint

# The rates of Dropout, StochasticDepth and VisionAttention
DROP_RATES = ("p", "rate", "attention_dropout")
# Integers of the size of a dtype, by the number of bytes
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What PEFT, DDP and torch.compile put around modules, as parts of a parameter's name
WRAPPERS = ("base_model.model.", "original_module.", "module.", "_orig_mod.", "base_layer.")


def freeze(model: Any, train: Collection[str]) -> None:
    """Leave only the named parts trainable; LoRA's matrices are added later.

    A frozen vision tower drops nothing at random either: the projector has to learn from the
    features of inference.

    Args:
        model: changed in place.
        train: names of `training.parts.TRAINABLE`.
    """
    if "vision_model" not in train:
        for module in model.vision_model.modules():
            _drop_nothing(module)
    model.requires_grad_(False)
    for part in ("mlp1", "vision_model", "language_model"):
        getattr(model, part).requires_grad_(part in train)


def _drop_nothing(module: torch.nn.Module) -> None:
    for rate in DROP_RATES:
        if hasattr(module, rate):
            setattr(module, rate, 0.0)


def checksums(model: torch.nn.Module) -> dict[str, int]:
    """A number for the bytes of each parameter and buffer that does not train."""
    numbers = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not tensor.requires_grad and tensor.numel():
            numbers[name] = _checksum(tensor)
    return numbers


def _checksum(tensor: torch.Tensor, block: int = 1 << 24) -> int:
    """A number that changes with the values of a tensor and with their places.

    Args:
        block: number of elements that are in memory as 64-bit integers at a time.
    """
    flat = tensor.detach().contiguous().view(-1).view(INTEGERS[tensor.element_size()])
    total = 0
    for start in range(0, len(flat), block):
        part = flat[start : start + block].to(torch.int64)
        weights = torch.arange(len(part), device=part.device) % 65_521 + 1 + start // block
        total = (total * 31 + int((part * weights).sum())) & (2**63 - 1)
    return total


def assert_frozen(model: torch.nn.Module, before: dict[str, int]) -> int:
    """Compare what was frozen with `checksums` from before.

    Returns:
        How many tensors were compared.

    Raises:
        RuntimeError: one has changed.
    """
    compared = 0
    changed = []
    for wrapped_name, number in checksums(model).items():
        name = strip_wrapper_prefixes(wrapped_name)
        if name not in before:
            continue
        compared += 1
        if number != before[name]:
            changed.append(name)
    _raise_if_changed(changed)
    return compared


def assert_frozen_as_loaded(
    state_dict: dict[str, torch.Tensor], folder: str | Path, trainable: Iterable[str]
) -> int:
    """Compare what was frozen with the files of a model, where no process holds a whole model.

    Args:
        state_dict: all weights, gathered.
        folder: directory of the files that the model was loaded from.
        trainable: names of the weights that have trained.

    Returns:
        How many tensors were compared.

    Raises:
        RuntimeError: one has changed.
    """
    source = Checkpoint(folder)
    loaded_names = set(source.names)
    compared = 0
    changed = []
    for name in state_dict.keys() - set(trainable):
        loaded_name = strip_wrapper_prefixes(name)
        if loaded_name not in loaded_names:
            continue
        compared += 1
        tensor = state_dict[name].cpu()
        if not torch.equal(tensor, source.read(loaded_name).to(tensor.dtype)):
            changed.append(name)
    _raise_if_changed(changed)
    return compared


def _raise_if_changed(names: Collection[str]) -> None:
    if names:
        raise RuntimeError(
            f"{len(names)} frozen tensors have changed, such as {min(names)}; this must not happen."
        )


def strip_wrapper_prefixes(name: str) -> str:
    """A parameter's name as the model has it, without what PEFT and other wrappers have added."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
