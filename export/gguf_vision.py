"""The vision tower and projector of a checkpoint as llama.cpp knows InternVL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from export.gguf_writing import GgufContent, library, named_tensor
from training.checkpoint import Checkpoint

# llama.cpp computes RMSNorm in the vision part of this width and depth, and LayerNorm otherwise
# (tools/mtmd/models/internvl.cpp).
RMS_NORM_SHAPE = (3200, 45)


def vision_file(model: Path, config: PretrainedConfig) -> GgufContent:
    """The content of the vision part's file.

    Args:
        model: the checkpoint's directory.
        config: of the checkpoint.

    Raises:
        FileNotFoundError: no weights, or no preprocessor_config.json.
        ValueError: a setting that llama.cpp does not compute, or a tensor without a name there.
    """
    _check(config)
    settings_path = model / "preprocessor_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    checkpoint = Checkpoint(model)
    gguf = library()
    # The table knows mlp1.3, the projector's last layer, from four layers on.
    layers = max(4, config.vision_config.num_hidden_layers)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    tensors = []
    for name in checkpoint.names:
        if not name.startswith(("vision_model.", "mlp1.")):
            continue
        for source, shape, read in _parts(checkpoint, name):
            tensors.append(named_tensor(names, source, shape, read, name))

    def describe(writer: Any) -> None:
        _describe(writer, config, settings)

    return GgufContent("clip", "mmproj", model.resolve().name, describe, tensors)


def differences(config: PretrainedConfig) -> list[str]:
    """What llama.cpp would compute otherwise in a checkpoint's vision part, one sentence each."""
    vision_config = config.vision_config
    shape = (vision_config.hidden_size, vision_config.num_hidden_layers)
    is_rms_norm = vision_config.norm_type == "rms_norm"
    if is_rms_norm == (shape == RMS_NORM_SHAPE):
        return []
    theirs = "RMSNorm" if shape == RMS_NORM_SHAPE else "LayerNorm"
    return [
        f"llama.cpp computes {theirs} in a vision part of {shape[0]} × {shape[1]}, and this "
        f"checkpoint has norm_type={vision_config.norm_type!r}: its answers about pictures will be "
        "wrong there. Answers about words are not affected."
    ]


def _check(config: PretrainedConfig) -> None:
    """Raise ValueError for settings that llama.cpp's class does not compute."""
    expected = {
        "select_layer": (config.select_layer, -1),
        "ps_version": (config.ps_version, "v2"),
        "vision_config.hidden_act": (config.vision_config.hidden_act, "gelu"),
    }
    for name, (value, supported) in expected.items():
        if value != supported:
            raise ValueError(
                f"{name}={value!r} is not computed by llama.cpp: it has {supported!r}."
            )


def _parts(
    checkpoint: Checkpoint, name: str
) -> Iterator[tuple[str, tuple[int, ...], partial[torch.Tensor]]]:
    """The tensors that one becomes: name for the library's table, shape, and how to read it.

    llama.cpp keeps query, key and value apart where queries and keys are normalized over all heads.
    """
    source = f"vision_tower.{name}" if name.startswith("vision_model.") else name
    if name.endswith((".ls1", ".ls2", ".position_embedding")):
        source += ".weight"
    shape = checkpoint.shape(name)
    if ".attn.qkv." not in name:
        if shape[0] == 1:  # class and position embedding have one row for every tile
            shape = tuple(size for size in shape if size != 1)
        yield source, shape, partial(checkpoint.read, name)
        return
    rows = shape[0] // 3
    for index, letter in enumerate("qkv"):
        part = source.replace("attn.qkv", f"self_attn.{letter}_proj")
        read = partial(_read_rows, checkpoint, name, index * rows, rows)
        yield part, (rows, *shape[1:]), read


def _read_rows(checkpoint: Checkpoint, name: str, first: int, count: int) -> torch.Tensor:
    return checkpoint.read(name)[first : first + count]


def _describe(writer: Any, config: PretrainedConfig, settings: dict[str, Any]) -> None:
    """Add shapes and the image processor's settings to a `gguf.GGUFWriter`."""
    vision_config = config.vision_config
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(library().VisionProjectorType.INTERNVL)
    writer.add_vision_projection_dim(config.llm_config.hidden_size)
    writer.add_vision_image_size(vision_config.image_size)
    writer.add_vision_patch_size(vision_config.patch_size)
    writer.add_vision_embedding_length(vision_config.hidden_size)
    writer.add_vision_feed_forward_length(vision_config.intermediate_size)
    writer.add_vision_block_count(vision_config.num_hidden_layers)
    writer.add_vision_head_count(vision_config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision_config.layer_norm_eps)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(config.shuffle_factor)
    writer.add_vision_preproc_min_tiles(config.min_dynamic_patch)
    writer.add_vision_preproc_max_tiles(config.max_dynamic_patch)
    writer.add_vision_image_mean(settings["image_mean"])
    writer.add_vision_image_std(settings["image_std"])
