"""Dynamic tiling: which grid of square tiles an image is cut into. Integers only; pixels come after.

The choice and its ties are those of the model card's `dynamic_preprocess` (InternVL 1.5, arXiv:2404.16821, 3.2).
"""

import functools


@functools.lru_cache(maxsize=64)
def candidate_grids(min_tiles, max_tiles):
    """All grids (columns, rows) of `min_tiles` to `max_tiles` tiles, by number of tiles.

    Grids of one number stay in the iteration order of a set built in the model card's order: among equally good grids
    the first wins, so that order decides.
    """
    grids = {
        (columns, rows)
        for count in range(min_tiles, max_tiles + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def select_grid(width, height, min_tiles=1, max_tiles=12, tile_size=448):
    """The grid whose aspect ratio is closest to the image's.

    Between grids of one ratio, such as 1 × 1 and 2 × 2, the larger is taken if the image has more than half its pixels.

    Args:
        width, height: the image, in pixels.
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
            f"min_tiles={min_tiles} and max_tiles={max_tiles}: expected 1 <= min_tiles <= max_tiles."
        )
    aspect_ratio = width / height
    best_difference, best_grid = float("inf"), (1, 1)
    for columns, rows in candidate_grids(min_tiles, max_tiles):
        difference = abs(aspect_ratio - columns / rows)
        if difference < best_difference:
            best_difference, best_grid = difference, (columns, rows)
        elif (
            difference == best_difference
            and width * height > 0.5 * tile_size * tile_size * columns * rows
        ):
            best_grid = (columns, rows)
    return best_grid


def tile_boxes(columns, rows, tile_size):
    """Boxes (left, upper, right, lower) in pixels of the resized image, row by row."""
    return [
        (column * tile_size, row * tile_size, (column + 1) * tile_size, (row + 1) * tile_size)
        for row in range(rows)
        for column in range(columns)
    ]


def count_tiles(width, height, min_tiles=1, max_tiles=12, tile_size=448, use_thumbnail=True):
    """Tiles an image gives, with the thumbnail that is added when there is more than one."""
    columns, rows = select_grid(width, height, min_tiles, max_tiles, tile_size)
    return columns * rows + (1 if use_thumbnail and columns * rows > 1 else 0)
