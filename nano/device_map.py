"""Which module goes on which GPU, for `device_map="split"`.

    model = AutoModel.from_pretrained(path, device_map="split", trust_remote_code=True)

The vision tower, the projector, the embeddings and the head go on the first GPU, and whole decoder
layers are spread over all of them. `split_layers` and `build_device_map` are pure functions of
sizes in bytes, which also plan for machines that are not at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

FIRST_GPU_MODULES = (
    "vision_model",
    "mlp1",
    "language_model.model.embed_tokens",
    "language_model.model.norm",
    "language_model.model.rotary_emb",
    "language_model.lm_head",
)
LAYERS = "language_model.model.layers"
# The model card's split_model() names these, which no version of the model has had.
NAMES_OF_OTHER_MODELS = ("language_model.model.tok_embeddings", "language_model.output")
GIB = 2**30
# Of a GPU, for activations and cache. It decides where layers go; memory/serving_parts.py says what
# activations and cache take.
RESERVED_SHARE = 0.1


def split_layers(
    layer_sizes: Sequence[int], first_size: float, memory: Sequence[float]
) -> list[int]:
    """How many consecutive layers each GPU holds, so that the fullest GPU is as empty as possible.

    A GPU's share is what it holds, divided by what it has. Layers are given one by one to the GPU
    whose share they raise least. For layers of one size, as those of a Qwen2, that is optimal.

    Args:
        layer_sizes: bytes of each decoder layer.
        first_size: bytes of everything else, all of it on the first GPU.
        memory: usable bytes of each GPU.

    Returns:
        A number of layers for each GPU.

    Raises:
        ValueError: no GPU, or a model that does not fit.
    """
    if not memory:
        raise ValueError(
            "No GPU to split the model over: memory is empty. Load with device_map='cpu' or none "
            "at all."
        )
    if first_size > memory[0]:
        raise ValueError(
            f"GPU 0 has {memory[0] / GIB:.1f} GiB to use but the vision tower, projector, "
            f"embeddings and head take {first_size / GIB:.1f} GiB: put the largest GPU first "
            "(CUDA_VISIBLE_DEVICES) or load quantized."
        )
    largest = max(layer_sizes)
    loads = [first_size] + [0] * (len(memory) - 1)
    counts = [0] * len(memory)
    for _ in layer_sizes:
        fitting = [gpu for gpu, load in enumerate(loads) if load + largest <= memory[gpu]]
        if not fitting:
            sizes = ", ".join(f"{size / GIB:.1f}" for size in memory)
            raise ValueError(
                f"The model takes {(first_size + sum(layer_sizes)) / GIB:.1f} GiB and does not fit "
                f"the {sum(memory) / GIB:.1f} GiB of {len(memory)} GPUs ({sizes}) in whole layers "
                f"of {largest / GIB:.2f} GiB: add GPUs, load quantized, or use device_map='auto' "
                "to offload."
            )
        gpu = min(fitting, key=lambda index: (loads[index] + largest) / memory[index])
        loads[gpu] += largest
        counts[gpu] += 1
    return counts


def build_device_map(counts: Sequence[int], offload_vision: bool = False) -> dict[str, Any]:
    """A device map for the result of `split_layers`: layers in order, everything else on GPU 0.

    Args:
        offload_vision: the vision tower's weights stay in host memory; accelerate brings those of
            each module to the GPU for as long as it computes.
    """
    device_map: dict[str, Any] = dict.fromkeys(FIRST_GPU_MODULES, 0)
    if offload_vision:
        device_map["vision_model"] = "cpu"
    layer = 0
    for gpu, count in enumerate(counts):
        for _ in range(count):
            device_map[f"{LAYERS}.{layer}"] = gpu
            layer += 1
    return device_map


def module_sizes(
    model: Any,
    layer_bytes: float = 2,
    other_bytes: float = 2,
    offload_vision: bool = False,
) -> tuple[list[int], float]:
    """Bytes of each decoder layer, and of all else, of a model that may be on the meta device.

    Args:
        layer_bytes: bytes of a parameter in the decoder layers, which quantization shrinks.
        other_bytes: bytes of any other parameter.
        offload_vision: leave the vision tower out.
    """
    layers = [_count_parameters(layer) for layer in model.language_model.model.layers]
    others = _count_parameters(model) - sum(layers)
    if offload_vision:
        others -= _count_parameters(model.vision_model)
    return [math.ceil(layer_bytes * layer) for layer in layers], other_bytes * others


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def free_memory(reserve: float = RESERVED_SHARE) -> list[int]:
    """Bytes of every visible GPU that weights may take.

    That is what is free, less a share for activations and cache.
    """
    gpus = range(torch.cuda.device_count())
    return [int(torch.cuda.mem_get_info(gpu)[0] * (1 - reserve)) for gpu in gpus]


def clean_device_map(device_map: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """A user's device map without the names that this model does not have.

    The model card's `split_model()` names two modules of other models, and more layers than there
    are. It may leave out the rotary embedding, which has no weights but, from transformers 4.48 on,
    a place of its own.
    """
    cleaned = {
        name: device
        for name, device in device_map.items()
        if name not in NAMES_OF_OTHER_MODELS and not _is_surplus_layer(name, num_layers)
    }
    embeddings = cleaned.get("language_model.model.embed_tokens")
    if embeddings is not None:
        cleaned.setdefault("language_model.model.rotary_emb", embeddings)
    return cleaned


def _is_surplus_layer(name: str, num_layers: int) -> bool:
    prefix = f"{LAYERS}."
    if not name.startswith(prefix):
        return False
    index = name[len(prefix) :].split(".")[0]
    return index.isdigit() and int(index) >= num_layers


def device_of_embedding(embedding: Any) -> torch.device:
    """Where token ids have to be for an embedding: its device.

    Where accelerate has offloaded its weights, it is the device on which its hook computes.
    """
    if embedding.weight.device.type != "meta":
        return embedding.weight.device
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu") if device is None else torch.device(device)
