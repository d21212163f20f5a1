"""Questions and answers of the nano tasks, as text and as tensors."""

import numpy as np

from preprocessor.tiling import select_grid, tile_boxes
from training.nano import draw

TILE_SIZE = 112  # pixels
MAX_TILES = 6
TOKENS_PER_TILE = 16
CELLS_PER_TILE = 16  # label cells along a side: two per patch of 14 pixels

# The first of each list is asked most; the others keep the model from hanging on one wording
QUESTIONS = {
    draw.CALCULATION_QUESTION: (
        "What is the result?",
        "Calculate.",
        "What does the calculation in the picture give?",
        "Solve the calculation in the image.",
    ),
    draw.COUNTING_QUESTION: (
        "Count the shapes.",
        "How many shapes are there?",
        "How many shapes do you see?",
        "How many shapes are in this picture?",
    ),
}


def answer_text(thinking, answer):
    """What the model is to say after `<think>\\n`: R1V's form."""
    return f"{thinking}\n</think>\n\nAnswer: \\boxed{{{answer}}}"


def phrase(rng, question):
    others = QUESTIONS[question]
    return question if rng.random() < 0.75 else others[rng.integers(len(others))]


def text_sample(rng):
    """A calculation in the question itself, without a picture: (question, answer)."""
    left, sign, right = draw.random_operands(rng)
    thinking, result = draw.solve(left, sign, right)
    question = ("What is {}?", "Calculate {}.")[rng.integers(2)]
    return question.format(f"{left} {sign} {right}"), answer_text(thinking, result)


def picture_texts(rng, count):
    """Questions and answers of pictures, without drawing them."""
    for _ in range(count):
        thinking, result = draw.solve(*draw.random_operands(rng))
        yield phrase(rng, draw.CALCULATION_QUESTION), answer_text(thinking, result)
        counts = rng.multinomial(rng.integers(1, 10), [1 / 3] * 3)
        yield phrase(rng, draw.COUNTING_QUESTION), answer_text(draw.count_words(counts), counts.sum())


def cut_tiles(drawing):
    """A drawing as the image processor cuts it, with the labels of every tile.

    Returns:
        uint8 tiles (tiles, side, side, 3), and two int64 arrays (tiles, cells, cells), see `draw.label_cells`. With
        more than one tile a thumbnail comes last.
    """
    image = drawing.image
    columns, rows = select_grid(*image.size, 1, MAX_TILES, TILE_SIZE)
    resized = image.resize((columns * TILE_SIZE, rows * TILE_SIZE))
    pictures = [resized.crop(box) for box in tile_boxes(columns, rows, TILE_SIZE)]
    covering, centred = draw.label_cells(drawing.marks, image.size, columns * CELLS_PER_TILE, rows * CELLS_PER_TILE)
    labels = [
        (covering[upper:lower, left:right], centred[upper:lower, left:right])
        for left, upper, right, lower in tile_boxes(columns, rows, CELLS_PER_TILE)
    ]
    if len(pictures) > 1:
        pictures.append(image.resize((TILE_SIZE, TILE_SIZE)))
        labels.append(draw.label_cells(drawing.marks, image.size, CELLS_PER_TILE, CELLS_PER_TILE))
    tiles = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    return tiles, np.stack([label[0] for label in labels]), np.stack([label[1] for label in labels])


