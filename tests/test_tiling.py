"""The tile grid: exactly the model card's choice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.model_card import model_card_functions
from preprocessor.tiling import candidate_grids, count_tiles, select_grid, tile_boxes

CARD = model_card_functions()


def card_grid(width, height, min_num, max_num, image_size):
    """The published choice. The order of equal products is that of the published set of pairs,
    which are of integers, so that it does not depend on PYTHONHASHSEED."""
    ratios = sorted(
        {
            (i, j)
            for n in range(min_num, max_num + 1)
            for i in range(1, n + 1)
            for j in range(1, n + 1)
            if min_num <= i * j <= max_num
        },
        key=lambda x: x[0] * x[1],
    )
    return CARD["find_closest_aspect_ratio"](width / height, ratios, width, height, image_size)


sides = st.one_of(st.integers(1, 64), st.integers(1, 5000))


@settings(max_examples=600, deadline=None)
@given(
    width=sides,
    height=sides,
    bounds=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    size=st.sampled_from([112, 448]),
)
def test_the_grid_is_the_model_cards(width, height, bounds, size):
    low, high = bounds[0], bounds[0] + bounds[1]
    assert select_grid(width, height, low, high, size) == card_grid(width, height, low, high, size)


@pytest.mark.parametrize("width, height, grid, reason", [
    (448, 448, (1, 1), "one tile's pixels"),
    (640, 640, (2, 2), "a tie of 1:1 grids goes to 2 × 2 above half its pixels"),
    (800, 400, (2, 1), "not above half of 4 × 2"),
    (2000, 1000, (4, 2), "above half of 4 × 2"),
    (1, 4000, (1, 12), "as tall as a grid can be"),
    (4000, 1, (12, 1), "as wide as a grid can be"),
    (1, 1, (1, 1), "a pixel"),
    (300, 400, (3, 4), "an exact ratio wins, however small the image"),
])  # fmt: skip
def test_known_grids(width, height, grid, reason):
    assert select_grid(width, height) == grid == card_grid(width, height, 1, 12, 448), reason


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), thumbnail=st.booleans())
def test_number_of_tiles_and_their_boxes(width, height, thumbnail):
    image = Image.new("RGB", (width, height))
    tiles = CARD["dynamic_preprocess"](image, max_num=6, image_size=28, use_thumbnail=thumbnail)
    assert count_tiles(width, height, 1, 6, 28, thumbnail) == len(tiles)
    columns, rows = select_grid(width, height, 1, 6, 28)
    boxes = tile_boxes(columns, rows, 28)
    covered = {
        (x, y)
        for left, upper, right, lower in boxes
        for x in range(left, right, 28)
        for y in range(upper, lower, 28)
    }
    assert len(covered) == columns * rows == len(boxes)


def test_candidates_are_within_the_bounds():
    assert set(candidate_grids(1, 2)) == {(1, 1), (1, 2), (2, 1)}
    assert all(3 <= columns * rows <= 5 for columns, rows in candidate_grids(3, 5))


@pytest.mark.parametrize("arguments, name", [
    ((0, 5), "0 × 5"), ((5, -1), "5 × -1"),
    ((5, 5, 3, 2), "min_tiles=3"), ((5, 5, 0, 2), "min_tiles=0"),
])  # fmt: skip
def test_impossible_values_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        select_grid(*arguments)
