"""Quantized loading: only the decoder layers change, answers stay, what is missing is named."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BitsAndBytesConfig

from evaluation.quantization import QUANTIZATIONS, stored_bytes
from remote_code import configuration_skywork_chat, loading, modeling_skywork_chat
from tests import checkpoints, comparison

IMAGES = checkpoints.ROOT / "examples" / "images"
GREEDY = {"max_new_tokens": 96, "do_sample": False}
# Throughout the answer to this question the best logit is 6.5 above the second best or more.
# Rounding weights to 8 bits changes that distance by 0.2 at most, to 4 bits by 1.8. So the answer
# stays, whatever the processor; `clear_answer` sees to it that the distance does.
QUESTION, CLEAR_GAP = "What is 12 + 34?", 5
# Of logits that kernels in half precision compute
HALF_PRECISION_TIE = 0.1


LOADING = {
    **{name: keywords for name, keywords in QUANTIZATIONS.items() if name != "none"},
    "bitsandbytes nf4, the user's own config": lambda: {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "device_map": "cpu",
    },
    "bitsandbytes int8, the config as a dict": lambda: {
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "device_map": "cpu",
    },
}


def load(**keywords):
    return AutoModel.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.bfloat16, trust_remote_code=True, **keywords
    ).eval()


@pytest.fixture(scope="module")
def clear_answer(nano_model, nano_tokenizer):
    """The answer in float32, at no position of which another token comes near."""
    answer = comparison.ask(nano_model.chat, nano_tokenizer, None, QUESTION, GREEDY)
    assert comparison.smallest_gap(answer.rows[0]) > CLEAR_GAP
    return answer.text


@pytest.mark.parametrize("name", LOADING)
def test_only_decoder_layers_are_quantized_and_answers_stay(
    nano_tokenizer, nano_model, clear_answer, name
):
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
    assert model.chat(nano_tokenizer, None, QUESTION, GREEDY) == clear_answer
    assert model.chat(nano_tokenizer, str(IMAGES / "counting_1.png"), "Count the shapes.", GREEDY)


def test_the_users_own_list_is_kept_and_his_config_unchanged():
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["language_model"])
    assert loading.language_layers_only(config).llm_int8_skip_modules == ["language_model"]
    config = BitsAndBytesConfig(load_in_8bit=True)
    assert "vision_model" in loading.language_layers_only(config).llm_int8_skip_modules
    assert config.llm_int8_skip_modules is None


@pytest.mark.parametrize("config, name", [
    ({"load_in_4bit": True}, "llm_int8_skip_modules"),
    ({"quant_method": "bitsandbytes_8bit"}, "llm_int8_skip_modules"),
    ({"quant_method": "torchao", "quant_type": "int8"}, "modules_to_not_convert"),
])  # fmt: skip
def test_a_config_as_a_dict_keeps_the_vision_tower(config, name):
    before = dict(config)
    assert "vision_model" in loading.language_layers_only(config)[name]
    assert loading.language_layers_only({**config, name: ["mlp1"]})[name] == ["mlp1"]
    assert config == before


def quantize_as_awq(weight, group=128):
    """A weight (out, in) rounded to 4 bits with a zero point, as AutoAWQ's GEMM format stores it.

    Returns:
        (stored, meant): the tensors, {"qweight": int32 (in, out / 8), "qzeros": int32 (in / group,
        out / 8), "scales": fp16 (in / group, out)}, and the weight that they stand for, (out, in).
    """
    groups = weight.T.float().reshape(weight.shape[1] // group, group, weight.shape[0])
    # now (in / group, group, out)
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-5).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    levels = (groups / scales.float() + zeros).round().clamp(0, 15)
    meant = ((levels - zeros) * scales.float()).flatten(0, 1).T.contiguous()

    def pack(values):
        """Eight columns in an int32, in the order that AutoAWQ has them."""
        columns = values.to(torch.int64).unflatten(-1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        words = (columns << torch.arange(0, 32, 4)).sum(-1)
        return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)

    stored = {
        "qweight": pack(levels.flatten(0, 1)),
        "qzeros": pack(zeros.squeeze(1)),
        "scales": scales.squeeze(1),
    }
    return stored, meant


class TestAwq:
    """The published variant: weights by AutoAWQ, the quantization config inside `llm_config`."""

    @pytest.fixture
    def path(self, tmp_path):
        folder = checkpoints.copy_code(tmp_path / "awq")
        config = json.loads((checkpoints.NANO / "config.json").read_text())
        config["llm_config"]["quantization_config"] = {
            "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
            "version": "gemm",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(checkpoints.NANO / "model.safetensors", folder)
        return folder

    @pytest.mark.skipif(
        importlib.util.find_spec("gptqmodel") is not None, reason="the library is installed"
    )
    def test_without_its_library_a_clear_error(self, path):
        with pytest.raises(ImportError, match="gptqmodel"):
            AutoModel.from_pretrained(path, trust_remote_code=True)

    @pytest.mark.slow  # the library compiles its kernels when first used, which takes minutes
    def test_with_its_library_the_weights_are_used(self, path, nano_model, nano_tokenizer):
        pytest.importorskip(
            "gptqmodel", reason="quantized by AutoAWQ, loaded by gptqmodel: pip install gptqmodel"
        )
        packed, rounded = {}, {}
        for name, tensor in nano_model.state_dict().items():
            if name.startswith("language_model.model.layers.") and name.endswith("proj.weight"):
                stored, rounded[name] = quantize_as_awq(tensor)
                packed.update(
                    {
                        f"{name.removesuffix('weight')}{part}": value
                        for part, value in stored.items()
                    }
                )
            else:
                packed[name] = rounded[name] = tensor.clone()
        save_file(packed, path / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(checkpoints.NANO / "preprocessor_config.json", path)
        reference = modeling_skywork_chat.SkyworkChatModel(nano_model.config).eval()
        reference.load_state_dict(rounded)
        model = AutoModel.from_pretrained(
            path, trust_remote_code=True, torch_dtype=torch.float32, device_map="cpu"
        ).eval()
        changed = {name for name, module in model.named_modules() if hasattr(module, "qweight")}
        assert len(changed) == 7 * model.config.llm_config.num_hidden_layers
        assert all(name.startswith("language_model.model.layers.") for name in changed)
        for image, question in (
            (None, QUESTION),
            (str(IMAGES / "counting_1.png"), "Count the shapes."),
        ):
            # The same values of the weights, in the library's own products
            comparison.assert_same_answers(
                comparison.ask(reference.chat, nano_tokenizer, image, question, GREEDY),
                comparison.ask(model.chat, nano_tokenizer, image, question, GREEDY),
                HALF_PRECISION_TIE,
            )

    def test_config_is_seen_and_keeps_the_vision_tower(self, path):
        config = configuration_skywork_chat.SkyworkChatConfig.from_pretrained(path)
        before = config.to_dict()
        loading.hoist_quantization(config)
        assert config.quantization_config["quant_method"] == "awq"
        assert "vision_model" in config.quantization_config["modules_to_not_convert"]
        assert before["llm_config"] == config.to_dict()["llm_config"]


@pytest.mark.parametrize("keyword", ["load_in_8bit", "load_in_4bit"])
def test_without_bitsandbytes_a_clear_error(monkeypatch, keyword):
    find_spec = loading.importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "bitsandbytes" else find_spec(name, *more),
    )
    with pytest.raises(
        ImportError, match=f"{keyword}=True needs bitsandbytes.*pip install bitsandbytes"
    ):
        load(**{keyword: True})


@pytest.mark.slow  # the library compiles its kernels when first used, which takes over a minute
@pytest.mark.parametrize("bits", [4, 2])
def test_quantized_cache_reaches_chat(nano_model, nano_tokenizer, clear_answer, bits):
    options = {
        **GREEDY,
        "cache_implementation": "quantized",
        "cache_config": {"backend": "quanto", "nbits": bits},
    }
    caches = []

    def remember(module, arguments, keywords):
        caches.append(type(keywords["past_key_values"]).__name__)

    hook = nano_model.language_model.model.register_forward_pre_hook(remember, with_kwargs=True)
    with hook:
        answer = nano_model.chat(nano_tokenizer, None, QUESTION, options)
    assert set(caches) == {"QuantizedCache"}
    # The prompt is quantized, and of the answer all but the newest 128 tokens
    assert answer == clear_answer
