"""Adapters on the vision tower, and on a language model in 4 bits, for a few steps of nano."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from evaluation.quantization import stored_bytes
from tests import checkpoints
from tests.test_sft import arguments, changed_names, losses, run, samples  # noqa: F401  fixtures
from training import sft

IN_4_BITS = {"load_in_4bit": "true", "model_dtype": "bfloat16", "bf16": "true", "save": ["adapter"]}


def test_an_adapter_on_the_tower_trains_the_tower_alone(samples, tmp_path):  # noqa: F811
    """Merged, the matrices of its layers have changed, and nothing else."""
    run(
        samples, tmp_path, train=["vision_lora"], save=["model", "adapter"], lora_rank=4,
        vision_lr=5e-3,
    )  # fmt: skip
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 8 * 4 * 2  # layers, matrices, A and B
    assert all(".vision_model.encoder.layers." in name for name in adapter)
    changed = changed_names(tmp_path / "model")
    assert len(changed) == 8 * 4
    assert all(name.startswith("vision_model.encoder.layers.") for name in changed)
    assert all(name.endswith(".weight") for name in changed)


def test_both_adapters_share_a_run_with_rates_of_their_own(samples, tmp_path):  # noqa: F811
    flags = arguments(
        samples, tmp_path, train=["lora", "vision_lora"], save=["adapter"], vision_lr=1e-5,
        language_model_lr=1e-3,
    )  # fmt: skip
    trainer = sft.make_trainer(*sft.parse(flags))
    optimizer = trainer.create_optimizer()
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {1e-5, 1e-3}


@pytest.fixture(scope="module")
def in_4_bits(samples, tmp_path_factory):  # noqa: F811
    """A run of LoRA and mlp1 over a language model in 4 bits, with a checkpoint after each step."""
    pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes, a test package")
    folder = tmp_path_factory.mktemp("in_4_bits")
    summary = run(
        samples, folder, train=["lora", "mlp1"], language_model_lr=2e-3, save_strategy="steps",
        save_steps=2, save_total_limit=3, **IN_4_BITS,
    )  # fmt: skip
    return folder, summary


def test_4_bits_are_loaded_and_stay_as_they_are(samples, tmp_path, in_4_bits):  # noqa: F811
    _, summary = in_4_bits
    assert summary["steps"] == 3 and summary["last_loss"] > 0
    assert summary["frozen_tensors_unchanged"] > 150
    flags = arguments(samples, tmp_path, train=["lora"], **IN_4_BITS)
    model = sft.make_trainer(*sft.parse(flags)).model
    whole = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.bfloat16
    )
    name = "language_model.model.layers.0.mlp.up_proj"
    rounded = model.get_submodule(f"base_model.model.{name}.base_layer")
    # Half a byte for each weight of two bytes, and the scales
    assert stored_bytes(rounded) < 0.3 * stored_bytes(whole.get_submodule(name))
    tower = model.get_submodule("base_model.model.vision_model.encoder.layers.0.mlp.fc1")
    assert tower.weight.dtype == torch.bfloat16


def test_an_adapter_of_4_bits_fits_the_whole_model(in_4_bits):
    """Its files are those of any adapter: the base is in a dtype of one's choice."""
    folder, _ = in_4_bits
    base = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    )
    projector = base.mlp1[1].weight.detach().clone()
    model = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    assert (model.mlp1[1].weight != projector).any()
    ids = torch.arange(8)[None]
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_a_run_in_4_bits_goes_on_from_its_checkpoint(samples, in_4_bits):  # noqa: F811
    import shutil

    folder, _ = in_4_bits
    before = losses(folder)
    shutil.rmtree(folder / "checkpoint-3")
    run(
        samples, folder, train=["lora", "mlp1"], language_model_lr=2e-3, save_strategy="steps",
        save_steps=2, save_total_limit=3, **IN_4_BITS,
    )  # fmt: skip
    assert losses(folder)[3] == pytest.approx(before[3], rel=1e-3)


@pytest.mark.parametrize("changes, words", [
    ({"train": ["lora"], "model_dtype": "float32"}, "expected bfloat16"),
    ({"train": ["mlp1"], "save": ["mlp1"]}, "through adapters only"),
    ({"train": ["language_model"], "save": ["model"]}, "4-bit weights cannot train"),
    ({"train": ["lora"], "save": ["model"]}, "rounded to 4 bits"),
])  # fmt: skip
def test_what_4_bits_cannot_do(samples, tmp_path, changes, words):  # noqa: F811
    with pytest.raises(ValueError, match=words):
        sft.parse(arguments(samples, tmp_path, **{**IN_4_BITS, **changes}))
