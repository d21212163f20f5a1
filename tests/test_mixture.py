"""Several data sets in one training: weights, tiles and counts of each."""

import json
from collections import Counter

import datasets
import pytest

from tests.test_data import encoder, images, parts, turn, write  # noqa: F401  fixtures
from tests.test_sft import arguments, losses, run, samples  # noqa: F401  fixtures
from training import sft
from training.mixture import Mixture, MixtureEntry, read_mixture
from training.sources import ConversationFile, ConversationTable


def rows_of(count, answer, image="large.png"):
    return [
        {"image": image, "conversations": turn(f"<image>\nQuestion {number}?", answer)}
        for number in range(count)
    ]


@pytest.fixture
def mixture(parts, images):  # noqa: F811
    """Two files and a table of `datasets`, with 10, 4 and 5 samples."""
    encode = encoder(parts)
    table = datasets.Dataset.from_list([{"conversations": turn("Table?", "t")}] * 5)
    sources = [
        ConversationFile([write(images / "a.jsonl", rows_of(10, "a"))], encode),
        ConversationFile([write(images / "b.jsonl", rows_of(4, "b"))], encode.with_max_tiles(1)),
        ConversationTable(table, "the table", encode),
    ]
    return Mixture(sources, ["a", "b", "table"], [0.5, 2.25, 1])


def test_each_data_set_comes_as_often_as_it_weighs(mixture):
    drawn = mixture.weighted(range(len(mixture)), seed=0)
    owners = Counter(mixture.where(number).split(",")[0].rsplit("/")[-1] for number in drawn)
    assert owners == {"a.jsonl": 5, "b.jsonl": 4 * 2 + 1, "the table": 5}
    assert mixture.weighted(range(len(mixture)), seed=0) == drawn  # a resumed run has the same
    assert mixture.weighted(range(len(mixture)), seed=1) != drawn
    of_b = Counter(number for number in drawn if 10 <= number < 14)
    assert sorted(of_b.values()) == [2, 2, 2, 3]


def test_only_samples_in_use_are_drawn(mixture):
    """Those of `eval_share` are not."""
    assert set(mixture.weighted(range(0, len(mixture), 2), seed=0)) <= set(
        range(0, len(mixture), 2)
    )


def test_each_data_set_has_its_own_tiles(mixture):
    """An image of 336 × 224 pixels has 6 tiles and a thumbnail, or the one that is allowed."""
    assert len(mixture[0]["pixel_values"]) == 7
    assert len(mixture[10]["pixel_values"]) == 1
    assert mixture[14]["pixel_values"] is None


def test_counts_are_those_of_all_data_sets(mixture):
    for number in range(len(mixture)):
        mixture.encode_line(number)
    assert mixture.counts.as_dict()["read"] == 19
    assert not mixture.counts.is_unusable(18)


def test_epochs_are_counted_per_data_set(mixture):
    assert mixture.epochs(2.0) == {"a": 1.0, "b": 4.5, "table": 2.0}


def test_the_fingerprint_changes_with_data_and_weights(mixture):
    other = Mixture(mixture.sources, mixture.names, [0.5, 2.25, 2])
    fewer = Mixture(mixture.sources[:2], mixture.names[:2], [0.5, 2.25])
    assert len({one.fingerprint for one in (mixture, other, fewer)}) == 3


@pytest.mark.parametrize("content, words", [
    ("", "expected a list"),
    ("data: a.jsonl", "expected a list"),
    ("- a.jsonl", "entry 1: 'a.jsonl'; expected data"),
    ("- data: a.jsonl\n  wieght: 2", "expected data, and any of image_root, max_tiles, weight"),
    ("- data: a.jsonl\n  weight: 0", "entry 1: weight=0"),
    ("- data: a.jsonl\n- data: b.jsonl\n  weight: much", "entry 2: weight='much'"),
    ("- data: a.jsonl\n  max_tiles: 0", "max_tiles=0"),
    ("- data: [a.jsonl", "is no YAML"),
])  # fmt: skip
def test_a_wrong_file_is_one_clear_error(tmp_path, content, words):
    path = tmp_path / "mixture.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_mixture(path)


def test_entries_are_read(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text("- data: [a.jsonl, b.jsonl]\n- data: datasets:x:train\n  weight: 0.5\n")
    assert read_mixture(path) == [
        MixtureEntry(["a.jsonl", "b.jsonl"]),
        MixtureEntry(["datasets:x:train"], weight=0.5),
    ]


def test_a_training_on_three_sources(samples, tmp_path):  # noqa: F811
    """A file, a part of it with fewer tiles, and a saved table."""
    lines = samples.read_text().splitlines()
    some = samples.parent / "some.jsonl"
    some.write_text("\n".join(lines[:8]) + "\n")
    table = datasets.Dataset.from_list([{"conversations": turn("What is 1 + 1?", "2")}] * 4)
    table.save_to_disk(tmp_path / "table")
    (tmp_path / "mixture.yaml").write_text(
        f"- data: {samples}\n  weight: 0.1\n"
        f"- data: {some}\n  weight: 1.5\n  max_tiles: 1\n"
        f"- data: datasets:{tmp_path / 'table'}\n"
    )
    settings = {"max_steps": 10, "save_strategy": "steps", "save_steps": 5}
    folder = tmp_path / "out"
    mixture = tmp_path / "mixture.yaml"
    summary = run(mixture, folder, **settings)
    # 4 of 41 samples, 12 of 8, and 4 of 4 make an epoch, of 5 steps
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [entry for entry in log if "loss" in entry][-1]
    assert last["epoch"] == pytest.approx(2.0)
    assert last[f"epochs of {some}"] == pytest.approx(3.0)
    assert last[f"epochs of {samples}"] == pytest.approx(0.2)
    assert summary["samples"]["read"] == 4 + 8 + 4  # each once, however often it came
    with pytest.raises(ValueError, match="another run"):
        (tmp_path / "mixture.yaml").write_text(f"- data: {some}\n")
        run(mixture, folder, **settings)


@pytest.mark.parametrize("data, settings, words", [
    (["a.jsonl", "mixture.yaml"], {}, "in one mixture"),
    (["mixture.yaml"], {"streaming": "true"}, "leave streaming out"),
    (["nothing.yaml"], {}, "nothing.yaml does not exist"),
])  # fmt: skip
def test_mixtures_that_cannot_be(samples, tmp_path, data, settings, words):  # noqa: F811
    flags = arguments(data, tmp_path, **settings)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        sft.make_trainer(*sft.parse(flags))
