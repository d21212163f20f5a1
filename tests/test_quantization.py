"""Quantized loading: only the decoder layers change, the answers stay, and what is missing is named."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig

from evaluation.quantization import QUANTIZATIONS, stored_bytes
from tests import checkpoints
from training.nano.package import load_package

package = load_package()
IMAGES = checkpoints.ROOT / "examples" / "images"
GREEDY = {"max_new_tokens": 96, "do_sample": False}


LOADING = {
    **{name: keywords for name, keywords in QUANTIZATIONS.items() if name != "none"},
    "bitsandbytes nf4, the user's own config": lambda: {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "device_map": "cpu",
    },
}


def load(**keywords):
    return AutoModel.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.bfloat16, trust_remote_code=True, **keywords
    ).eval()


@pytest.mark.parametrize("name", LOADING)
def test_only_decoder_layers_are_quantized_and_answers_stay(nano_tokenizer, nano_model, name):
    model = load(**LOADING[name]())
    plain = {key: tensor.to(torch.bfloat16) for key, tensor in nano_model.state_dict().items()}
    for key, tensor in model.named_parameters():
        is_layer = key.startswith("language_model.model.layers.") and key.endswith("proj.weight")
        untouched = type(tensor) is torch.nn.Parameter and tensor.dtype == torch.bfloat16
        assert is_layer != untouched, key
        if untouched:
            assert torch.equal(tensor, plain[key]), key
    layers, whole = model.get_decoder().layers, nano_model.get_decoder().layers
    assert stored_bytes(layers) < 0.6 * stored_bytes(whole) / 2, "as bf16 would take"
    answer = model.chat(nano_tokenizer, None, "What is 12 + 34?", GREEDY)
    assert answer == nano_model.chat(nano_tokenizer, None, "What is 12 + 34?", GREEDY)
    assert model.chat(nano_tokenizer, str(IMAGES / "counting_1.png"), "Count the shapes.", GREEDY)


def test_the_users_own_list_is_kept_and_his_config_unchanged():
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["language_model"])
    assert package.compat.language_layers_only(config).llm_int8_skip_modules == ["language_model"]
    config = BitsAndBytesConfig(load_in_8bit=True)
    assert "vision_model" in package.compat.language_layers_only(config).llm_int8_skip_modules
    assert config.llm_int8_skip_modules is None


class TestAwq:
    """The published variant: weights quantized by AutoAWQ, the quantization config inside `llm_config`."""

    @pytest.fixture
    def path(self, tmp_path):
        folder = checkpoints.copy_code(tmp_path / "awq")
        config = json.loads((checkpoints.NANO / "config.json").read_text())
        config["llm_config"]["quantization_config"] = {
            "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(checkpoints.NANO / "model.safetensors", folder)
        return folder

    def test_without_its_library_a_clear_error(self, path):
        with pytest.raises(ImportError, match="gptqmodel"):
            AutoModel.from_pretrained(path, trust_remote_code=True)

    def test_config_is_seen_and_keeps_the_vision_tower(self, path):
        config = package.SkyworkChatConfig.from_pretrained(path)
        before = config.to_dict()
        package.compat.hoist_quantization(config)
        assert config.quantization_config["quant_method"] == "awq"
        assert "vision_model" in config.quantization_config["modules_to_not_convert"]
        assert before["llm_config"] == config.to_dict()["llm_config"]


@pytest.mark.parametrize("keyword", ["load_in_8bit", "load_in_4bit"])
def test_without_bitsandbytes_a_clear_error(monkeypatch, keyword):
    find_spec = package.compat.importlib.util.find_spec
    monkeypatch.setattr(
        package.compat.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "bitsandbytes" else find_spec(name, *more),
    )
    with pytest.raises(ImportError, match=f"{keyword}=True needs bitsandbytes.*pip install bitsandbytes"):
        load(**{keyword: True})


@pytest.mark.slow  # the library compiles its kernels when first used, which takes more than a minute
@pytest.mark.parametrize("bits", [4, 2])
def test_quantized_cache_reaches_chat(nano_model, nano_tokenizer, bits):
    options = {**GREEDY, "cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": bits}}
    question = [nano_tokenizer, None, "What is 12 + 34?"]
    # Up to 128 tokens, the newest, are not quantized: a short answer is the same
    assert nano_model.chat(*question, options) == nano_model.chat(*question, GREEDY)
