"""Image processor of Skywork-R1V: dynamic tiling and normalisation.

    image_processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
    features = image_processor(images=["a.jpg", "b.png"], return_tensors="pt")
    features["pixel_values"]  # (tiles of all images, 3, 448, 448)
    features["num_patches"]  # number of tiles of each image

The values are, bit for bit, those of the model card's `load_image`, unless `fast_resize` is asked
for.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

# Every sibling, also the one that a sibling imports: before 5.9 transformers copies the files that
# this one imports itself.
from .image_loading import open_image
from .image_settings import SETTING_NAMES, ImageSettings, opening_keywords, settings_of_call
from .messages import FRAME_KEY, flatten_images
from .tiling import has_several_tiles, select_grid
from .url_loading import download  # noqa: F401

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NUMPY_DTYPES = (torch.float16, torch.float32, torch.float64)


class SkyworkImageProcessor(BaseImageProcessor):
    """Cuts images into tiles and normalises them.

    Args:
        size: side of a tile in pixels, as a number or as transformers' dict of edges.
        image_mean, image_std: of the channels in [0, 1].
        kwargs: the fields of `ImageSettings`, each an attribute of the processor; further ones are
            kept as transformers keeps them.

    Raises:
        ValueError: settings that contradict each other, or a size that is not square.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: Any = 448,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        **kwargs: Any,
    ) -> None:
        given = {name: kwargs.pop(name) for name in SETTING_NAMES if name in kwargs}
        super().__init__(**kwargs)
        self.size = _square_side(size)
        self.image_mean = _channel_values("image_mean", image_mean)
        self.image_std = _channel_values("image_std", image_std)
        if min(self.image_std) <= 0:
            raise ValueError(
                f"image_std={self.image_std}: pixels are divided by it, so three numbers above 0 "
                "were expected."
            )
        for name, value in dataclasses.asdict(ImageSettings(**given)).items():
            setattr(self, name, value)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self, images: Any, dtype: Any = None, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Tiles of one image or many; many are prepared in parallel.

        Args:
            images: an image (whatever `open_image` takes), a list of images, or a list of lists, in
                which None and empty lists stand for a sample without images.
            dtype: of the pixel values, a floating torch dtype or its name; None is float32. The
                values are those of float32, rounded as `.to(dtype)` does, but they are never all in
                memory in float32.
            return_tensors: "pt" or "np"; None gives torch tensors, too.
            kwargs: fields of `ImageSettings` in place of the processor's own; transformers' names
                of them (`crop_to_patches`, `min_patches`, `max_patches`) do as well.

        Returns:
            `BatchFeature` with pixel_values, `dtype` (tiles, 3, side, side), and num_patches, the
            number of tiles of each image, int64 (images,).

        Raises:
            ValueError: no image; an image that cannot be read (by name); settings that contradict
                each other; another `return_tensors`; or a `dtype` that is not floating or that
                numpy does not have.
            TypeError: a keyword that is none of these.
        """
        settings = settings_of_call(self, kwargs)
        flat = flatten_images(images)
        if not flat:
            raise ValueError("No image was given; for text alone call the tokenizer.")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(
                f"return_tensors={return_tensors!r} is not supported; expected 'pt' or 'np'."
            )
        as_numpy = return_tensors == "np"
        torch_dtype = _floating_dtype(dtype or torch.float32, as_numpy)
        # Each object is read once: two threads must not read one PIL file at the same time.
        distinct = {id(image): image for image in flat}
        pixel_values, tiles = self._tile_images(distinct.values(), settings, torch_dtype)
        tiles_of_object = dict(zip(distinct, tiles))
        tiles_of_images = [tiles_of_object[id(image)] for image in flat]
        num_patches = torch.tensor(list(map(len, tiles_of_images)))
        if len(distinct) < len(flat):
            pixel_values = pixel_values[list(itertools.chain(*tiles_of_images))]
        data = {"pixel_values": pixel_values, "num_patches": num_patches}
        if as_numpy:
            data = {name: tensor.numpy() for name, tensor in data.items()}
        return BatchFeature(data=data)

    def token_boxes(
        self, width: int, height: int, tokens_per_side: int, **kwargs: Any
    ) -> np.ndarray:
        """Where in an image the squares lie that its image tokens stand for.

        Args:
            width, height: of the image in pixels, after it was turned the way the camera was held.
            tokens_per_side: of a tile, 16 for a tile of 448 pixels.
            kwargs: as for `preprocess`.

        Returns:
            float64 (tokens, 4): left, upper, right and lower edge in pixels of the image, for the
            tokens of all tiles in the order of the prompt; those of a thumbnail come last.

        Raises:
            ValueError, TypeError: as `preprocess`.
        """
        settings = settings_of_call(self, kwargs)
        boxes = []
        for picture_width, picture_height in picture_sizes(width, height, settings, self.size):
            columns = picture_width // self.size
            rows = picture_height // self.size
            token_width = width / (columns * tokens_per_side)
            token_height = height / (rows * tokens_per_side)
            for tile_row, tile_column in itertools.product(range(rows), range(columns)):
                places = itertools.product(range(tokens_per_side), repeat=2)
                for row, column in places:
                    left = (tile_column * tokens_per_side + column) * token_width
                    upper = (tile_row * tokens_per_side + row) * token_height
                    boxes.append((left, upper, left + token_width, upper + token_height))
        return np.array(boxes)

    def _tile_images(
        self, images: Iterable[Any], settings: ImageSettings, dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[range]]:
        """Pixel values of all tiles, and for each image the places of its tiles among them."""
        side = self.size
        mean = np.array(self.image_mean, dtype=np.float32).reshape(3, 1, 1)
        std = np.array(self.image_std, dtype=np.float32).reshape(3, 1, 1)

        # A frame of a video is a single tile, or eight frames would be some hundred.
        settings_of_frames = dataclasses.replace(settings, dynamic_image_size=False)

        def read(source: Any) -> OpenedImage:
            if isinstance(source, dict) and FRAME_KEY in source:
                return OpenedImage.read(source[FRAME_KEY], settings_of_frames)
            return OpenedImage.read(source, settings)

        # Pillow, and numpy and torch on large arrays, let other threads run.
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            opened = list(pool.map(read, images))
            pictures = []
            tiles_of_images = []
            num_tiles = 0
            for image in opened:
                first_tile = num_tiles
                for size in picture_sizes(*image.size, image.settings, side):
                    pictures.append((image, size, num_tiles))
                    num_tiles += size[0] * size[1] // side**2
                tiles_of_images.append(range(first_tile, num_tiles))
            # The threads of the pool could not write to a tensor of inference mode.
            with torch.inference_mode(False):
                pixel_values = torch.empty(num_tiles, 3, side, side, dtype=dtype)

            def write(picture: tuple[OpenedImage, tuple[int, int], int]) -> None:
                image, size, first_tile = picture
                tiles = _cut_tiles(image.resize(size), side)
                for offset, tile in enumerate(tiles):
                    _normalize(tile, mean, std, pixel_values[first_tile + offset])

            list(pool.map(write, pictures))
        return pixel_values, tiles_of_images

    def to_dict(self) -> dict[str, Any]:
        """The settings, as they are written to preprocessor_config.json."""
        # Lists, as they are after reading: JSON has no tuples
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in super().to_dict().items()
            if not name.startswith("_")
        }


@dataclasses.dataclass
class OpenedImage:
    """An image that has been read, in the form in which it is resized.

    Attributes:
        size: (width, height) in pixels.
        settings: how it is tiled.
        picture: for Pillow, a PIL image of mode RGB.
        pixels: for torch, uint8 (1, 3, height, width), channels last in memory.
    """

    size: tuple[int, int]
    settings: ImageSettings
    picture: Image.Image | None = None
    pixels: torch.Tensor | None = None

    @classmethod
    def read(cls, source: Any, settings: ImageSettings) -> OpenedImage:
        """Open whatever `open_image` takes."""
        picture = open_image(source, **opening_keywords(settings))
        if not settings.fast_resize:
            return cls(picture.size, settings, picture=picture)
        pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None]
        return cls(picture.size, settings, pixels=pixels)

    def resize(self, size: tuple[int, int]) -> np.ndarray:
        """The image in another size (width, height): uint8 (height, width, 3)."""
        if self.pixels is None:
            return np.asarray(self.picture.resize(size))
        width, height = size
        resized = F.interpolate(
            self.pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False
        )
        return resized[0].permute(1, 2, 0).numpy()


def picture_sizes(
    width: int, height: int, settings: ImageSettings, side: int
) -> list[tuple[int, int]]:
    """The sizes (width, height) in pixels that an image is resized to.

    The first is the grid of its tiles. Where that has more than one tile, the second is the
    thumbnail's.

    Args:
        width, height: of the image, in pixels.
        side: of a tile, in pixels.
    """
    grid = select_grid(width, height, *settings.tile_bounds, side)
    columns, rows = grid
    sizes = [(columns * side, rows * side)]
    if settings.use_thumbnail and has_several_tiles(grid):
        sizes.append((side, side))
    return sizes


def _cut_tiles(picture: np.ndarray, side: int) -> list[np.ndarray]:
    """Views (3, side, side) of the tiles of a picture (height, width, 3), row by row."""
    rows = picture.shape[0] // side
    columns = picture.shape[1] // side
    tiles = picture.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    return [tiles[row, column] for row in range(rows) for column in range(columns)]


def _normalize(tile: np.ndarray, mean: np.ndarray, std: np.ndarray, slot: torch.Tensor) -> None:
    """Write a uint8 tile into its place, normalised.

    The operations are torchvision's, in torchvision's order, in float32. One tile at a time, so
    that the passes over it stay in the processor's cache.
    """
    in_place = slot.dtype == torch.float32
    values = slot.numpy() if in_place else np.empty(tile.shape, np.float32)
    np.divide(tile, 255, out=values, dtype=np.float32)
    np.subtract(values, mean, out=values)
    np.divide(values, std, out=values)
    if not in_place:
        slot.copy_(torch.from_numpy(values))


def _floating_dtype(dtype: Any, as_numpy: bool) -> torch.dtype:
    """A floating torch dtype from itself or its name.

    Raises:
        ValueError: another dtype, or one that numpy does not have where numpy is asked for.
    """
    found = dtype
    if isinstance(dtype, str):
        found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r} is no floating dtype of torch; expected torch.bfloat16 or another."
        )
    if as_numpy and found not in NUMPY_DTYPES:
        raise ValueError(
            f"numpy has no {found}; take return_tensors='pt', or float16, float32 or float64."
        )
    return found


def _channel_values(name: str, values: Any) -> list[float]:
    """A number for each channel.

    Raises:
        ValueError: anything else, with the setting's name.
    """
    is_list = isinstance(values, (list, tuple)) and len(values) == 3
    if not is_list or not all(isinstance(value, (int, float)) for value in values):
        raise ValueError(f"{name}={values!r}: expected three numbers, one for each channel.")
    return list(values)


def _square_side(size: Any) -> int:
    """The side of a tile in pixels, from a number or from transformers' dict of edges."""
    if isinstance(size, dict) or hasattr(size, "items"):
        sides = {value for value in dict(size).values() if value is not None}
        if len(sides) != 1:
            raise ValueError(
                f"size={dict(size)}: tiles are square, so one side in pixels was expected."
            )
        size = sides.pop()
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size < 1:
        raise ValueError(f"size={size!r}: expected the side of a tile in pixels.")
    return int(size)
