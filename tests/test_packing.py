"""Packed samples: none is cut or lost, and each has the loss that it has alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from tests import checkpoints
from tests.test_data import encoder, images, parts, turn  # noqa: F401  fixtures
from tests.test_sft import arguments, losses, samples  # noqa: F401  fixtures
from training import sft
from training.packing import make_packs
from training.rows import parse_row
from training.sample_encoder import IGNORED, Collator

CAPACITY = 100


@given(lengths=st.lists(st.integers(1, CAPACITY), min_size=1, max_size=200))
def test_every_sample_is_in_one_row_that_has_room(lengths):
    packs = make_packs(lengths, CAPACITY)
    assert sorted(place for pack in packs for place in pack) == list(range(len(lengths)))
    tokens = [sum(lengths[place] for place in pack) for pack in packs]
    assert max(tokens) <= CAPACITY
    # Best fit leaves no two rows that would fit into one
    assert sum(sorted(tokens)[:2]) > CAPACITY or len(packs) == 1


@pytest.mark.parametrize("lengths, packs", [
    ([100], [[0]]),
    ([60, 50, 40], [[0, 2], [1]]),
    ([30, 30, 30, 30], [[0, 1, 2], [3]]),
    # The smallest room that is enough: 40 goes to 60, not to 50
    ([60, 50, 40], [[0, 2], [1]]),
], ids=str)  # fmt: skip
def test_packs(lengths, packs):
    assert make_packs(lengths, CAPACITY) == packs


def test_a_sample_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="101 tokens in rows of 100"):
        make_packs([5, 101], CAPACITY)


@pytest.fixture
def encoded(parts, images):  # noqa: F811
    encode = encoder(parts)
    rows = [
        {"conversations": turn("Text alone", "Yes, it is.")},
        {"image": "large.png", "conversations": turn("<image>\nWhat?", "a</think>b")},
        {"image": "square.png", "conversations": turn("<image>\nHow many?", "3") + turn("?", "4")},
        {
            "images": ["wide.png", "square.png"],
            "conversations": turn("<image>\n<image>\nWhich?", "The first."),
        },
    ]
    return [encode(parse_row(row), images) for row in rows]


def token_losses(model, batch):
    """The loss of each token of the answers, in order; without a cache, as TRL does."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    targets = batch["labels"][:, 1:]
    found = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return found[targets != IGNORED]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_losses_and_gradients_are_those_of_single_samples(parts, encoded, attention):  # noqa: F811
    """Within what the order of float32 sums changes: other shapes, other kernels."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO,
        trust_remote_code=True,
        torch_dtype=torch.float32,
        attn_implementation=attention,
    ).train()
    collator = Collator(parts[1].tokenizer.pad_token_id, (3, 112, 112))
    found = {}
    for name, batch in (("padded", collator(encoded)), ("packed", collator.pack(encoded))):
        loss = token_losses(model, batch)
        model.zero_grad()
        loss.sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.mlp1.parameters()]
        found[name] = (loss.detach(), gradients)
    torch.testing.assert_close(found["packed"][0], found["padded"][0], rtol=1e-4, atol=1e-4)
    for packed, padded in zip(found["packed"][1], found["padded"][1]):
        torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-3 * float(padded.abs().max()))


def test_a_sample_does_not_see_the_one_before(parts, encoded):  # noqa: F811
    """Its losses are the same whatever stands in front of it."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    ).eval()
    collator = Collator(parts[1].tokenizer.pad_token_id, (3, 112, 112))
    last = encoded[-1]
    count = int((last["labels"] != IGNORED).sum())
    with torch.no_grad():
        alone = token_losses(model, collator.pack([last]))
        for before in (encoded[:1], encoded[:3]):
            after = token_losses(model, collator.pack([*before, last]))[-count:]
            torch.testing.assert_close(after, alone, rtol=1e-4, atol=1e-4)


def test_a_packed_training_is_an_unpacked_one(samples, tmp_path):  # noqa: F811
    """All samples in a few rows of one batch, against one batch of them all: the same losses."""
    count = 14
    few = tmp_path / "few.jsonl"
    few.write_text("".join(samples.read_text().splitlines(keepends=True)[:count]))
    settings = {
        "max_length": 1000,
        "train_sampling_strategy": "random",
        "image_root": samples.parent,
    }
    packed = arguments(few, tmp_path / "packed", **settings, pack_samples="true")
    trainer = sft.make_trainer(*sft.parse(packed))
    assert 1 < len(trainer.train_dataset) <= 4
    sft.train(*sft.parse(packed))
    unpacked = arguments(
        few, tmp_path / "unpacked", **settings, global_batch_size=count,
        per_device_train_batch_size=count,
    )  # fmt: skip
    sft.train(*sft.parse(unpacked))
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "unpacked"), rel=1e-3)


@pytest.mark.parametrize("settings, words", [
    ({"streaming": "true", "max_steps": 3}, "not with streaming"),
    ({"train_sampling_strategy": "group_by_length"}, "do not group by length"),
    ({"packing": "true"}, "name pack_samples"),
])  # fmt: skip
def test_settings_that_do_not_go_with_packing(samples, tmp_path, settings, words):  # noqa: F811
    flags = arguments(samples, tmp_path, pack_samples="true", **settings)
    with pytest.raises(ValueError, match=words):
        sft.make_trainer(*sft.parse(flags))
