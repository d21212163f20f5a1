"""The settings of the image processor, in one place.

This file imports no sibling: before 5.9 transformers copies only the files that image processor and
processor import themselves.
"""

from __future__ import annotations

import dataclasses
from typing import Any


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


SETTING_NAMES = tuple(field.name for field in dataclasses.fields(ImageSettings))
# transformers has names of its own for some settings of a call.
ALIASES = {"crop_to_patches": "dynamic_image_size"}
# The names under which a call may replace a setting.
CALL_SETTINGS = (*SETTING_NAMES, *ALIASES)


def settings_of_call(defaults: Any, replacements: dict[str, Any]) -> ImageSettings:
    """The settings of one call.

    Args:
        defaults: an object that has every setting as an attribute.
        replacements: values by the names of `CALL_SETTINGS`; None leaves the default.
    """
    values = {name: getattr(defaults, name) for name in SETTING_NAMES}
    for name, value in replacements.items():
        if value is not None:
            values[ALIASES.get(name, name)] = value
    return ImageSettings(**values)
