"""Sizes of the benchmarks for each kind of machine."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


class VisionShape(NamedTuple):
    """A vision tower: its name in `models.VISION`, layers (None for all), a dtype's name."""

    name: str
    layers: int | None
    dtype: str


class LanguageShape(NamedTuple):
    """A language model: its name in `models.LANGUAGE`, layers (None for all), a dtype's name."""

    name: str
    layers: int | None
    dtype: str


class ModelShape(NamedTuple):
    """A whole model: names and layers as of `VisionShape` and `LanguageShape`."""

    vision: str
    vision_layers: int | None
    language: str
    language_layers: int | None
    dtype: str


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes of one kind of machine.

    Attributes:
        device: of all models.
        pictures: number of image files that are preprocessed.
        vision: vision towers.
        vision_tiles: number of tiles that they encode at once.
        language: language models for decoding. Tokens are compared, so they are in float32 where
            there is time for it.
        new_tokens: tokens that are decoded.
        batches: numbers of prompts that are decoded together.
        whole: a model for the first token, turns and growth.
        loading: a model that is loaded; it is written to the disk twice.
        first_token_tiles: numbers of tiles of a prompt.
        growth_tiles: numbers of tiles, for the growth of the vision tower's time and memory.
        growth_context: numbers of tokens, for the growth of reading a prompt.
    """

    device: str
    pictures: int
    vision: tuple[VisionShape, ...]
    vision_tiles: int
    language: tuple[LanguageShape, ...]
    new_tokens: int
    batches: tuple[int, ...]
    whole: ModelShape
    loading: ModelShape
    first_token_tiles: tuple[int, ...]
    growth_tiles: tuple[int, ...]
    growth_context: tuple[int, ...]


PRESETS = {
    "cpu": Preset(  # minutes
        device="cpu",
        pictures=32,
        vision=(
            VisionShape("300m", 2, "float32"),
            VisionShape("300m", 6, "bfloat16"),
            VisionShape("6b", 1, "bfloat16"),
        ),
        vision_tiles=13,
        language=(LanguageShape("nano", None, "float32"), LanguageShape("0.5b", 6, "float32")),
        new_tokens=48,
        batches=(1, 8, 32),
        whole=ModelShape("300m", 2, "0.5b", 2, "bfloat16"),
        loading=ModelShape("300m", 2, "0.5b", 2, "bfloat16"),
        first_token_tiles=(1, 7, 13),
        growth_tiles=(4, 8, 16),
        growth_context=(512, 1024, 2048),
    ),
    "gpu": Preset(  # the 38B shapes
        device="cuda",
        pictures=32,
        vision=(VisionShape("300m", None, "bfloat16"), VisionShape("6b", None, "bfloat16")),
        vision_tiles=13,
        language=(LanguageShape("32b", None, "bfloat16"),),
        new_tokens=64,
        batches=(1, 8),
        whole=ModelShape("6b", None, "32b", None, "bfloat16"),
        loading=ModelShape("6b", None, "32b", 2, "bfloat16"),
        first_token_tiles=(1, 7, 13),
        growth_tiles=(16, 32, 64),
        growth_context=(1024, 2048, 4096, 8192, 16384, 32768),
    ),
    "smoke": Preset(  # the smallest sizes, which show that everything runs
        device="cpu",
        pictures=2,
        vision=(VisionShape("300m", 1, "float32"),),
        vision_tiles=1,
        language=(LanguageShape("nano", 1, "float32"),),
        new_tokens=4,
        batches=(1, 2),
        whole=ModelShape("300m", 1, "small", 1, "float32"),
        loading=ModelShape("300m", 1, "small", 1, "float32"),
        first_token_tiles=(1, 2),
        growth_tiles=(1, 2),
        growth_context=(64, 128),
    ),
}
