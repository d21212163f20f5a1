"""Splitting over GPUs, without any: pure functions of sizes, with the real sizes of 38B in bf16."""

import itertools
import random

import pytest
import torch

from remote_code import configuration_skywork_chat, device_map, modeling_skywork_chat

GIB, GB = 2**30, 10**9


@pytest.fixture(scope="module")
def sizes_38b():
    with torch.device("meta"):
        model = modeling_skywork_chat.SkyworkChatModel(
            configuration_skywork_chat.SkyworkChatConfig()
        )
    return device_map.module_sizes(model)


def shares(counts, layer_sizes, first_size, memory):
    held = [count * layer_sizes[0] for count in counts]
    held[0] += first_size
    return [load / size for load, size in zip(held, memory)]


def test_sizes_are_those_of_the_modules(sizes_38b):
    layer_sizes, first_size = sizes_38b
    assert len(layer_sizes) == 64 and len(set(layer_sizes)) == 1
    assert sum(layer_sizes) + first_size == 2 * 38_392_158_592
    # vision tower, projector, embeddings, head and the last norm
    assert first_size == 2 * (5_536_496_000 + 91_786_240 + 2 * 152_064 * 5120 + 5120)


@pytest.mark.parametrize("memory, expected", [
    pytest.param([80 * GB], [64], id="1 x 80 GB: all on one"),
    pytest.param([80 * GB] * 2, [25, 39], id="2 x 80 GB"),
    pytest.param([24 * GB] * 4 + [48 * GB], None, id="4 x 24 GB + 1 x 48 GB"),
    pytest.param([48 * GB] + [24 * GB] * 4, None, id="the larger one first"),
    pytest.param([40 * GB] * 3, None, id="3 x 40 GB"),
    pytest.param([24 * GB] * 4, None, id="4 x 24 GB"),
    pytest.param([24 * GB] * 5, None, id="5 x 24 GB"),
    pytest.param([24 * GB] * 6, None, id="6 x 24 GB"),
    pytest.param([24 * GB] * 7, None, id="7 x 24 GB"),
    pytest.param([24 * GB] * 8, None, id="8 x 24 GB"),
])  # fmt: skip
def test_38b_in_bf16(sizes_38b, memory, expected):
    layer_sizes, first_size = sizes_38b
    counts = device_map.split_layers(layer_sizes, first_size, memory)
    assert sum(counts) == 64 and len(counts) == len(memory)
    largest = max(shares(counts, layer_sizes, first_size, memory))
    assert largest <= 1
    # No move of one layer from the fullest GPU to any other makes the fullest emptier
    fullest = max(
        range(len(memory)), key=lambda gpu: shares(counts, layer_sizes, first_size, memory)[gpu]
    )
    for other in range(len(memory)):
        if other != fullest and counts[fullest]:
            moved = list(counts)
            moved[fullest] -= 1
            moved[other] += 1
            assert max(shares(moved, layer_sizes, first_size, memory)) >= largest - 1e-12
    assert expected is None or counts == expected
    built = device_map.build_device_map(counts)
    layers = [built[f"language_model.model.layers.{index}"] for index in range(64)]
    assert layers == sorted(layers)  # consecutive, so that activations cross each border once
    assert {device for name, device in built.items() if ".layers." not in name} == {0}


def test_the_split_is_the_best_of_all_splits():
    """Against every possible split, on small random cases of uneven GPUs."""
    generator = random.Random(0)
    for _ in range(60):
        gpus, layers = generator.randint(1, 4), generator.randint(1, 8)
        memory = [generator.randint(20, 60) for _ in range(gpus)]
        first = generator.randint(0, 20)
        possible = [
            counts
            for counts in itertools.product(range(layers + 1), repeat=gpus)
            if sum(counts) == layers and max(shares(counts, [5], first, memory)) <= 1
        ]
        if not possible:
            with pytest.raises(ValueError, match=r"does not fit|has"):
                device_map.split_layers([5] * layers, first, memory)
            continue
        best = min(max(shares(counts, [5], first, memory)) for counts in possible)
        counts = device_map.split_layers([5] * layers, first, memory)
        assert max(shares(counts, [5], first, memory)) == pytest.approx(best)


@pytest.mark.parametrize("memory, words", [
    ([], "No GPU"),
    ([10 * GB, 80 * GB], "put the largest GPU first"),
    ([24 * GB] * 3, "does not fit"),
    ([40 * GB], "71.5 GiB"),
])  # fmt: skip
def test_what_does_not_fit_is_said(sizes_38b, memory, words):
    with pytest.raises(ValueError, match=words):
        device_map.split_layers(*sizes_38b, memory)


def test_the_model_cards_map_is_cleaned():
    card = {f"language_model.model.layers.{index}": index % 2 for index in range(70)}
    card.update(
        {
            "vision_model": 0,
            "mlp1": 0,
            "language_model.model.tok_embeddings": 0,
            "language_model.output": 0,
        }
    )
    card.update(
        {
            "language_model.model.embed_tokens": 1,
            "language_model.model.norm": 0,
            "language_model.lm_head": 0,
        }
    )
    before = dict(card)
    cleaned = device_map.clean_device_map(card, 64)
    assert card == before
    assert (
        cleaned["language_model.model.rotary_emb"] == 1
    )  # the card's own name, or where the embeddings are
    assert set(cleaned) - {"language_model.model.rotary_emb"} == {
        name for name in card
        if name not in ("language_model.model.tok_embeddings", "language_model.output")
        and not (".layers." in name and int(name.split(".")[-1]) >= 64)
    }  # fmt: skip
    assert device_map.clean_device_map({"": "cpu"}, 64) == {"": "cpu"}
