"""The vision part as an ONNX file: onnxruntime gives the model's features."""

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from export import onnx as command
from tests import checkpoints


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    ).eval()


def pixels_of(tiles):
    return torch.randn(tiles, 3, 112, 112, generator=torch.Generator().manual_seed(tiles))


# Relative to the spread of the features: another order of sums, and in float16 11 bits of a value.
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float16", 2e-2)])
def test_features_are_those_of_the_model(model, tmp_path, dtype, tolerance):
    """For more tiles than the file was made with, and for one, which might be a fixed size."""
    path = command.export(checkpoints.NANO, tmp_path / "out", dtype)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for tiles in (1, 2, 7):
        pixels = pixels_of(tiles)
        with torch.no_grad():
            expected = model.extract_feature(pixels)
        given = pixels.to(getattr(torch, dtype)).numpy()
        [found] = session.run(["features"], {"pixel_values": given})
        difference = torch.from_numpy(found).float() - expected
        assert found.shape == (tiles, 16, 256)
        assert difference.norm() < tolerance * (expected - expected.mean()).norm()


def test_the_language_model_is_not_read():
    part = command.load_vision_part(checkpoints.NANO)
    assert not any(parameter.is_meta for parameter in part.parameters())
    weights = load_file(checkpoints.NANO / "model.safetensors")
    expected = {name for name in weights if not name.startswith("language_model.")}
    assert {name.removeprefix("model.") for name, _ in part.named_parameters()} == expected


def test_errors_are_one_line(capsys, tmp_path):
    assert command.main([str(checkpoints.NANO), str(tmp_path / "out"), "--dtype", "int8"]) == 1
    assert (
        "dtype='int8' is not written: expected one of float32, float16" in capsys.readouterr().err
    )
    assert command.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "expected a checkpoint's directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "PACKAGES", ("no_such_package",))
    with pytest.raises(ImportError, match="pip install no_such_package"):
        command.export(checkpoints.NANO, tmp_path / "out")
