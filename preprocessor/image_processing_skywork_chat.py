"""Image processor of Skywork-R1V: dynamic tiling and normalisation.

    image_processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
    features = image_processor(images=["a.jpg", "b.png"], return_tensors="pt")
    features["pixel_values"]  # (tiles of all images, 3, 448, 448)
    features["num_patches"]  # tiles of each image

The values are, bit for bit, those of the model card's `load_image`, unless `fast_resize` is asked for.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_loading import flatten_images, open_image
from .tiling import select_grid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What transformers' own callers may say of images in general, and what is so here in any case
WITHOUT_EFFECT = (
    "data_format",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "input_data_format",
    "return_metadata",
)


class SkyworkImageProcessor(BaseImageProcessor):
    """Cuts images into tiles and normalises them.

    Args:
        size: side of a tile in pixels, as a number or as transformers' dict of edges.
        min_dynamic_patch, max_dynamic_patch: bounds on the tiles of an image, thumbnail not counted.
        dynamic_image_size: whether to tile at all; else an image is one tile.
        use_thumbnail: add the whole image as a last tile where there is more than one.
        image_mean, image_std: of the channels in [0, 1].
        apply_exif_orientation: turn photographs upright. The model card's `load_image` does not: turn it off for
            exactly its values on photographs that carry an orientation.
        alpha: "drop" (as the model card) or "white", see `open_image`.
        fast_resize: resize with torch (bicubic, antialiased, on uint8) rather than with Pillow: faster, and within
            3 of 255 grey levels on pictures, within 32 on white noise, where Pillow may take the axes in the other
            order and clips in between (benchmarks/NOTES.md).

    Raises:
        ValueError: bounds that admit no grid, or a size that is not square.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size=448,
        min_dynamic_patch=1,
        max_dynamic_patch=12,
        dynamic_image_size=True,
        use_thumbnail=True,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        apply_exif_orientation=True,
        alpha="drop",
        fast_resize=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = _square_side(size)
        if not 1 <= min_dynamic_patch <= max_dynamic_patch:
            raise ValueError(
                f"min_dynamic_patch={min_dynamic_patch} and max_dynamic_patch={max_dynamic_patch} (tiles): expected "
                "1 <= min_dynamic_patch <= max_dynamic_patch."
            )
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.apply_exif_orientation = apply_exif_orientation
        self.alpha = alpha
        self.fast_resize = fast_resize

    def __call__(self, images, **kwargs):
        """See `preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images,
        min_dynamic_patch=None,
        max_dynamic_patch=None,
        crop_to_patches=None,
        use_thumbnail=None,
        apply_exif_orientation=None,
        alpha=None,
        fast_resize=None,
        dtype=None,
        return_tensors=None,
        **kwargs,
    ):
        """Tiles of one image or many; many are prepared in parallel.

        Args:
            images: an image (whatever `open_image` takes), a list of images, or a list of lists, in which None and
                empty lists stand for a sample without images.
            min_dynamic_patch, max_dynamic_patch, crop_to_patches, use_thumbnail, apply_exif_orientation, alpha,
                fast_resize: in place of the processor's own (`crop_to_patches` is transformers' name of
                `dynamic_image_size`).
            dtype: of the pixel values, a floating torch dtype or its name; None is float32. Others are float32's
                values, rounded as `.to(dtype)` does, but never all there in float32: half the memory, and faster.
            return_tensors: "pt" or "np"; None gives torch tensors, too.

        Returns:
            `BatchFeature` with pixel_values, `dtype` (tiles, 3, side, side), and num_patches, int64 (images,).

        Raises:
            ValueError: no image, an image that cannot be read (by name), bounds that admit no grid, another
                `return_tensors`, or a `dtype` that is not floating or that numpy does not have.
            TypeError: a keyword that is none of these.
        """
        unknown = [
            name
            for name, value in kwargs.items()
            if value is not None and name not in WITHOUT_EFFECT
        ]
        if unknown:
            raise TypeError(
                f"{unknown[0]}={kwargs[unknown[0]]!r} is no setting of a call; expected min_dynamic_patch, "
                "max_dynamic_patch, crop_to_patches, use_thumbnail, apply_exif_orientation, alpha, fast_resize or "
                "dtype (the side of a tile and the normalisation belong to the checkpoint)."
            )
        flat = flatten_images(images)
        if not flat:
            raise ValueError("No image was given; for text alone call the tokenizer.")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(
                f"return_tensors={return_tensors!r} is not supported; expected 'pt' or 'np'."
            )
        dtype = _floating_dtype(dtype or torch.float32, of_numpy=return_tensors == "np")
        tiled = self.dynamic_image_size if crop_to_patches is None else crop_to_patches
        smallest = self.min_dynamic_patch if min_dynamic_patch is None else min_dynamic_patch
        largest = self.max_dynamic_patch if max_dynamic_patch is None else max_dynamic_patch
        bounds = (smallest, largest) if tiled else (1, 1)
        thumbnail = self.use_thumbnail if use_thumbnail is None else use_thumbnail

        upright = (
            self.apply_exif_orientation
            if apply_exif_orientation is None
            else apply_exif_orientation
        )
        opening = {
            "apply_exif_orientation": upright,
            "alpha": self.alpha if alpha is None else alpha,
        }
        fast = self.fast_resize if fast_resize is None else fast_resize
        resize, side = _resize_tensor if fast else _resize, self.size

        mean, std = (
            np.float32(values).reshape(3, 1, 1) for values in (self.image_mean, self.image_std)
        )

        def sizes_of(width, height):
            """(width, height) of an image on its grid and, where there is more than one tile, of the thumbnail."""
            columns, rows = select_grid(width, height, *bounds, side)
            sizes = [(columns * side, rows * side)]
            return [*sizes, (side, side)] if thumbnail and columns * rows > 1 else sizes

        def read(source):
            """(size of the image, what `resize` takes)."""
            image = open_image(source, **opening)
            return image.size, _to_tensor(image) if fast else image

        def fill(pixels, size, start):
            for offset, tile in enumerate(_tiles(resize(pixels, size), side)):
                _normalize(mean, std, tile, pixel_values[start + offset])

        # Each object once: two threads must not read one PIL file at the same time
        distinct = {id(image): image for image in flat}
        # Pillow, and numpy and torch on large arrays, let other threads run
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            opened = list(pool.map(read, distinct.values()))
            work, places, start = [], {}, 0
            for key, (size, pixels) in zip(distinct, opened):
                first = start
                for width, height in sizes_of(*size):
                    work.append((pixels, (width, height), start))
                    start += width * height // side**2
                places[key] = range(first, start)
            with torch.inference_mode(
                False
            ):  # a tensor of that mode could not be written by the pool's threads
                pixel_values = torch.empty(start, 3, side, side, dtype=dtype)
            list(pool.map(fill, *zip(*work)))
        counts = [len(places[id(image)]) for image in flat]
        if len(distinct) < len(flat):
            pixel_values = pixel_values[[index for image in flat for index in places[id(image)]]]
        num_patches = torch.tensor(counts)
        if return_tensors == "np":
            pixel_values, num_patches = pixel_values.numpy(), num_patches.numpy()
        return BatchFeature(data={"pixel_values": pixel_values, "num_patches": num_patches})

    def to_dict(self):
        """The settings, as they are written to preprocessor_config.json."""
        return {
            name: value for name, value in super().to_dict().items() if not name.startswith("_")
        }


def _resize(image, size):
    """An RGB image in another size (width, height): uint8 (height, width, 3)."""
    return np.asarray(image.resize(size))


def _to_tensor(image):
    """An RGB image as uint8 (1, 3, height, width), channels last in memory."""
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)[None]


def _resize_tensor(pixels, size):
    """As `_resize`, of what `_to_tensor` gives, with torch's kernels for uint8."""
    width, height = size
    pixels = F.interpolate(
        pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return pixels[0].permute(1, 2, 0).numpy()


def _tiles(picture, side):
    """Views (3, side, side) of the tiles of a picture (height, width, 3), row by row."""
    rows, columns = picture.shape[0] // side, picture.shape[1] // side
    tiles = picture.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    return [tiles[row, column] for row in range(rows) for column in range(columns)]


def _normalize(mean, std, tile, slot):
    """Write a uint8 tile into its place, normalised by torchvision's operations in torchvision's order, in float32.

    Tile by tile, so that the passes over it stay in the processor's cache.
    """
    in_place = slot.dtype == torch.float32
    values = slot.numpy() if in_place else np.empty(tile.shape, np.float32)
    np.divide(tile, 255, out=values, dtype=np.float32)
    np.subtract(values, mean, out=values)
    np.divide(values, std, out=values)
    if not in_place:
        slot.copy_(torch.from_numpy(values))


def _floating_dtype(dtype, of_numpy):
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r} is no floating dtype of torch; expected torch.bfloat16 or another."
        )
    if of_numpy and found not in (torch.float16, torch.float32, torch.float64):
        raise ValueError(
            f"numpy has no {found}; take return_tensors='pt', or float16, float32 or float64."
        )
    return found


def _square_side(size):
    if isinstance(size, dict) or hasattr(size, "items"):
        sides = {value for value in dict(size).values() if value is not None}
        if len(sides) != 1:
            raise ValueError(
                f"size={dict(size)}: tiles are square, so one side in pixels was expected."
            )
        size = sides.pop()
    return int(size)
