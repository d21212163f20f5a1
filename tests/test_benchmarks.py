"""The measuring itself: arithmetic on known numbers, and that every benchmark runs."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel

from benchmarks import __main__ as benchmarks
from benchmarks import checkpoint_of_holes, measure, models
from benchmarks.vision import vision_operations
from tests import checkpoints


@pytest.mark.parametrize("values, exponent", [([3, 6, 12], 1), ([5, 20, 80], 2), ([7, 7, 7], 0)])
def test_growth(values, exponent):
    assert measure.growth([1, 2, 4], values) == pytest.approx(exponent)


def test_ratio_is_taken_round_by_round():
    """A slow moment of the machine hits both in a round, whose ratio is then as good as any."""
    seconds = {"ours": [1, 10, 1], "theirs": [2, 20, 3]}
    assert measure.ratio(seconds, "ours", "theirs") == {
        "peer": "theirs",
        "median": 2,
        "low": 2,
        "high": 3,
    }


def test_alternates():
    order = []
    measure.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3  # the first round warms up


def test_peak_memory_sees_what_is_freed_again():
    def allocate():
        return bytearray(200 * 2**20)

    assert 190 * 2**20 < measure.peak_memory(allocate) < 260 * 2**20


def test_operations_of_internvit_6b():
    """Against the plain rule of two operations for each weight and position, plus attention."""
    config = models.build_config("6b", "32b")
    # The embeddings of positions and the class token are added, not multiplied
    weights = 5_536_496_000 - 3200 * (1025 + 1)
    projector = 91_786_240
    attention = 45 * 2 * 2 * 1025 * 1025 * 3200
    expected = 2 * (weights * 1025 + projector * 256) + attention
    assert vision_operations(config) == pytest.approx(expected, rel=0.002)


def test_peer_computes_the_same(golden_model):
    """InternVL over our tensors, by reference: no copy, and the same features but for rounding."""
    config = golden_model.config
    theirs = models.build_internvl(
        config, golden_model.state_dict(), checkpoints.GOLDEN_IMAGE_TOKEN
    )
    pixels = checkpoints.golden("inputs")["pixel_values"]
    assert theirs.lm_head.weight.data_ptr() == golden_model.language_model.lm_head.weight.data_ptr()
    features = theirs.model.get_image_features(pixels).pooler_output
    assert (features - golden_model.extract_feature(pixels)).abs().max() < 1e-5


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path):
    """At sizes of seconds; the last line is the record, which is also in the file."""
    command = [sys.executable, "-m", "benchmarks", "--preset", "smoke", "--repeats", "1"]
    command += ["--output", str(tmp_path / "r.json")]
    output = subprocess.run(
        command, cwd=checkpoints.ROOT, capture_output=True, text=True, check=True
    ).stdout
    record = json.loads(output.splitlines()[-1])
    assert record == json.loads((tmp_path / "r.json").read_text())
    assert {row["benchmark"].split(" with")[0].split(",")[0] for row in record["rows"]} == {
        "preprocessing",
        "vision",
        "first token",
        "decoding",
        "traces",
        "turns",
        "loading",
        "growth",
    }
    assert record["machine"]["torch"] and record["machine"]["commit"]


def test_an_error_keeps_what_was_measured_before_it(monkeypatch, tmp_path):
    """And leaves an earlier record alone."""

    def fails(preset, report, repeats):
        raise MemoryError("too large")

    measured = {
        "first": lambda preset, report, repeats: report.add("first", "case", "ours", 1.0, "s"),
        "second": fails,
    }
    monkeypatch.setattr(benchmarks, "BENCHMARKS", measured)
    path = tmp_path / "record.json"
    path.write_text("earlier")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "first", "second", "--output", str(path)])
    with pytest.raises(MemoryError):
        benchmarks.main()
    kept = json.loads((tmp_path / "record.json.partial").read_text())
    assert [row["benchmark"] for row in kept["rows"]] == ["first"] and path.read_text() == "earlier"


def test_refuses_what_it_does_not_know(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "unknown: speed" in capsys.readouterr().err


def test_a_checkpoint_of_holes_has_the_shapes_of_its_config(tmp_path):
    """transformers loads it without a missing or left-over name, and all weights are zero."""
    written = checkpoint_of_holes.write_holes(checkpoints.NANO, tmp_path)
    model, found = AutoModel.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16, trust_remote_code=True, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    tensors = list(model.state_dict().values())
    assert sum(tensor.nbytes for tensor in tensors) == written
    assert not any(tensor.any() for tensor in tensors)
    on_disk = sum(file.stat().st_blocks * 512 for file in tmp_path.glob("*.safetensors"))
    assert on_disk < 0.01 * written
