"""How much less likely an answer becomes where a part of an image is covered.

An image is cut into cells, and each is covered by itself with the image's median colour, in the
tiles and in the thumbnail; the vision tower reads the covered tiles anew (Zeiler and Fergus,
arXiv:1311.2901, section 4.2, with a grey square and a classifier). Covering image features instead
would not do: in the tower every patch has read all others. Nor would grey on white, which looks
like one more shape.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from explain.scoring import ScoredAnswer
from preprocessor.image_loading import open_image
from preprocessor.image_settings import opening_keywords, settings_of_call

TOKENS_AT_A_TIME = 8192  # of all rows that the language model reads together
TILES_AT_A_TIME = 64  # that are covered and read together

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


@dataclasses.dataclass(frozen=True)
class TiledImage:
    """An image as the model gets it.

    Attributes:
        picture: RGB, upright.
        pixel_values: of its tiles, (tiles, 3, side, side).
        boxes: of its tiles in pixels of the picture, (tiles, 4): left, upper, right, lower.
        fill: its median colour as pixel values, (3,).
    """

    picture: Image.Image
    pixel_values: torch.Tensor
    boxes: np.ndarray
    fill: torch.Tensor

    @classmethod
    def read(cls, source: Any, image_processor: Any, dtype: torch.dtype) -> TiledImage:
        """Open and tile an image.

        Args:
            source: whatever the image processor opens.
            image_processor: the checkpoint's.
            dtype: of the pixel values.

        Raises:
            OSError, ValueError: the image cannot be read.
        """
        picture = open_upright(source, image_processor)
        colour = np.median(np.asarray(picture), axis=(0, 1))
        side = image_processor.size
        plain = Image.new("RGB", (side, side), tuple(int(value) for value in colour))
        tiles = image_processor([picture, plain], dtype=dtype)["pixel_values"]
        boxes = image_processor.token_boxes(*picture.size, tokens_per_side=1)
        return cls(picture, tiles[: len(boxes)], boxes, tiles[-1, :, 0, 0])

    def grid_shape(self, cells_per_side: int) -> tuple[int, int]:
        """(rows, columns) of cells that are nearly square, so many along the longer side."""
        width, height = self.picture.size
        longer = max(width, height)
        rows = max(1, round(cells_per_side * height / longer))
        columns = max(1, round(cells_per_side * width / longer))
        return rows, columns

    def cells(self, cells_per_side: int) -> Iterator[tuple[int, int, Box]]:
        """(row, column, box in pixels) of each cell."""
        rows, columns = self.grid_shape(cells_per_side)
        height = self.picture.height / rows
        width = self.picture.width / columns
        for row, column in itertools.product(range(rows), range(columns)):
            left = column * width
            upper = row * height
            yield row, column, (left, upper, left + width, upper + height)

    def covered(self, box: Box) -> tuple[list[int], torch.Tensor]:
        """The tiles that a covered box changes, and their pixel values then.

        Returns:
            Places of tiles, and (those tiles, 3, side, side). None where the box has the median
            colour as it is.
        """
        changed = []
        tiles = []
        for place, tile_box in enumerate(self.boxes):
            rows, columns = pixels_of_tile(tile_box, box, self.pixel_values.shape[-1])
            before = self.pixel_values[place, :, rows, columns]
            if bool((before != self.fill[:, None, None]).any()):
                tile = self.pixel_values[place].clone()
                tile[:, rows, columns] = self.fill[:, None, None]
                changed.append(place)
                tiles.append(tile)
        if not tiles:
            return [], self.pixel_values[:0]
        return changed, torch.stack(tiles)


def open_upright(source: Any, image_processor: Any) -> Image.Image:
    """An image as the model gets it: RGB, and turned as the camera was held.

    Args:
        source: whatever the image processor opens.
        image_processor: the checkpoint's, whose settings count.

    Raises:
        OSError, ValueError: the image cannot be read.
    """
    settings = settings_of_call(image_processor, {})
    return open_image(source, **opening_keywords(settings))


def pixels_of_tile(tile_box: np.ndarray, box: Box, side: int) -> tuple[slice, slice]:
    """The rows and columns of a tile's pixels that a box touches; empty slices if it does not."""
    left, upper, right, lower = tile_box
    columns = touched(box[0], box[2], left, right, side)
    rows = touched(box[1], box[3], upper, lower, side)
    return rows, columns


def touched(low: float, high: float, start: float, stop: float, side: int) -> slice:
    """The pixels of a side from `start` to `stop` that an interval touches."""
    scale = side / (stop - start)
    # rounding of the division must not touch one pixel more
    first = math.floor((low - start) * scale + 1e-6)
    last = math.ceil((high - start) * scale - 1e-6)
    return slice(min(max(first, 0), side), min(max(last, 0), side))


class Occlusion:
    """Covers cells of a conversation's images.

    Args:
        model: of any class over the checkpoint.
        scored: the answer.
        images: of the whole conversation, in order.
    """

    def __init__(self, model: Any, scored: ScoredAnswer, images: list[TiledImage]) -> None:
        self._model = model
        self._scored = scored
        self._images = images
        self._features = self._encode(torch.cat([image.pixel_values for image in images]))
        self.log_probability = float(scored.log_probabilities(self._features[None])[0])

    def drops(self, index: int, cells_per_side: int) -> np.ndarray:
        """By how much the answer's log-probability falls with each cell of an image covered.

        Args:
            index: of the image.
            cells_per_side: along its longer side.

        Returns:
            Float64 (rows, columns), in nats; below 0 where the answer becomes more likely.
        """
        image = self._images[index]
        drops = np.zeros(image.grid_shape(cells_per_side))
        first_tile = sum(len(other.boxes) for other in self._images[:index])
        for batch in self._batches(image, cells_per_side):
            features = self._features_of(batch, first_tile)
            found = self._scored.log_probabilities(features)
            for (row, column, _, _), value in zip(batch, found.tolist()):
                drops[row, column] = self.log_probability - value
        return drops

    def _batches(self, image: TiledImage, cells_per_side: int) -> Iterator[list[tuple]]:
        """The cells that change something, so many that memory stays bounded.

        Each is (row, column, places of the tiles that it changes, their pixel values).
        """
        most_rows = max(1, TOKENS_AT_A_TIME // len(self._scored.ids))
        batch: list[tuple] = []
        num_tiles = 0
        for row, column, box in image.cells(cells_per_side):
            places, tiles = image.covered(box)
            if not places:
                continue
            if batch and (len(batch) == most_rows or num_tiles + len(places) > TILES_AT_A_TIME):
                yield batch
                batch = []
                num_tiles = 0
            batch.append((row, column, places, tiles))
            num_tiles += len(places)
        if batch:
            yield batch

    def _features_of(self, batch: list[tuple], first_tile: int) -> torch.Tensor:
        """(cells, tiles of all images, num_image_token, H) with each cell of a batch covered."""
        encoded = self._encode(torch.cat([tiles for _, _, _, tiles in batch]))
        features = self._features.repeat(len(batch), 1, 1, 1)
        position = 0
        for number, (_, _, places, _) in enumerate(batch):
            for place in places:
                features[number, first_tile + place] = encoded[position]
                position += 1
        return features

    @torch.no_grad()
    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(tiles, 3, side, side) to (tiles, num_image_token, H)."""
        return self._model.extract_feature(pixel_values)
