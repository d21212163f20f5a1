"""Vision tower and projector, against InternVL and against attention with materialised weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.inputs import random_tiles
from benchmarks.presets import Preset, VisionShape
from benchmarks.report import Report
from remote_code import configuration_skywork_chat


def vision(preset: Preset, report: Report, repeats: int) -> None:
    """Measure time per tile and extra memory of each vision tower."""
    for shape in preset.vision:
        _measure_shape(shape, preset, report, repeats)


@torch.inference_mode()
def _measure_shape(shape: VisionShape, preset: Preset, report: Report, repeats: int) -> None:
    device = preset.device
    count = preset.vision_tiles
    dtype = models.dtype_of(shape.dtype)
    config = models.build_config(shape.name, "nano", vision_layers=shape.layers)
    ours = models.build_ours(config, device, dtype)
    theirs = models.build_internvl(config, ours.state_dict(), config.image_token_id, device=device)
    eager = models.with_weights_of(ours, "eager")
    pixels = random_tiles(config, count, device, dtype)
    layers = config.vision_config.num_hidden_layers
    case = f"InternViT-{shape.name.upper()}, {layers} layers, {shape.dtype}, {count} tiles"
    report.progress(f"vision, {case}")
    contenders = {
        "ours": partial(ours.extract_feature, pixels),
        "transformers InternVL": partial(theirs.model.get_image_features, pixels),
        "materialised attention, all tiles at once": partial(all_tiles_at_once, eager, pixels),
    }
    seconds = measure.alternate(contenders, repeats, device)
    medians = report.add_times("vision", case, seconds, "ours", count, "tiles/s")
    reached = vision_operations(config) * count / medians["ours"]
    limit = measure.measured_limits(device, dtype)["operations_per_second"]
    report.add(
        "vision",
        case,
        "ours, operations",
        reached / 1e12,
        "TFLOP/s",
        limit=limit / 1e12,
        share=reached / limit,
    )
    report.add_memory("vision", case, contenders, device)


def all_tiles_at_once(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Features of all tiles in one pass, as the published code computes them.

    Args:
        model: ours, with attention that materialises its weights.
        pixels: (tiles, 3, side, side).

    Returns:
        (tiles, tokens of a tile, width of the language model).
    """
    patches = model.vision_model(pixels).last_hidden_state[:, 1:]
    side = int(patches.shape[1] ** 0.5)
    return model.mlp1(model.pixel_shuffle(patches.unflatten(1, (side, side))).flatten(1, 2))


def vision_operations(config: configuration_skywork_chat.SkyworkChatConfig) -> int:
    """Operations of one tile through vision tower and projector, two for each multiply-add."""
    vision_config = config.vision_config
    width = vision_config.hidden_size
    patches = (config.tile_size // vision_config.patch_size) ** 2
    positions = patches + 1  # with the class token
    matrices = 4 * width**2 + 2 * width * vision_config.intermediate_size
    attention = 2 * positions * width
    layers = vision_config.num_hidden_layers * (matrices + attention) * positions
    embedding = 3 * vision_config.patch_size**2 * width * patches
    projected_width = config.llm_config.hidden_size
    shuffled_width = config.merged_size
    projector = (shuffled_width + projected_width) * projected_width * config.num_image_token
    return 2 * (layers + embedding + projector)
