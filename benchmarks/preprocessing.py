"""Image files to pixel values: one, and many at once, against the model card's functions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from benchmarks import measure
from benchmarks.model_card import model_card_functions
from benchmarks.presets import Preset
from benchmarks.report import Report

# Width and height in pixels, as cameras, scanners and screens give them
PICTURE_SIZES = ((1600, 1200), (800, 600), (1024, 768), (640, 960), (1920, 1080), (500, 500))
# The model card's snippet goes on with bfloat16
DTYPES = (torch.float32, torch.bfloat16)
CONTENDERS = {"ours": {}, "ours, fast_resize": {"fast_resize": True}}
# Standard deviations of ImageNet's channels, by which pixel values are divided
STANDARD_DEVIATIONS = (0.229, 0.224, 0.225)

# Paths and a dtype to pixel values
Preprocess = Callable[[list[str], torch.dtype], torch.Tensor]


def preprocessing(preset: Preset, report: Report, repeats: int) -> None:
    """Measure one image file, and all of them at once.

    Raises:
        AssertionError: pixel values that differ from the model card's.
    """
    load_image = model_card_functions()["load_image"]
    processor = AutoImageProcessor.from_pretrained(measure.ROOT, trust_remote_code=True)

    def model_card(paths: list[str], dtype: torch.dtype) -> torch.Tensor:
        """Pixel values by the published functions."""
        return torch.cat([load_image(path).to(dtype) for path in paths])

    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), preset.pictures)
        for count in (1, len(paths)):
            _measure_paths(paths[:count], processor, model_card, report, repeats)


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write JPEG files of random smooth pictures; returns their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        width, height = PICTURE_SIZES[index % len(PICTURE_SIZES)]
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        path = folder / f"{index}.jpg"
        picture.save(path, quality=90)
        paths.append(str(path))
    return paths


def _measure_paths(
    paths: list[str], processor: Any, model_card: Preprocess, report: Report, repeats: int
) -> None:
    """Measure all contenders on some image files, in each dtype."""
    expected = model_card(paths, torch.float32)
    plural = "s" if len(paths) > 1 else ""
    case = f"{len(paths)} image{plural}, {len(expected)} tiles"
    for dtype in DTYPES:
        pixel_values = processor(paths, dtype=dtype)["pixel_values"]
        # Both convert the same float32 values, so they are equal to the bit
        if not torch.equal(pixel_values, expected.to(dtype)):
            raise AssertionError("The pixel values differ from the model card's.")
        case_of_dtype = f"{case}, {str(dtype).removeprefix('torch.')}"
        report.progress(f"preprocessing, {case_of_dtype}")
        for name, options in CONTENDERS.items():
            contenders = {
                name: partial(processor, paths, dtype=dtype, **options),
                "model card": partial(model_card, paths, dtype),
            }
            seconds = measure.alternate(contenders, repeats)
            report.add_times("preprocessing", case_of_dtype, seconds, name, len(paths), "images/s")
            report.add_memory("preprocessing", case_of_dtype, contenders)
    fast = processor(paths, fast_resize=True)["pixel_values"]
    difference = round(_largest_difference(expected, fast), 2)
    report.add("preprocessing", case, "fast_resize, largest difference", difference, "of 255")


def _largest_difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest difference of two sets of pixel values, in levels of 255."""
    deviations = torch.tensor(STANDARD_DEVIATIONS).view(3, 1, 1)
    return ((expected - found).abs() * deviations * 255).max().item()
