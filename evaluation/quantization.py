"""Ways to load a model with quantized decoder layers, by name, and what the weights then take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TorchAoConfig


def _not_quantized() -> dict[str, Any]:
    return {}


def _bitsandbytes_int8() -> dict[str, Any]:
    return {"load_in_8bit": True, "device_map": "cpu"}


def _bitsandbytes_nf4() -> dict[str, Any]:
    return {"load_in_4bit": True, "device_map": "cpu"}


def _torchao_int8() -> dict[str, Any]:
    from torchao.quantization import Int8WeightOnlyConfig

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "device_map": "cpu"}


def _torchao_int4() -> dict[str, Any]:
    # Int4WeightOnlyConfig has kernels for GPUs only. This one computes the same values and stores a
    # byte for each.
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    # The type stubs of torch do not list its dtypes of few bits.
    int4 = torch.int4  # pyright: ignore[reportAttributeAccessIssue]
    config = IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(32))
    return {"quantization_config": TorchAoConfig(config), "device_map": "cpu"}


# Each gives the keywords of from_pretrained.
QUANTIZATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": _not_quantized,
    "bitsandbytes int8": _bitsandbytes_int8,
    "bitsandbytes nf4": _bitsandbytes_nf4,
    "torchao int8": _torchao_int8,
    "torchao int4": _torchao_int4,
}


def stored_bytes(module: nn.Module) -> int:
    """Bytes that a module's parameters take, with the scales of those that are quantized."""
    total = 0
    for parameter in module.parameters():
        total += _tensor_bytes(parameter) + _scale_bytes(parameter)
    return total


def _tensor_bytes(tensor: Any) -> int:
    """Bytes of a tensor; torchao's are made of several tensors, scales among them."""
    names = getattr(tensor, "tensor_data_names", None)
    if names is None:
        return tensor.nbytes
    return sum(getattr(tensor, name).nbytes for name in names)


def _scale_bytes(parameter: Any) -> int:
    """Bytes of the scales that bitsandbytes keeps beside a parameter."""
    total = 0
    state = getattr(parameter, "quant_state", None)  # 4 bit
    if state is not None:
        total += state.absmax.nbytes + state.code.nbytes
        if state.nested:  # the scales are quantized, too
            total += state.state2.absmax.nbytes + state.state2.code.nbytes
    row_scales = getattr(parameter, "SCB", None)  # 8 bit
    if row_scales is not None:
        total += row_scales.nbytes
    return total
