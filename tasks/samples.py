"""The nano tasks as tiles with labels, as words, and as questions with answers.

A *transcription* of a tile is what a reader would note down of it: one word for each of its `TOKENS_PER_TILE` visual
tokens, the marks from left to right, then "empty". The vision encoder learns to write it (`training.nano.encoder`),
and the language models learn to read it as text (`training.nano.text`); the projector is all that is left to connect
them.
"""

import dataclasses

import numpy as np

from preprocessor.tiling import select_grid, tile_boxes
from tasks import draw

TILE_SIZE = 112  # pixels
MAX_TILES = 6
TOKENS_PER_TILE = 16
CELLS_PER_TILE = 16  # label cells along a side: two per patch of 14 pixels

EMPTY, UNKNOWN = "empty", "bar"  # UNKNOWN: a bar whose top or axis is not in the tile
WORDS = (EMPTY, *"0123456789+-×", *draw.SHAPES, *draw.LETTERS, UNKNOWN)
WORD_INDEX = {word: index for index, word in enumerate(WORDS)}

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
    draw.TALLEST_QUESTION: ("Which bar is the highest?", "Which letter has the tallest bar?"),
    draw.VALUE_QUESTION: ("How high is bar {}?", "What value does bar {} have?"),
}
PAIR_QUESTION = "Which image shows more shapes, the first or the second?"
DESCRIBE_QUESTION = "What is in the image?"
PAIR_SIDES = (100, 600)  # pixels


@dataclasses.dataclass
class Sample:
    """A question about any number of drawings, with both ways to answer."""

    drawings: list
    question: str
    thinking: str
    answer: str

    @property
    def images(self):
        return [drawing.image for drawing in self.drawings]


def reasoned(sample):
    """The answer after thinking, as it follows `<think>\\n`: R1V's form."""
    return f"{sample.thinking}\n</think>\n\nAnswer: \\boxed{{{sample.answer}}}"


def direct(sample):
    """The answer without thinking, as it follows `<think>\\n`."""
    return f"\n</think>\n\nAnswer: \\boxed{{{sample.answer}}}"


def phrase(rng, question):
    """The question, or now and then another wording of it."""
    letter = question[-2] if question.startswith(draw.VALUE_QUESTION[:-3]) else ""
    others = QUESTIONS[draw.VALUE_QUESTION if letter else question]
    return question if rng.random() < 0.75 else others[rng.integers(len(others))].format(letter)


def _of_drawing(rng, drawing, wordings):
    question = phrase(rng, drawing.question) if wordings else drawing.question
    return Sample([drawing], question, drawing.thinking, drawing.answer)


def calculation(rng, wordings=False):
    return _of_drawing(rng, draw.draw_calculation(rng), wordings)


def counting(rng, wordings=False):
    return _of_drawing(rng, draw.draw_shapes(rng), wordings)


def chart(rng, wordings=False):
    return _of_drawing(rng, draw.draw_chart(rng), wordings)


def pair(rng, wordings=False):
    """Two pictures with shapes; one time in four with equally many."""
    first = int(rng.integers(1, 10))
    others = [count for count in range(1, 10) if count != first]
    second = first if rng.random() < 0.25 else int(others[rng.integers(len(others))])
    drawings = [draw.draw_shapes(rng, PAIR_SIDES, count) for count in (first, second)]
    answer = "equal" if first == second else "first" if first > second else "second"
    relation = {"equal": "as many as", "first": "more than", "second": "less than"}[answer]
    thinking = f"First: {drawings[0].thinking} Second: {drawings[1].thinking} {first} is {relation} {second}."
    return Sample(drawings, PAIR_QUESTION, thinking, answer)


FAMILIES = {"calculation": calculation, "counting": counting, "two images": pair, "charts": chart}


def description(rng, wordings=False):
    """What is in the picture, in words: no task, but every mark counts for the answer."""
    drawing = draw.KINDS[rng.integers(3)](rng)
    if isinstance(drawing.facts, dict):
        answer = ", ".join(f"{letter} {value}" for letter, value in drawing.facts.items())
    elif isinstance(drawing.facts[1], str):
        answer = "{} {} {}".format(*drawing.facts)
    else:
        answer = draw.count_words(drawing.facts).split(".")[0].removeprefix("I see ")
    return Sample([drawing], DESCRIBE_QUESTION, "I look at the image.", answer)


def bare_calculation(rng):
    """A calculation in the question itself, without a picture."""
    left, sign, right = draw.random_operands(rng)
    thinking, result = draw.solve(left, sign, right)
    question = ("What is {}?", "Calculate {}.")[rng.integers(2)]
    return Sample([], question.format(f"{left} {sign} {right}"), thinking, str(result))


def grid(drawing):
    """(columns, rows) of tiles that the image processor cuts the drawing into."""
    return select_grid(*drawing.size, 1, MAX_TILES, TILE_SIZE)


def regions(drawing):
    """The boxes of the drawing, in its pixels, that its tiles show; with more than one the thumbnail's comes last."""
    columns, rows = grid(drawing)
    width, height = drawing.size
    boxes = [
        (
            left * width / columns,
            upper * height / rows,
            right * width / columns,
            lower * height / rows,
        )
        for left, upper, right, lower in tile_boxes(columns, rows, 1)
    ]
    return boxes + [(0, 0, width, height)] if len(boxes) > 1 else boxes


def transcribe(marks, region, size):
    """The words of the marks whose middle lies in a region, from left to right, filled up with EMPTY."""
    left, upper, right, lower = region
    words = []
    for mark in sorted((mark for mark in marks if mark.words), key=lambda mark: mark.middle[0]):
        # A mark at the very border of the picture belongs to the last tile
        x, y = (
            min(max(mark.middle[0], 0), size[0] - 1e-6),
            min(max(mark.middle[1], 0), size[1] - 1e-6),
        )
        if not (left <= x < right and upper <= y < lower):
            continue
        words.append(mark.words[0])
        if mark.seen_with is not None:
            box = mark.seen_with
            seen = left <= box[0] and upper <= box[1] + 1 and box[2] <= right and box[3] <= lower
            words.append(mark.words[1] if seen else UNKNOWN)
    return words + [EMPTY] * (TOKENS_PER_TILE - len(words))


def transcriptions(drawing):
    """The words of every tile."""
    return [transcribe(drawing.marks, region, drawing.size) for region in regions(drawing)]


def cut_tiles(drawing):
    """A drawing as the image processor cuts it, with the labels of every tile.

    Returns:
        uint8 tiles (tiles, side, side, 3), two int64 arrays (tiles, cells, cells), see `draw.label_cells`, and the
        words' indices, int64 (tiles, TOKENS_PER_TILE). With more than one tile a thumbnail comes last.
    """
    image = drawing.image
    columns, rows = grid(drawing)
    resized = image.resize((columns * TILE_SIZE, rows * TILE_SIZE))
    pictures = [resized.crop(box) for box in tile_boxes(columns, rows, TILE_SIZE)]
    covering, centred = draw.label_cells(
        drawing.marks, image.size, columns * CELLS_PER_TILE, rows * CELLS_PER_TILE
    )
    labels = [
        (covering[upper:lower, left:right], centred[upper:lower, left:right])
        for left, upper, right, lower in tile_boxes(columns, rows, CELLS_PER_TILE)
    ]
    if len(pictures) > 1:
        pictures.append(image.resize((TILE_SIZE, TILE_SIZE)))
        labels.append(draw.label_cells(drawing.marks, image.size, CELLS_PER_TILE, CELLS_PER_TILE))
    tiles = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    words = np.array([[WORD_INDEX[word] for word in tile] for tile in transcriptions(drawing)])
    return (
        tiles,
        np.stack([label[0] for label in labels]),
        np.stack([label[1] for label in labels]),
        words,
    )


def word_text(word):
    """A word as text that is one token: digits are always alone, everything else takes a space along."""
    return word if word.isdigit() else f" {word}"


def misread(rng, words, rate):
    """A transcription with mistakes: at that rate each, words are lost, doubled, swapped, or taken for another one."""
    classes = ("0123456789", "+-×", draw.SHAPES, draw.LETTERS)
    heard = []
    for word in words:
        if word == EMPTY:
            break
        slip = rng.random() / rate if rate else 4
        if slip < 1:
            continue
        if slip < 2:
            heard.append(word)
        elif slip < 3 and heard:
            heard.insert(-1, word)
            continue
        elif slip < 4:
            others = next((group for group in classes if word in group), (word,))
            word = others[rng.integers(len(others))]
        heard.append(word)
    return (heard + [EMPTY] * TOKENS_PER_TILE)[:TOKENS_PER_TILE]


def described(rng, sample, exact=False):
    """The question with words in place of its pictures: the transcriptions of their tiles, a few words misread.

    A thumbnail shows everything, but many small shapes in it are easily miscounted; tiles cut things at their borders. So
    the reader learns to weigh the two.

    Args:
        exact: no words are misread.
    """
    lines = []
    for drawing in sample.drawings:
        tiles = transcriptions(drawing)
        in_thumbnail = 0.015 if drawing.question == draw.COUNTING_QUESTION else 0.005
        rates = [0.0] * len(tiles) if exact else [0.01] * (len(tiles) - 1) + [in_thumbnail]
        read = [misread(rng, words, rate) for words, rate in zip(tiles, rates)]
        lines.append("[" + "".join(word_text(word) for words in read for word in words) + "]\n")
    return "".join(lines) + sample.question


TEXT_SHARES = {
    calculation: 0.22,
    counting: 0.16,
    pair: 0.24,
    chart: 0.22,
    description: 0.08,
    bare_calculation: 0.08,
}


def text_sample(rng):
    """A sample of any kind, its pictures put into words."""
    kinds = list(TEXT_SHARES)
    kind = kinds[rng.choice(len(kinds), p=list(TEXT_SHARES.values()))]
    sample = kind(rng) if kind is bare_calculation else kind(rng, wordings=True)
    return dataclasses.replace(sample, question=described(rng, sample))
