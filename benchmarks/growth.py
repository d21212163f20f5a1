"""How time and extra memory grow with tiles, images and context."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.inputs import random_prompt, random_tiles
from benchmarks.presets import Preset
from benchmarks.report import Report

FIRST_TOKEN = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}


@dataclasses.dataclass(frozen=True)
class Series:
    """A quantity that grows.

    Attributes:
        name: of the quantity.
        unit: of its sizes.
        sizes: that are measured.
        call_of_size: gives the call that is measured at a size.
    """

    name: str
    unit: str
    sizes: Sequence[int]
    call_of_size: Callable[[int], Callable[[], Any]]


@torch.inference_mode()
def growth(preset: Preset, report: Report, repeats: int) -> None:
    """Measure each series, and the exponents of power laws through its figures."""
    device = preset.device
    config, ours, _ = models.build_whole(preset.whole, device)

    def encode(tiles: int) -> Callable[[], Any]:
        """The vision tower on so many tiles."""
        pixels = random_tiles(config, tiles, device, ours.dtype)
        return partial(ours.extract_feature, pixels)

    def read_images(count: int) -> Callable[[], Any]:
        """The first token after so many images of one tile."""
        ids = random_prompt(config, count, device=device)
        pixels = random_tiles(config, count, device, ours.dtype)
        return partial(ours.generate, pixels, ids, **FIRST_TOKEN)

    def read_prompt(length: int) -> Callable[[], Any]:
        """The first token after so many tokens of text."""
        ids = random_prompt(config, 0, text_tokens=length, device=device)
        return partial(ours.generate, input_ids=ids, **FIRST_TOKEN)

    images = "images of one tile (first token)"
    for series in (
        Series("tiles (vision tower)", "tiles", preset.growth_tiles, encode),
        Series(images, "images", preset.first_token_tiles, read_images),
        Series("context (prefill)", "tokens", preset.growth_context, read_prompt),
    ):
        _measure_series(series, report, max(3, repeats // 2), device)


def _measure_series(series: Series, report: Report, repeats: int, device: str) -> None:
    """Time and extra memory at each size, and how they grow."""
    benchmark = f"growth with {series.name}"
    times = []
    peaks = []
    for size in series.sizes:
        report.progress(f"{benchmark}, {size}")
        call = series.call_of_size(size)
        seconds = statistics.median(measure.alternate({"ours": call}, repeats, device)["ours"])
        peak = measure.peak_memory(call, device) / 2**20
        case = f"{size} {series.unit}"
        report.add(benchmark, case, "ours, time", round(seconds, 4), "s")
        report.add(benchmark, case, "ours, extra memory", round(peak, 1), "MiB")
        times.append(seconds)
        peaks.append(peak)
    case = f"{series.sizes[0]} to {series.sizes[-1]} {series.unit}"
    for figure, values in (("time", times), ("extra memory", peaks)):
        exponent = round(measure.growth(series.sizes, values), 2)
        report.add(benchmark, case, f"exponent of {figure}", exponent, "")
