"""Dynamic tiling: which grid of square tiles an image is cut into.

The functions know integers only; pixels come after. The choice and its ties are those of the model
card's `dynamic_preprocess` (InternVL 1.5, arXiv:2404.16821, section 3.2).
"""

from __future__ import annotations

import functools


@functools.lru_cache(maxsize=64)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All grids (columns, rows) of `min_tiles` to `max_tiles` tiles, by number of tiles.

    Grids with equally many tiles keep the order of a Python set that is filled as in the model
    card, since the first of equally good grids wins.
    """
    grids = set()
    for count in range(min_tiles, max_tiles + 1):
        for columns in range(1, count + 1):
            for rows in range(1, count + 1):
                if min_tiles <= columns * rows <= max_tiles:
                    grids.add((columns, rows))
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def select_grid(
    width: int, height: int, min_tiles: int = 1, max_tiles: int = 12, tile_size: int = 448
) -> tuple[int, int]:
    """The grid whose aspect ratio is closest to the image's.

    Between grids of one ratio, such as 1 × 1 and 2 × 2, the larger one is taken if the image has
    more than half its pixels.

    Args:
        width, height: of the image, in pixels.
        min_tiles, max_tiles: bounds on columns × rows, thumbnail not counted.
        tile_size: side of a tile in pixels.

    Returns:
        (columns, rows).

    Raises:
        ValueError: a side that is not positive, or bounds that admit no grid.
    """
    if width < 1 or height < 1:
        raise ValueError(
            f"An image of {width} × {height} pixels cannot be tiled: both sides must be at least 1."
        )
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(
            f"min_tiles={min_tiles} and max_tiles={max_tiles}: expected "
            "1 <= min_tiles <= max_tiles."
        )
    aspect_ratio = width / height
    best_difference = float("inf")
    best_grid = (1, 1)
    for columns, rows in candidate_grids(min_tiles, max_tiles):
        difference = abs(aspect_ratio - columns / rows)
        is_filled = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference:
            best_difference = difference
            best_grid = (columns, rows)
        elif difference == best_difference and is_filled:
            best_grid = (columns, rows)
    return best_grid


def has_several_tiles(grid: tuple[int, int]) -> bool:
    """Whether an image of this grid (columns, rows) gets a thumbnail, if thumbnails are wanted."""
    columns, rows = grid
    return columns * rows > 1


def tile_boxes(columns: int, rows: int, tile_size: int) -> list[tuple[int, int, int, int]]:
    """Boxes (left, upper, right, lower) in pixels of the resized image, row by row."""
    boxes = []
    for row in range(rows):
        for column in range(columns):
            left = column * tile_size
            upper = row * tile_size
            boxes.append((left, upper, left + tile_size, upper + tile_size))
    return boxes


def count_tiles(
    width: int,
    height: int,
    min_tiles: int = 1,
    max_tiles: int = 12,
    tile_size: int = 448,
    use_thumbnail: bool = True,
) -> int:
    """Number of tiles of an image, with the thumbnail that is added when there are several."""
    grid = select_grid(width, height, min_tiles, max_tiles, tile_size)
    columns, rows = grid
    return columns * rows + int(use_thumbnail and has_several_tiles(grid))
