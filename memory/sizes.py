"""What the memory calculators for serving and for training share: numbers of parameters and bytes.

Sizes come from a configuration alone. Models are built on the meta device, which needs neither
weights nor a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from remote_code import configuration_skywork_chat, modeling_skywork_chat

ROOT = Path(__file__).resolve().parents[1]
GIGABYTE = 1e9  # as in the name of a card; CUDA reports a little more
CUDA_CONTEXT = 0.9e9  # bytes of a GPU that the context and the libraries' workspaces take
ALLOCATOR_SLACK = 1.05  # factor on everything: what the caching allocator loses to fragments
# A `SkyworkChatModel`; torch declares the modules inside a module too loosely to be checked.
Model = Any
KV_GROUP = 64  # values that share a scale and a zero point in transformers' QuantizedCache


def load_config(path: str | Path) -> configuration_skywork_chat.SkyworkChatConfig:
    """The configuration in a checkpoint's directory, or in a config.json.

    Raises:
        FileNotFoundError: the path is neither.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--model {path}: expected a checkpoint's directory or a config.json."
        )
    return configuration_skywork_chat.SkyworkChatConfig(**json.loads(path.read_text()))


def model_without_weights(config: configuration_skywork_chat.SkyworkChatConfig) -> Model:
    """A model on the meta device, whose tensors have shapes and no memory."""
    with torch.device("meta"):
        return modeling_skywork_chat.SkyworkChatModel(config)


def count_parameters(module: nn.Module) -> int:
    """The number of parameters of a module and all modules inside it."""
    return sum(parameter.numel() for parameter in module.parameters())


def key_value_heads(llm_config: PretrainedConfig) -> int:
    """The number of heads of keys and values in a decoder layer."""
    return llm_config.num_key_value_heads


def kv_bytes_per_token(
    llm_config: PretrainedConfig, dtype_bytes: int, kv_bits: int | None = None
) -> float:
    """Bytes of the key and the value of one token in all decoder layers.

    Args:
        llm_config: of the language model.
        dtype_bytes: bytes of a number in the model's dtype.
        kv_bits: 2 or 4 for a quantized cache, or None for one in the model's dtype.
    """
    head_size = llm_config.hidden_size // llm_config.num_attention_heads
    values = 2 * llm_config.num_hidden_layers * key_value_heads(llm_config) * head_size
    if kv_bits is None:
        return values * dtype_bytes
    return values * (kv_bits / 8 + 2 * dtype_bytes / KV_GROUP)


def vision_working_bytes(
    vision_config: configuration_skywork_chat.SkyworkVisionConfig,
    positions: int,
    dtype_bytes: int,
) -> int:
    """Bytes that the vision tower takes at its widest point while it encodes.

    These are the residual stream, its norm, and the widest pair of tensors that live at once.

    Args:
        vision_config: of the vision tower.
        positions: number of patches and class tokens that are encoded together.
        dtype_bytes: bytes of a number in the activations.
    """
    width = vision_config.hidden_size
    widest_pair = max(2 * vision_config.intermediate_size, 7 * width)
    return positions * (2 * width + widest_pair) * dtype_bytes
