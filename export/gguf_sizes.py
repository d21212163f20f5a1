"""Sizes of the GGUF files of a model from its shapes, before anything is converted.

Which matrix gets how many bits follows llama.cpp's rules (src/llama-quant.cpp, for a Qwen2 model
without an importance matrix). A test compares them with files that llama.cpp wrote.
"""

from __future__ import annotations

import math

from export import gguf_text, gguf_writing
from memory import sizes
from remote_code import configuration_skywork_chat

QUANTIZATIONS = ("BF16", "Q8_0", "Q6_K", "Q4_K_M")


def table(config: configuration_skywork_chat.SkyworkChatConfig) -> str:
    """A line for each file: gigabytes, and bits of a weight."""
    text = text_shapes(config)
    parameters = sum(math.prod(shape) for shape in text.values())
    model = sizes.model_without_weights(config)
    vision = sizes.count_parameters(model.vision_model) + sizes.count_parameters(model.mlp1)
    rows = [(f"model-{name}", text_bytes(text, name), parameters) for name in QUANTIZATIONS]
    rows.append(("mmproj-bf16", 2 * vision, vision))
    lines = ["file             GB   bits per weight"]
    for name, size, count in rows:
        lines.append(f"{name:12} {size / sizes.GIGABYTE:6.2f}   {8 * size / count:15.2f}")
    return "\n".join(lines)


def text_shapes(config: configuration_skywork_chat.SkyworkChatConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the language model by llama.cpp's names."""
    names = gguf_text.tensor_names(config)
    language_model = sizes.model_without_weights(config).language_model
    return {
        names.get_name(name, try_suffixes=gguf_writing.SUFFIXES): tuple(tensor.shape)
        for name, tensor in language_model.state_dict().items()
    }


def text_bytes(shapes: dict[str, tuple[int, ...]], quantization: str) -> int:
    """Bytes of tensors of these names and shapes in a file of a quantization."""
    gguf = gguf_writing.library()
    layers = sum(name.endswith("ffn_down.weight") for name in shapes)
    total = 0
    for name, shape in shapes.items():
        kind = "F32" if len(shape) == 1 else _kind(name, layers, quantization)
        total += gguf_writing.stored_bytes(shape, gguf.GGMLQuantizationType[kind])
    return total


def _kind(name: str, layers: int, quantization: str) -> str:
    """The type of a matrix, as `gguf.GGMLQuantizationType` names it.

    Q4_K_M takes six bits for the head, and in half of the layers for the matrices that lose most.
    """
    if quantization != "Q4_K_M":
        return quantization
    if name == "output.weight":
        return "Q6_K"
    is_sensitive = name.endswith(("attn_v.weight", "ffn_down.weight"))
    if is_sensitive and _gets_more_bits(int(name.split(".")[1]), layers):
        return "Q6_K"
    return "Q4_K"


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is in the first or last eighth, or every third of those between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
