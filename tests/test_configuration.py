"""The configuration: 38B values, round trips, contradictions."""

import copy
import hashlib
import json
import logging

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, Qwen2Config

from remote_code import configuration_skywork_chat, modeling_skywork_chat
from tests import checkpoints

SkyworkChatConfig = configuration_skywork_chat.SkyworkChatConfig


def fields(config):
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def test_the_38b_model_has_the_published_size(root_config):
    with torch.device("meta"):
        model = modeling_skywork_chat.SkyworkChatModel(SkyworkChatConfig(**root_config.to_dict()))
    sizes = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    assert sizes == {
        "vision_model": 5_536_496_000,
        "language_model": 32_763_876_352,
        "mlp1": 91_786_240,
    }
    assert sum(sizes.values()) == 38_392_158_592
    assert len(model.state_dict()) == 1366
    assert model.num_image_token == 256


def test_no_arguments_means_38b(root_config):
    config = SkyworkChatConfig()
    for part in ("vision_config", "llm_config"):
        ours, published = getattr(config, part).to_dict(), getattr(root_config, part).to_dict()
        # Where the values are not a shape: written out in config.json only
        for name in (
            "torch_dtype",
            "dtype",
            "architectures",
            "_name_or_path",
            "transformers_version",
        ):
            ours.pop(name, None), published.pop(name, None)
        assert ours == published


def test_the_model_card_is_the_published_one():
    """Byte for byte: the test of its snippet is worth less after an edit, by whatever tool."""
    digest = hashlib.sha256(
        (checkpoints.ROOT / "docs" / "published_model_card.md").read_bytes()
    ).hexdigest()
    assert digest == "c77de39fd5bae8a7648529ceb5e3a40436d7e6dca54acf3631661777efdcfabd"


def test_every_value_of_the_contract_is_written_out():
    written = json.loads((checkpoints.ROOT / "config.json").read_text())
    assert (
        written["architectures"] == ["SkyworkR1VChatModel"]
        and written["model_type"] == "skywork_chat"
    )
    expected = {
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448,
        "max_dynamic_patch": 12, "min_dynamic_patch": 1, "ps_version": "v2", "select_layer": -1,
        "use_thumbnail": True, "pad2square": False, "use_backbone_lora": 0, "use_llm_lora": 0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    vision = {
        "hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25,
        "intermediate_size": 12800, "image_size": 448, "patch_size": 14, "num_channels": 3,
        "hidden_act": "gelu", "layer_norm_eps": 1e-6, "norm_type": "rms_norm",
        "qk_normalization": True, "qkv_bias": False, "initializer_factor": 0.1,
        "initializer_range": 1e-10, "dropout": 0.0, "attention_dropout": 0.0,
        "drop_path_rate": 0.0, "use_flash_attn": True,
    }  # fmt: skip
    language = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 5120,
        "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "vocab_size": 152064, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "max_position_embeddings": 131072, "max_window_layers": 64, "sliding_window": 131072,
        "use_sliding_window": False, "bos_token_id": 151643, "eos_token_id": 151643,
        "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    for part, values in (
        (written, expected),
        (written["vision_config"], vision),
        (written["llm_config"], language),
    ):
        assert {name: part.get(name) for name in values} == values


@pytest.mark.parametrize("make", [
    pytest.param(lambda: SkyworkChatConfig(), id="no arguments: built so while loading from 4.52"),
    pytest.param(lambda: SkyworkChatConfig(**checkpoints.tiny_config()), id="dicts"),
    pytest.param(
        lambda: SkyworkChatConfig(
            vision_config=SkyworkChatConfig().vision_config, llm_config=Qwen2Config()
        ),
        id="config objects",
    ),
    pytest.param(
        lambda: SkyworkChatConfig(some_future_key=[1, {"a": None}], hidden_size=5),
        id="extra keys",
    ),
])  # fmt: skip
@pytest.mark.parametrize(
    "engine", [False, True], ids=["as built", "after an engine set text_config"]
)
def test_round_trips(make, engine, tmp_path):
    config = make()
    if engine:
        config.text_config = config.llm_config
        assert config.text_config is config.llm_config
    before = copy.deepcopy(fields(config))
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" not in saved
    # In words that version 4 knows as well: without a rope_theta it computes with 10,000
    assert saved["llm_config"]["rope_theta"] == config.llm_config.rope_parameters["rope_theta"]
    assert "rope_parameters" not in saved["llm_config"] and not {"dtype"} & {
        *saved,
        *saved["llm_config"],
    }
    assert fields(SkyworkChatConfig.from_pretrained(tmp_path)) == before
    assert fields(SkyworkChatConfig.from_dict(config.to_dict())) == before
    assert fields(config) == before


def test_a_dict_is_not_changed():
    values = checkpoints.tiny_config()
    before = copy.deepcopy(values)
    SkyworkChatConfig(**values)
    assert values == before


def test_text_config_alone_is_the_language_model():
    config = SkyworkChatConfig(text_config=checkpoints.tiny_config()["llm_config"])
    assert (
        config.llm_config.hidden_size == 32
        and config.get_text_config(decoder=True) is config.llm_config
    )


@pytest.mark.parametrize("changes, names", [
    (
        {"vision_config": {"hidden_size": 30, "num_attention_heads": 4}},
        ["hidden_size", "num_attention_heads"],
    ),
    ({"vision_config": {"image_size": 450}}, ["image_size", "patch_size"]),
    ({"vision_config": {"norm_type": "batch"}}, ["norm_type", "batch"]),
    ({"force_image_size": 450}, ["force_image_size", "patch_size"]),
    ({"force_image_size": 42}, ["downsample_ratio", "3 × 3"]),
    ({"downsample_ratio": 0.3}, ["downsample_ratio=0.3"]),
    ({"min_dynamic_patch": 8}, ["min_dynamic_patch=8", "max_dynamic_patch=6"]),
    ({"min_dynamic_patch": 0}, ["min_dynamic_patch=0"]),
    ({"ps_version": "v3"}, ["ps_version"]),
    ({"select_layer": -47}, ["select_layer", "num_hidden_layers=45"]),
    (
        {"llm_config": {"architectures": ["LlamaForCausalLM"]}},
        ["LlamaForCausalLM", "Qwen2ForCausalLM"],
    ),
    ({"llm_config": {"model_type": "llama"}}, ["llama", "Qwen2ForCausalLM"]),
    ({"llm_config": LlamaConfig()}, ["llama", "Qwen2ForCausalLM"]),
])  # fmt: skip
def test_contradictions_name_the_fields(changes, names):
    with pytest.raises(ValueError) as error:
        SkyworkChatConfig(**changes)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize("changes", [
    pytest.param({"template": "internvl2_5"}, id="a template that we cannot know"),
    pytest.param({"vision_config": {"model_type": "siglip"}}, id="another vision model_type"),
])  # fmt: skip
def test_unknown_values_warn_once(changes, caplog):
    """conftest.py forgets the warnings of earlier tests, so that this one comes."""
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            config = SkyworkChatConfig(**changes)
    assert config.vision_config.hidden_size == 3200
    expected = "internvl2_5" if "template" in changes else "siglip"
    assert [expected in record.getMessage() for record in caplog.records].count(True) == 1


def test_other_config_objects_are_read_as_internvit():
    config = SkyworkChatConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, num_attention_heads=4, image_size=448, patch_size=14
        )
    )
    assert (
        type(config.vision_config).__name__ == "SkyworkVisionConfig"
        and config.vision_config.hidden_size == 64
    )


@pytest.mark.parametrize("part", ["vision_config", "llm_config"])
def test_a_wrong_type_is_named(part):
    with pytest.raises(TypeError, match=part):
        SkyworkChatConfig(**{part: 7})


@pytest.mark.parametrize("field", [
    "vision_config.hidden_size", "vision_config.image_size", "vision_config.patch_size",
    "vision_config.num_attention_heads", "vision_config.num_hidden_layers",
    "vision_config.intermediate_size", "vision_config.num_channels", "llm_config.hidden_size",
    "llm_config.num_attention_heads", "llm_config.num_key_value_heads", "llm_config.vocab_size",
    "llm_config.num_hidden_layers", "llm_config.intermediate_size",
    "llm_config.max_position_embeddings", "force_image_size", "min_dynamic_patch",
    "max_dynamic_patch", "downsample_ratio",
])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, "text"])
def test_zero_and_text_values_are_named(field, value):
    """Before anything is computed with them; a text in a Qwen2 is named by transformers."""
    fields = json.loads((checkpoints.NANO / "config.json").read_text(encoding="utf-8"))
    *parts, name = field.split(".")
    changed = fields
    for part in parts:
        changed = changed[part]
    changed[name] = value
    with pytest.raises(Exception, match=name):
        configuration_skywork_chat.SkyworkChatConfig(**fields)


@pytest.mark.parametrize("name", ["layer_norm_eps", "dropout", "initializer_factor"])
def test_text_in_place_of_a_number_is_named(name):
    with pytest.raises(ValueError, match=f"vision_config: {name}='text': expected a number"):
        configuration_skywork_chat.SkyworkVisionConfig(**{name: "text"})
