"""Ways to load a model with quantized decoder layers, by name, and what the weights then take."""

import torch
from transformers import TorchAoConfig


def _torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "device_map": "cpu"}


def _torchao_int4():
    # Int4WeightOnlyConfig has kernels for GPUs only; this one computes the same values and stores a byte each
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    return {"quantization_config": TorchAoConfig(config), "device_map": "cpu"}


# Keywords of from_pretrained
QUANTIZATIONS = {
    "none": dict,
    "bitsandbytes int8": lambda: {"load_in_8bit": True, "device_map": "cpu"},
    "bitsandbytes nf4": lambda: {"load_in_4bit": True, "device_map": "cpu"},
    "torchao int8": _torchao_int8,
    "torchao int4": _torchao_int4,
}


def stored_bytes(module):
    """Bytes that a module's parameters take, with the scales of those that are quantized."""
    total = 0
    for parameter in module.parameters():
        total += _tensor_bytes(parameter)
        state = getattr(parameter, "quant_state", None)  # bitsandbytes, 4 bit
        if state is not None:
            nested = [state.state2.absmax, state.state2.code] if state.nested else []
            total += sum(tensor.nbytes for tensor in (state.absmax, state.code, *nested))
        scales = getattr(parameter, "SCB", None)  # bitsandbytes, 8 bit
        total += scales.nbytes if scales is not None else 0
    return total


def _tensor_bytes(tensor):
    if hasattr(tensor, "tensor_data_names"):  # torchao: a tensor made of tensors
        return sum(getattr(tensor, name).nbytes for name in tensor.tensor_data_names)
    return tensor.nbytes
