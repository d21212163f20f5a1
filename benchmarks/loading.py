"""`from_pretrained` on the same bytes, ours and InternVL's."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLForConditionalGeneration

from benchmarks import measure, models
from benchmarks.presets import Preset
from benchmarks.report import Report
from remote_code import modeling_skywork_chat

PAGE = 4096  # bytes that the kernel reads of a mapped file at once
CLASSES = {
    "ours": modeling_skywork_chat.SkyworkChatModel,
    "transformers InternVL": InternVLForConditionalGeneration,
}


def loading(preset: Preset, report: Report, repeats: int) -> None:
    """Time and memory of loading a checkpoint that is in the page cache."""
    device = preset.device
    with tempfile.TemporaryDirectory() as folder:
        paths = {"ours": f"{folder}/ours", "transformers InternVL": f"{folder}/theirs"}
        name, dtype = _save_both(preset, paths)
        size = sum(path.stat().st_size for path in Path(paths["ours"]).glob("*.safetensors"))
        contenders = {}
        for contender, path in paths.items():
            contenders[contender] = partial(_load, CLASSES[contender], path, dtype, device)
        case = f"{name}, {size / 1e9:.2f} GB"
        report.progress(f"loading, {case}")
        report.add_times("loading", case, measure.alternate(contenders, repeats, device), "ours")
        for contender, load in contenders.items():
            peak = round(measure.peak_memory(load, device) / size, 3)
            report.add("loading, peak memory", case, contender, peak, "x checkpoint")


def _save_both(preset: Preset, paths: dict[str, str]) -> tuple[str, torch.dtype]:
    """Write the same weights as our checkpoint and as InternVL's; returns their name and dtype."""
    config, ours, name = models.build_whole(preset.loading, preset.device)
    theirs = models.build_internvl(
        config, ours.state_dict(), config.image_token_id, device=preset.device
    )
    ours.save_pretrained(paths["ours"])
    theirs.save_pretrained(paths["transformers InternVL"])
    return name, ours.dtype


def _load(model_class: Any, path: str, dtype: torch.dtype, device: str) -> Any:
    """Load a model and touch all of its weights: a mapped file is read when it is touched."""
    model = model_class.from_pretrained(path, dtype=dtype, device_map=device)
    for parameter in model.parameters():
        parameter.flatten()[:: PAGE // parameter.element_size()].sum()
    return model
