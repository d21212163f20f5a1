"""Freezes what a recipe does not train, and shows at the end that it is unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import chain
from typing import Any

import torch

from training.sharded import local_part, reshard

# The rates of Dropout, StochasticDepth and VisionAttention
DROP_RATES = ("p", "rate", "attention_dropout")
WORD_BYTES = 8
ROW_WORDS = 4096  # of the grid that a tensor is summed in
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


def checksums(model: torch.nn.Module) -> dict[str, str]:
    """A hash of the bytes of each parameter and buffer that does not train.

    Where they are sharded, it is of what this process holds of them.
    """
    reshard(model)
    hashes = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        part = local_part(tensor)
        if not tensor.requires_grad and part.numel():
            hashes[strip_wrapper_prefixes(name)] = _checksum(part)
    return hashes


def _checksum(tensor: torch.Tensor) -> str:
    """A hash that changes with the values of a tensor and with their places.

    The bytes are summed as integers of 64 bits along the rows and along the columns of a grid, on
    the tensor's own device and about as fast as they can be read; the sums are hashed.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole_words = len(flat) // WORD_BYTES * WORD_BYTES
    if flat.storage_offset() % WORD_BYTES:
        flat = flat.clone()  # words have to begin at their own multiples
    words = flat[:whole_words].view(torch.int64)
    whole_rows = len(words) // ROW_WORDS * ROW_WORDS
    grid = words[:whole_rows].view(-1, ROW_WORDS)
    content = hashlib.blake2b(digest_size=16)
    for part in (grid.sum(0), grid.sum(1), words[whole_rows:], flat[whole_words:]):
        content.update(part.cpu().numpy().tobytes())
    return content.hexdigest()


def assert_frozen(model: torch.nn.Module, before: dict[str, str]) -> int:
    """Compare what was frozen with `checksums` from before.

    Returns:
        How many tensors were compared.

    Raises:
        RuntimeError: one has changed.
    """
    after = checksums(model)
    compared = before.keys() & after.keys()
    _raise_if_changed([name for name in compared if after[name] != before[name]])
    return len(compared)


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
