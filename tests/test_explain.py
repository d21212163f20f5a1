"""Where a model looked: maps against drawings of which it is known what is where."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from explain import check, scoring
from explain.attention import on_cells
from explain.looking import LookSettings, as_weights, where_it_looked
from explain.occlusion import Occlusion, TiledImage
from explain.picture import heat_over
from tasks.draw import draw_shapes
from tests import checkpoints

IMAGES = checkpoints.ROOT / "examples" / "images"
COUNTING = str(IMAGES / "counting_1.png")
QUESTION = "How many shapes are in the image?"
OPTIONS = {"max_new_tokens": 256, "do_sample": False}


@pytest.fixture(scope="module")
def read(nano_model, nano_processor):
    """Opens an image as the nano model gets it."""
    return lambda source: TiledImage.read(source, nano_processor.image_processor, torch.float32)


def scored_answer(model, tokenizer, images, answer, **of_prompt):
    passage = of_prompt.pop("passage", None)
    question = of_prompt.pop("question", QUESTION)
    prompt = scoring.Prompt(question, [len(image.boxes) for image in images], **of_prompt)
    return scoring.ScoredAnswer(model, tokenizer, prompt, answer, passage)


# -- the maps --------------------------------------------------------------------------------------


def test_the_weight_lies_on_what_is_counted_and_asked_about(nano_model, nano_tokenizer):
    """More than on as large a part of the picture by chance, for each of these drawings."""
    settings = LookSettings(cells_per_side=6)
    for task in check.TASKS:
        for asked in check.drawings(task, 2, seed=7):
            answer = nano_model.chat(
                nano_tokenizer, asked.drawing.image, asked.drawing.question, OPTIONS
            )
            [weights] = where_it_looked(
                nano_model, nano_tokenizer, asked.drawing.image, asked.drawing.question, answer,
                asked.passage, settings=settings,
            )  # fmt: skip
            assert (weights >= 0).all() and weights.sum() == pytest.approx(1)
            assert check.share_on(weights, asked.covered) > 1.5 * asked.covered.mean()


def test_both_classes_and_both_kinds_of_tokenizer_give_the_same(
    nano_model, nano_standard, nano_tokenizer, nano_processor
):
    answer = nano_model.chat(nano_tokenizer, COUNTING, QUESTION, OPTIONS)
    settings = LookSettings(cells_per_side=3)
    [first] = where_it_looked(
        nano_model, nano_tokenizer, COUNTING, QUESTION, answer, settings=settings
    )
    [second] = where_it_looked(
        nano_standard, nano_processor, [Image.open(COUNTING)], QUESTION, answer, settings=settings
    )
    assert first.shape == (3, 2)  # of 622 × 390 pixels
    np.testing.assert_array_equal(first, second)


def test_of_two_images_and_turns_each_image_has_a_map(nano_model, nano_tokenizer):
    one, two = str(IMAGES / "pair_1a.png"), str(IMAGES / "pair_1b.png")
    question = "Which image shows more shapes, the first or the second?"
    answer, history = nano_model.chat(
        nano_tokenizer, [one, two], question, OPTIONS, return_history=True
    )
    settings = LookSettings(cells_per_side=2)
    maps = where_it_looked(
        nano_model, nano_tokenizer, [one, two], question, answer, settings=settings
    )
    assert len(maps) == 2
    for weights, path in zip(maps, (one, two)):
        width, height = Image.open(path).size
        assert (weights.shape[0] >= weights.shape[1]) == (height >= width)
        assert weights.sum() == pytest.approx(1)
    again = nano_model.chat(nano_tokenizer, [one, two], "Why?", OPTIONS, history=history) or "1"
    later = where_it_looked(
        nano_model, nano_tokenizer, [one, two], "Why?", again, history=history, settings=settings
    )
    assert [weights.shape for weights in later] == [weights.shape for weights in maps]


def test_a_plain_image_has_equal_weights(nano_model, nano_tokenizer):
    """Covering it with its own colour changes nothing, so that no part of it is any better."""
    plain = Image.new("RGB", (300, 200), (200, 210, 220))
    [weights] = where_it_looked(nano_model, nano_tokenizer, plain, QUESTION, "None.")
    assert weights.shape == (8, 12) and (weights == 1 / 96).all()


def test_the_same_map_every_time(nano_model, nano_tokenizer):
    settings = LookSettings(cells_per_side=3)
    arguments = (nano_model, nano_tokenizer, COUNTING, QUESTION, "I see 9.")
    [first] = where_it_looked(*arguments, settings=settings)
    [second] = where_it_looked(*arguments, settings=settings)
    np.testing.assert_array_equal(first, second)


# -- covering --------------------------------------------------------------------------------------


def test_covering_everything_is_a_plain_image(nano_model, nano_tokenizer, read):
    """The one cell of a map of one cell: as if the picture had its median colour everywhere."""
    drawing = draw_shapes(np.random.default_rng(3))
    image = read(drawing.image)
    colour = tuple(int(value) for value in np.median(np.asarray(drawing.image), axis=(0, 1)))
    plain = read(Image.new("RGB", drawing.size, colour))
    scored = scored_answer(nano_model, nano_tokenizer, [image], "I see 1 circle.")
    tall = [1, 1]
    drops = Occlusion(nano_model, scored, [image]).drops(0, 1)
    assert list(drops.shape) == tall
    with torch.no_grad():
        features = nano_model.extract_feature(plain.pixel_values)
    without = float(scored.log_probabilities(features[None])[0])
    with_image = Occlusion(nano_model, scored, [image]).log_probability
    assert drops[0, 0] == pytest.approx(with_image - without, abs=1e-4)


@pytest.mark.parametrize("size", [(112, 112), (640, 480), (200, 790), (37, 53)])
def test_covered_tiles_are_those_of_a_picture_that_was_painted_over(read, size):
    """Up to the pixels at the edges of the cell, which resizing mixes."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    image = read(noise)
    colour = tuple(int(value) for value in np.median(np.asarray(noise), axis=(0, 1)))
    side = image.pixel_values.shape[-1]
    for row, column, box in image.cells(3):
        places, tiles = image.covered(box)
        painted = noise.copy()
        left, upper, right, lower = box
        inside = (math.floor(left), math.floor(upper), math.ceil(right) - 1, math.ceil(lower) - 1)
        ImageDraw.Draw(painted).rectangle(inside, fill=colour)
        expected = read(painted).pixel_values
        found = image.pixel_values.clone()
        found[places] = tiles
        differing = ((found - expected).abs().amax(1) > 0.3).float().mean()
        # a frame of a few pixels around the cell, in the tiles and in the thumbnail
        assert differing < 0.1 * max(1, 112 / min(size)), (row, column, side)
        untouched = [place for place in range(len(image.boxes)) if place not in places]
        assert torch.equal(found[untouched], image.pixel_values[untouched])


def test_cells_cover_an_image_once(read):
    image = read(Image.new("RGB", (301, 97)))
    area = 0
    for _, _, (left, upper, right, lower) in image.cells(7):
        area += (right - left) * (lower - upper)
    assert area == pytest.approx(301 * 97) and image.grid_shape(7) == (2, 7)
    assert read(Image.new("RGB", (800, 20))).grid_shape(5) == (1, 5)


# -- scoring ---------------------------------------------------------------------------------------


def test_the_score_is_that_of_transformers(nano_standard, nano_processor, read):
    """The loss over the answer's tokens, of a prompt that the processor made."""
    answer = "I see 2 circles.\n</think>\n\nAnswer: 2"
    content = [{"type": "image", "path": COUNTING}, {"type": "text", "text": QUESTION}]
    inputs = nano_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    image = read(COUNTING)
    scored = scored_answer(nano_standard, nano_processor.tokenizer, [image], answer)
    prompt = inputs["input_ids"][0].tolist()
    assert scored.ids[: len(prompt)] == prompt
    ids = torch.tensor([scored.ids])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    with torch.no_grad():
        features = nano_standard.extract_feature(image.pixel_values)
        loss = nano_standard(input_ids=ids, pixel_values=inputs["pixel_values"], labels=labels).loss
    found = scored.log_probabilities(torch.stack([features, features]))
    expected = -float(loss) * (len(scored.ids) - len(prompt))
    assert found.tolist() == pytest.approx([expected, expected], rel=1e-4)


@pytest.mark.parametrize("answer, passage", [
    ("The bars are A 2, B 5 and C 4. Bar B is 5.\n</think>\n\nAnswer: \\boxed{5}", "B 5"),
    ("I read 12 + 34.\n</think>\n\nAnswer: \\boxed{46}", "\\boxed{46}"),
    ("I read 12 + 34.\n</think>\n\nAnswer: 46", "."),
    ("12</think>12", "12"),  # the first of two
    ("ab", "ab"),
])  # fmt: skip
def test_a_passage_is_the_tokens_that_have_a_part_in_it(
    nano_model, nano_tokenizer, read, answer, passage
):
    image = read(COUNTING)
    scored = scored_answer(nano_model, nano_tokenizer, [image], answer, passage=passage)
    tokens = [scored.ids[place] for place in scored.scored]
    text = nano_tokenizer.decode(tokens)
    assert passage in text
    for shorter in (tokens[1:], tokens[:-1]):  # none too many
        assert passage not in nano_tokenizer.decode(shorter)
    before = nano_tokenizer.decode(scored.ids[: scored.scored.start])
    assert before.endswith(answer[: answer.index(passage)].rstrip()[-5:])


@pytest.mark.parametrize("arguments, words", [
    ({"answer": ""}, "empty"),
    ({"passage": "7 hexagons"}, "does not stand in the answer"),
    ({"passage": ""}, "does not stand in the answer"),
    ({"images": []}, "No image"),
    ({"images": None}, "No image"),
    ({"images": "none.png"}, "none.png: no such image file"),
    ({"answer": "word " * 5000}, "context is 4096"),
    ({"history": [("<image>\n<image>\nBoth?", "Yes.")], "question": "<image> <image>"},
     None),  # two of one: a word
])  # fmt: skip
def test_what_cannot_be_explained(nano_model, nano_tokenizer, arguments, words):
    call = {"images": COUNTING, "question": QUESTION, "answer": "I see 9.", **arguments}
    call["settings"] = LookSettings(cells_per_side=1)
    if words is None:
        assert len(where_it_looked(nano_model, nano_tokenizer, **call)) == 1
        return
    with pytest.raises((ValueError, OSError), match=words):
        where_it_looked(nano_model, nano_tokenizer, **call)


@pytest.mark.parametrize("settings, words", [
    ({"cells_per_side": 0}, "cells_per_side=0"),
    ({"mode": "fast"}, "mode='fast'"),
])  # fmt: skip
def test_settings_without_sense(settings, words):
    with pytest.raises(ValueError, match=words):
        LookSettings(**settings)


# -- weights and pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("values, weights", [
    ([[1.0, 3.0]], [[0.25, 0.75]]),
    ([[-2.0, 5.0]], [[0.0, 1.0]]),  # covering helped: it was not looked at for this answer
    ([[-1.0, 0.0]], [[0.5, 0.5]]),  # nothing lowers anything
])  # fmt: skip
def test_weights(values, weights):
    assert as_weights(np.array(values)).tolist() == weights


@pytest.mark.parametrize("weights, share", [
    ([[1.0, 0.0], [0.0, 0.0]], 1.0),  # all of it where the mark is
    ([[0.0, 0.0], [0.0, 1.0]], 0.0),
    ([[0.25, 0.25], [0.25, 0.25]], 0.25),
])  # fmt: skip
def test_the_share_on_a_mark(weights, share):
    covered = np.zeros((10, 20), dtype=bool)
    covered[:5, :10] = True
    assert check.share_on(np.array(weights), covered) == pytest.approx(share)


def test_tokens_on_cells(read):
    """All of one token's value where it lies, whatever its size."""
    image = read(Image.new("RGB", (100, 100)))
    boxes = np.array([[0, 0, 50, 50], [50, 50, 100, 100], [0, 0, 100, 100]], dtype=float)
    shares = on_cells(boxes, np.array([3.0, 1.0, 4.0]), image, 2)
    assert shares.tolist() == [[0.5, 0.125], [0.125, 0.25]]


def test_the_picture_shows_the_cells():
    image = Image.new("RGB", (40, 20), "white")
    shown = np.asarray(heat_over(image, np.array([[0.0, 1.0]]))).astype(int)
    assert shown.shape == (20, 40, 3)
    assert (shown[:, :20] == shown[0, 0]).all() and (shown[:, 20:] == shown[0, -1]).all()
    assert shown[0, -1, 0] > shown[0, 0, 0] + 50  # red and green make yellow


def test_the_command_writes_the_picture_of_each_image(tmp_path):
    command = [
        sys.executable, "-m", "explain", "--image", str(IMAGES / "pair_1a.png"),
        str(IMAGES / "pair_1b.png"), "--question", "Which one?", "--answer", "The second.",
        "--cells", "2", "--out", str(tmp_path / "heat.png"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=checkpoints.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, name in ((1, "pair_1a.png"), (2, "pair_1b.png")):
        with Image.open(tmp_path / f"heat-{number}.png") as picture:
            assert picture.size == Image.open(IMAGES / name).size


@pytest.mark.parametrize("changes, words", [
    ({"--out": "no/such/heat.png"}, "no folder"),
    ({"--out": "heat.words"}, "an image file"),
    ({"--image": "none.png"}, "no such image file"),
    ({"--cells": "0"}, "cells_per_side=0"),
])  # fmt: skip
def test_mistakes_at_the_command_line(monkeypatch, changes, words):
    from explain.__main__ import main

    given = {"--image": COUNTING, "--question": "How many?", "--out": "heat.png", **changes}
    words_given = [word for item in given.items() for word in item]
    monkeypatch.setattr(sys, "argv", ["explain", *words_given])
    with pytest.raises((ValueError, OSError), match=words):
        main()
