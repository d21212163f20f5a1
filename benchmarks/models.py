"""The models that are measured.

They are ours with random weights, and transformers' InternVL over the same tensors.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import InternVLConfig, InternVLForConditionalGeneration

from benchmarks.measure import ROOT
from benchmarks.presets import ModelShape
from remote_code import configuration_skywork_chat, modeling_skywork_chat

# What differs from the root's config (38B). CPU shapes keep widths and cut layers, so that a tile
# takes its real time per layer.
VISION: dict[str, dict[str, Any]] = {
    "6b": {},
    "300m": {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "norm_type": "layer_norm",
        "qk_normalization": False,
        "qkv_bias": True,
    },
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LANGUAGE: dict[str, dict[str, Any]] = {
    "32b": {},
    "0.5b": {  # Qwen2.5-0.5B, but for its tied head
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "nano": {**SMALL, "vocab_size": 1024},
    "small": SMALL,  # with the root's vocabulary
}


# Beginnings of our tensors' names, and what InternVL has instead
INTERNVL_BEGINNINGS = (
    ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (
        "vision_model.embeddings.position_embedding",
        "model.vision_tower.embeddings.position_embeddings",
    ),
    (
        "vision_model.embeddings.patch_embedding",
        "model.vision_tower.embeddings.patch_embeddings.projection",
    ),
    ("vision_model.encoder.layers.", "model.vision_tower.encoder.layer."),
    ("mlp1.0", "model.multi_modal_projector.layer_norm"),
    ("mlp1.1", "model.multi_modal_projector.linear_1"),
    ("mlp1.3", "model.multi_modal_projector.linear_2"),
    ("language_model.model", "model.language_model"),
    ("language_model.lm_head", "lm_head"),
)
# The same for parts of names in the vision tower; the second pair comes after the first
INTERNVL_VISION_PARTS = (
    (".attn.proj", ".attention.projection_layer"),
    (".attn.", ".attention."),
    (".norm1", ".layernorm_before"),
    (".norm2", ".layernorm_after"),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)


# -- ours ------------------------------------------------------------------------------------------


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a name such as "bfloat16"."""
    return getattr(torch, name)


def build_config(
    vision: str,
    language: str,
    vision_layers: int | None = None,
    language_layers: int | None = None,
) -> configuration_skywork_chat.SkyworkChatConfig:
    """The configuration of a model.

    Args:
        vision: a name in `VISION`.
        language: a name in `LANGUAGE`.
        vision_layers: number of layers, if not all of them.
        language_layers: number of layers, if not all of them.
    """
    values = json.loads((ROOT / "config.json").read_text())
    values["vision_config"].update(VISION[vision], initializer_range=0.02)
    values["llm_config"].update(LANGUAGE[language])
    values["image_token_id"] = min(
        values.get("image_token_id", 151667), values["llm_config"]["vocab_size"] - 1
    )
    if vision_layers:
        values["vision_config"]["num_hidden_layers"] = vision_layers
    if language_layers:
        values["llm_config"]["num_hidden_layers"] = language_layers
    values["llm_config"]["max_window_layers"] = values["llm_config"]["num_hidden_layers"]
    return configuration_skywork_chat.SkyworkChatConfig(**values)


def build_ours(
    config: configuration_skywork_chat.SkyworkChatConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> modeling_skywork_chat.SkyworkChatModel:
    """`SkyworkChatModel` with random weights created on the device."""
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = modeling_skywork_chat.SkyworkChatModel(config)
    finally:
        torch.set_default_dtype(default)
    return model.eval()


def build_whole(
    shape: ModelShape, device: str
) -> tuple[
    configuration_skywork_chat.SkyworkChatConfig, modeling_skywork_chat.SkyworkChatModel, str
]:
    """A model with random weights: its configuration, itself, and a name for a row's case."""
    config = build_config(shape.vision, shape.language, shape.vision_layers, shape.language_layers)
    ours = build_ours(config, device, dtype_of(shape.dtype))
    vision = f"InternViT-{shape.vision.upper()} {config.vision_config.num_hidden_layers} layers"
    language = f"Qwen2-{shape.language} {config.llm_config.num_hidden_layers} layers"
    return config, ours, f"{vision} + {language}, {shape.dtype}"


def with_weights_of(model: Any, attention: str) -> Any:
    """Ours once more with another attention implementation, over the same tensors."""
    config = copy.deepcopy(model.config)
    for part in (config, config.vision_config, config.llm_config):
        part._attn_implementation = attention
    with init_empty_weights(include_buffers=False):
        twin = modeling_skywork_chat.SkyworkChatModel(config)
    twin.load_state_dict(model.state_dict(), assign=True)
    return _ready_on(twin, model.device)


def _ready_on(model: Any, device: str | torch.device) -> Any:
    """The model on a device, for inference."""
    return model.to(device).eval()


# -- transformers' InternVL ------------------------------------------------------------------------


def internvl_name(name: str) -> str:
    """transformers' InternVL name of one of our tensors (the joint qkv is split separately)."""
    for ours, theirs in INTERNVL_BEGINNINGS:
        if name.startswith(ours):
            name = theirs + name[len(ours) :]
    if name.startswith("model.vision_tower"):
        for ours, theirs in INTERNVL_VISION_PARTS:
            name = name.replace(ours, theirs)
    return name


def internvl_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under InternVL's names; the parts of a joint qkv are views of it."""
    renamed = {}
    for name, tensor in weights.items():
        if ".attn.qkv." in name:
            for part, value in zip("qkv", tensor.chunk(3)):
                renamed[internvl_name(name).replace("qkv", f"{part}_proj")] = value
        else:
            renamed[internvl_name(name)] = tensor
    return renamed


def internvl_config(
    config: configuration_skywork_chat.SkyworkChatConfig, image_token_id: int
) -> InternVLConfig:
    """transformers' `InternVLConfig` of the same shapes."""
    vision = config.vision_config
    return InternVLConfig(
        vision_config={
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "intermediate_size": vision.intermediate_size,
            "image_size": [vision.image_size] * 2,
            "patch_size": [vision.patch_size] * 2,
            "norm_type": vision.norm_type,
            "use_qk_norm": vision.qk_normalization,
            "attention_bias": vision.qkv_bias,
            "layer_norm_eps": vision.layer_norm_eps,
            "use_mean_pooling": True,
            "hidden_act": vision.hidden_act,
        },
        text_config=config.llm_config.to_dict(),
        image_token_id=image_token_id,
        image_seq_length=config.num_image_token,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )


def build_internvl(
    config: configuration_skywork_chat.SkyworkChatConfig,
    weights: dict[str, torch.Tensor],
    image_token_id: int,
    attention: str = "sdpa",
    device: str = "cpu",
) -> Any:
    """transformers' InternVL over the given tensors (those of ours), without a copy.

    Raises:
        ValueError: tensors that are missing or left over.
    """
    peer_config = internvl_config(config, image_token_id)
    peer_config._attn_implementation = attention
    with init_empty_weights(include_buffers=False):
        model = InternVLForConditionalGeneration(peer_config)
    report = model.load_state_dict(internvl_weights(weights), strict=False, assign=True)
    if report.unexpected_keys or report.missing_keys:
        raise ValueError(f"The weights do not match InternVL's: {report}")
    return _ready_on(model, device)
