"""The nano checkpoint really answers; its pictures are what they are said to be."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation import nano as evaluation
from tests import checkpoints
from training.nano import draw, samples
from training.nano.encoder import normalize
from training.nano.package import load_package

split_thinking = load_package().conversation.split_thinking


@pytest.mark.parametrize("task", ["calculation", "counting"])
def test_it_answers_fresh_pictures(nano_model, nano_tokenizer, task):
    """40 pictures; `make nano-score` is the measurement (500). At 95 % fewer than 34 right is one in 3,000."""
    right, wrong = evaluation.score(nano_model, nano_tokenizer, task, count=40, seed=77, batch_size=20)
    assert right >= 34, wrong[:5]


@pytest.mark.parametrize("name, question, answer", [
    ("calculation_1", draw.CALCULATION_QUESTION, "0"),
    ("calculation_2", draw.CALCULATION_QUESTION, "102"),
    ("calculation_3", draw.CALCULATION_QUESTION, "-55"),
    ("counting_1", draw.COUNTING_QUESTION, "9"),
    ("counting_2", draw.COUNTING_QUESTION, "7"),
    ("counting_3", draw.COUNTING_QUESTION, "6"),
])  # fmt: skip
def test_the_shipped_examples(nano_model, nano_tokenizer, name, question, answer):
    path = checkpoints.ROOT / "examples" / "images" / f"{name}.png"
    said = nano_model.chat(nano_tokenizer, path, question, {"max_new_tokens": 160, "do_sample": False})
    thinking, final = split_thinking(said)
    assert thinking and evaluation.boxed(final) == answer


def test_it_calculates_without_a_picture(nano_model, nano_tokenizer):
    questions = ["What is 12 + 34?", "Calculate 7 × 8.", "What is 20 - 55?"]
    said = nano_model.batch_chat(nano_tokenizer, None, questions, {"max_new_tokens": 160, "do_sample": False})
    assert [evaluation.boxed(answer) for answer in said] == ["46", "56", "-35"]


def test_every_calculation_is_solved_right_digit_by_digit():
    """The reasoning that is taught, for all of them."""
    for sign, high in (("+", 100), ("-", 100), ("×", 13)):
        for left, right in itertools.product(range(high), repeat=2):
            thinking, result = draw.solve(left, sign, right)
            assert result == {"+": left + right, "-": left - right, "×": left * right}[sign]
            for step in thinking.replace("Ones: ", "#").replace("Tens: ", "#").split("#")[1:]:
                expression, value = step.split(".")[0].split(" = ")
                assert eval(expression) == int(value), thinking


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_calculations_are_drawn_within_the_stated_range(seed):
    drawing = draw.draw_calculation(np.random.default_rng(seed))
    width, height = drawing.image.size
    assert 100 <= width <= 800 and 100 <= height <= 800
    boxes = [mark.box for mark in drawing.marks]
    assert min(box[0] for box in boxes) >= -2 and max(box[2] for box in boxes) <= width + 2
    assert min(box[1] for box in boxes) >= 0 and max(box[3] for box in boxes) <= height
    pixels = np.asarray(drawing.image).astype(int)
    inked = np.abs(pixels - pixels[[0, -1, 0, -1], [0, 0, -1, -1]].mean(0)).sum(-1) > 60
    assert inked.any()
    # a digit of a font of size s is about 0.73 s tall
    digits = [box for mark, box in zip(drawing.marks, boxes) if mark.label <= 10]
    assert max(lower - upper for _, upper, _, lower in digits) >= 0.7 * 0.1 * max(width, height) - 2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_shapes_are_apart_and_large_enough(seed):
    rng = np.random.default_rng(seed)
    width, height, count = int(rng.integers(100, 801)), int(rng.integers(100, 801)), int(rng.integers(1, 10))
    placed = draw.place_shapes(rng, width, height, count)
    assert len(placed) == count
    for x, y, radius in placed:
        assert radius >= max(7, min(width, height) / 20)
        assert radius <= x <= width - radius and radius <= y <= height - radius
    for (x, y, r), (u, v, s) in itertools.combinations(placed, 2):
        assert math.hypot(x - u, y - v) > r + s


def test_all_fonts_and_kinds_occur():
    assert len(draw.font_paths()) == 12
    rng = np.random.default_rng(0)
    answers = {draw.draw_shapes(rng).answer for _ in range(300)}
    assert answers == {str(number) for number in range(1, 10)}


def test_labels_of_cells():
    marks = [draw.Mark(3, (10, 10, 30, 30)), draw.Mark(5, (60, 0, 100, 100))]
    covering, centred = draw.label_cells(marks, (100, 100), 10, 10)
    assert set(np.unique(covering)) == {0, 3, 5} and (covering == 3).sum() == 4 and (covering == 5).sum() == 40
    assert centred[2, 2] == 3 and centred[5, 8] == 5 and (centred != 0).sum() == 2


def test_training_tiles_are_the_image_processors(nano_processor):
    for seed in range(5):
        drawing = draw.draw(np.random.default_rng(seed))
        tiles, covering, centred = samples.cut_tiles(drawing)
        ours = nano_processor.image_processor(drawing.image)["pixel_values"]
        torch.testing.assert_close(normalize(torch.from_numpy(tiles)), ours)
        assert len(tiles) == len(covering) == len(centred)


@pytest.mark.parametrize("text, value", [
    ("</think>\n\nAnswer: \\boxed{42}", "42"), ("\\boxed{1} then \\boxed{ -2 }", "-2"), ("42", None), ("", None),
])  # fmt: skip
def test_boxed(text, value):
    assert evaluation.boxed(text) == value


def test_wilson_interval():
    """The worked example of 8 of 10 in Wilson's own formula: 0.490 to 0.943."""
    low, high = evaluation.wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_the_example_pictures_exist():
    for name in ("image1.jpg", "image2.jpg"):
        assert Image.open(checkpoints.ROOT / "examples" / name).size[0] >= 100
