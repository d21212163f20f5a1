"""The settings of the image processor, in one place.

This file imports no sibling: before 5.9 transformers copies only the files that image processor and
processor import themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

# Formats of Pillow that images come in. The others are for printers, satellites and old games;
# their decoders are rarely used, so rarely tried on files that somebody made on purpose.
IMAGE_FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "HEIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How an image becomes tiles; the checkpoint's settings, each of which a call may replace.

    Attributes:
        min_dynamic_patch: least number of tiles of an image, thumbnail not counted.
        max_dynamic_patch: largest number of tiles of an image, thumbnail not counted.
        dynamic_image_size: whether images are tiled at all; else an image is one tile.
        use_thumbnail: add the whole image as a last tile where there is more than one.
        apply_exif_orientation: turn photographs the way the camera was held. The model card's
            `load_image` does not: turn it off for exactly its values on such photographs.
        alpha: "drop" ignores transparency, as the model card does; "white" puts the image on white.
        fast_resize: resize with torch (bicubic, antialiased, on uint8) rather than with Pillow. It
            is faster, and within 3 of 255 grey levels on pictures. On white noise it is within 32,
            because Pillow may take the axes in the other order and clips in between
            (benchmarks/NOTES.md).
        image_formats: Pillow's names of the file formats that may be decoded.
        allow_internal_urls: download from addresses that are not public, too, such as 127.0.0.1.
            Leave it off where strangers choose the URLs.

    Raises:
        ValueError: bounds that admit no grid of tiles.
    """

    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    dynamic_image_size: bool = True
    use_thumbnail: bool = True
    apply_exif_orientation: bool = True
    alpha: str = "drop"
    fast_resize: bool = False
    image_formats: Sequence[str] = IMAGE_FORMATS
    allow_internal_urls: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_dynamic_patch <= self.max_dynamic_patch:
            raise ValueError(
                f"min_dynamic_patch={self.min_dynamic_patch} and "
                f"max_dynamic_patch={self.max_dynamic_patch} (tiles): expected "
                "1 <= min_dynamic_patch <= max_dynamic_patch."
            )

    @property
    def tile_bounds(self) -> tuple[int, int]:
        """Least and largest number of tiles of an image, thumbnail not counted."""
        if not self.dynamic_image_size:
            return 1, 1
        return self.min_dynamic_patch, self.max_dynamic_patch


# The settings that `open_image` takes.
OPENING_NAMES = ("apply_exif_orientation", "alpha", "image_formats", "allow_internal_urls")
SETTING_NAMES = tuple(field.name for field in dataclasses.fields(ImageSettings))
# transformers has names of its own for some settings of a call.
ALIASES = {
    "crop_to_patches": "dynamic_image_size",
    "min_patches": "min_dynamic_patch",
    "max_patches": "max_dynamic_patch",
}
# The names under which a call may replace a setting.
CALL_SETTINGS = (*SETTING_NAMES, *ALIASES)
# Steps that transformers' callers switch on or off, which belong to the checkpoint here, and what
# to say where one is switched off.
FIXED_STEPS = {
    "do_resize": (True, "images are always resized to whole tiles"),
    "do_rescale": (True, "arrays of floats in [0, 1] are known by their dtype"),
    "do_normalize": (True, "the vision encoder needs normalised tiles"),
    "do_center_crop": (False, "images are tiled and never cropped"),
    "do_pad": (False, "images are resized to whole tiles and never padded"),
}
# Keywords that callers of transformers pass for images in general, and that change nothing here.
WITHOUT_EFFECT = (
    "data_format",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "input_data_format",
    "return_metadata",
)
# Every keyword of a call of the image processor but images and return_tensors.
IMAGE_KEYWORDS = (*CALL_SETTINGS, "dtype", *FIXED_STEPS, *WITHOUT_EFFECT)


def opening_keywords(settings: Any) -> dict[str, Any]:
    """The keywords of `open_image`, of an object that has every setting as an attribute."""
    return {name: getattr(settings, name) for name in OPENING_NAMES}


def check_fixed(name: str, value: Any, fixed: dict[str, tuple[bool, str]]) -> None:
    """Check that a keyword asks for what is done anyway.

    Args:
        fixed: for each name the value that describes what is done, and the reason.

    Raises:
        ValueError: it asks for something else.
    """
    expected, reason = fixed[name]
    if value is not None and value != expected:
        raise ValueError(f"{name}={value!r}: {reason}. Leave it out.")


def settings_of_call(defaults: Any, replacements: dict[str, Any]) -> ImageSettings:
    """The settings of one call.

    Args:
        defaults: an object that has every setting as an attribute.
        replacements: keywords by the names of `IMAGE_KEYWORDS`; None leaves the default.

    Raises:
        TypeError: a keyword that is none of those.
        ValueError: a step switched off that is always taken, or the other way round; or settings
            that contradict each other.
    """
    values = {name: getattr(defaults, name) for name in SETTING_NAMES}
    for name, value in replacements.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name in CALL_SETTINGS:
            values[ALIASES.get(name, name)] = value
        elif name in FIXED_STEPS:
            check_fixed(name, value, FIXED_STEPS)
        else:
            raise TypeError(
                f"{name}={value!r} is no setting of a call; expected {', '.join(CALL_SETTINGS)} or "
                "dtype (the side of a tile and the normalisation belong to the checkpoint)."
            )
    return ImageSettings(**values)
