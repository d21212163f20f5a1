"""Answers rated from 0 to 5 by a judge: nano cannot rate, so what is tested is the arithmetic."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests import checkpoints
from tests.test_data import images, parts, turn, write  # noqa: F401  fixtures
from training import select
from training.rating import Rating, RequestEncoder, as_request, digit_ids, rate_answers
from training.rows import ChatSample, parse_row
from training.sample_encoder import Collator

SETTINGS = {"workers": 0, "dtype": "float32"}


def test_the_judge_reads_questions_and_answers_with_images_in_their_places():
    sample = ChatSample(
        [("<image>\nWhat?", "An <image>."), ("<image>And?", "So.")], ["a.png", "b.png"], "Be brief."
    )
    ((request, digit),) = as_request(sample).turns
    assert request.startswith(
        "Instruction: Be brief.\nQuestion: <image>\nWhat?\nAnswer: An (image).\n"
        "Question: <image>And?\nAnswer: So.\n\nRate the last answer from 0 to 5"
    )
    assert digit == "0" and as_request(sample).images == ["a.png", "b.png"]


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    ).eval()


def test_ratings_are_means_of_digits_by_their_probability(parts, images, model, nano_model):  # noqa: F811
    """By hand, from the prompt that chat(mode="no-think") builds, without padding."""
    config, processor = parts
    tokenizer = processor.tokenizer
    encode = RequestEncoder(config, tokenizer, processor.image_processor, 2000)
    rows = [
        {"image": "wide.png", "conversations": turn("<image>\nHow many?", "3")},
        {"conversations": turn("What is 1 + 1?", "I add.</think>2")},
    ]
    samples = [parse_row(row) for row in rows]
    collator = Collator(tokenizer.pad_token_id, (3, 112, 112))
    batch = collator([encode(sample, images) for sample in samples])
    ratings = rate_answers(model, batch, digit_ids(tokenizer))
    for sample, rating in zip(samples, ratings):
        asked = []
        nano_model.generate = lambda asked=asked, **inputs: (
            asked.append(inputs) or torch.zeros(1, 0, dtype=torch.int64)
        )
        pictures = [images / name for name in sample.images] or None
        request = as_request(sample).turns[0][0]
        nano_model.chat(tokenizer, pictures, request, {"max_new_tokens": 1}, mode="no-think")
        del nano_model.generate
        with torch.no_grad():
            logits = model(
                input_ids=asked[0]["input_ids"], pixel_values=asked[0]["pixel_values"]
            ).logits[0, -1]
        shares = logits.softmax(-1)[[tokenizer.convert_tokens_to_ids(digit) for digit in "012345"]]
        expected = sum(digit * float(share) for digit, share in enumerate(shares)) / shares.sum()
        assert rating.value == pytest.approx(float(expected), rel=1e-3)
        assert rating.share_of_digits == pytest.approx(float(shares.sum()), rel=1e-2)


@pytest.fixture
def pool(images):  # noqa: F811
    rows = [{"id": number, "conversations": turn("Hi", f"{number}")} for number in range(6)]
    return write(images / "pool.jsonl", rows)


@pytest.mark.parametrize("kept, ids", [
    ({"at_least": 3.5}, [4, 5]),
    ({"at_least": 0}, [0, 1, 2, 3, 4, 5]),
    ({"keep": 0.5}, [3, 4, 5]),
])  # fmt: skip
def test_lines_are_kept_by_their_rating(pool, tmp_path, monkeypatch, kept, ids):
    ratings = iter([float(number) for number in range(6)])
    settings = select.JudgingSettings(by="rating", batch_size=1, **SETTINGS)
    # Batches come from the longest to the shortest; all are of one length here
    monkeypatch.setattr(
        select, "rate_answers", lambda model, batch, digits: [Rating(5 - next(ratings), 1.0)]
    )
    select.select(pool, tmp_path / "out.jsonl", checkpoints.NANO, settings=settings, **kept)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ids
    assert [line["score"] for line in lines] == ids


def test_nothing_good_enough_is_an_error_and_the_scores_stay(pool, tmp_path, monkeypatch):
    settings = select.JudgingSettings(by="rating", **SETTINGS)
    monkeypatch.setattr(select, "rate_answers", lambda model, batch, digits: [Rating(2.0, 1.0)] * 6)
    with pytest.raises(ValueError, match=r"at_least=4: .* the best has 2.00"):
        select.select(pool, tmp_path / "out.jsonl", checkpoints.NANO, settings=settings, at_least=4)
    assert (tmp_path / "out.jsonl.scores").is_file() and not (tmp_path / "out.jsonl").exists()


def test_a_judge_that_does_not_follow_is_warned_of(pool, tmp_path, caplog):
    """Nano was taught no such request."""
    settings = select.JudgingSettings(by="rating", **SETTINGS)
    with caplog.at_level(logging.WARNING):
        select.select(pool, tmp_path / "out.jsonl", checkpoints.NANO, 1.0, settings)
    assert "does not follow the request" in caplog.text


def test_ratings_and_likelihoods_are_not_mixed(pool, tmp_path):
    """Scores of one kind that an interrupted run left are not those of the other."""
    settings = select.JudgingSettings(**SETTINGS)
    left = tmp_path / "out.jsonl.scores"
    left.write_text(json.dumps(["another judging"]) + "\n[0, 5.0]\n")
    select.select(pool, tmp_path / "out.jsonl", checkpoints.NANO, 1.0, settings)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(line["score"] < 0 for line in lines)


@pytest.mark.parametrize("settings, words", [
    ({}, "expected one of the two"),
    ({"keep": 0.5, "at_least": 3}, "expected one of the two"),
    ({"keep": 1.5}, "keep=1.5"),
])  # fmt: skip
def test_what_is_kept_is_said_in_one_way(pool, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        select.select(pool, tmp_path / "out.jsonl", checkpoints.NANO, **settings)
    with pytest.raises(ValueError, match="by='taste'"):
        select.JudgingSettings(by="taste")
