"""The memory plan: against sizes known beforehand, and against memory measured at small scale."""

import copy
import dataclasses
import itertools
import json
import sys
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from benchmarks import models
from memory import serving, serving_parts, serving_plan, sizes
from memory.serving_parts import ServingSettings
from remote_code import device_map, image_features, loading, modeling_skywork_chat
from tests import checkpoints

GB = 1e9
NF4 = {"quantization": "nf4", "offload_vision": True}


@pytest.fixture(scope="module")
def config_38b():
    return sizes.load_config(checkpoints.ROOT)


def by_name(parts):
    return {part.name.split(" (")[0]: part.bytes for part in parts}


def test_weights_add_up_to_the_model(config_38b):
    parts = by_name(serving_parts.memory_parts(config_38b)[0])
    weights = ("vision tower", "projector", "embeddings and head", "decoder layers")
    assert sum(parts[name] for name in weights) == 2 * 38_392_158_592


def test_cache_of_38b(config_38b):
    """64 layers × 8 heads × 128 × key and value × 2 bytes."""
    assert sizes.kv_bytes_per_token(config_38b.llm_config, 2) == 64 * 8 * 128 * 2 * 2


@pytest.mark.parametrize("gpus, settings, fits, reason", [
    ([80, 80], {}, True, "76.8 GB of weights on two cards of 80 GB"),
    ([80], {}, False, "76.8 GB of weights and no room for the rest"),
    ([141], {"context": 65536}, True, "an H200 with a long context"),
    ([24] * 4 + [48], {}, True, "uneven cards, the largest last"),
    ([24], {"quantization": "nf4"}, False, "the vision tower alone takes 11 GB"),
    ([24], {**NF4, "kv_bits": 4}, True, "one card of 24 GB at 8k tokens"),
    ([24], {**NF4, "kv_bits": 4, "context": 65536}, False, "the long context"),
    ([8], {**NF4, "kv_bits": 2}, False, "16 GB of layers"),
    ([80, 80], {"context": 98304}, True, "18 GB of activations on each card"),
    ([80, 80], {"context": 131072}, False, "24 GB of activations on the second card, too"),
])  # fmt: skip
def test_what_fits(config_38b, gpus, settings, fits, reason):
    plan = serving_plan.plan_memory(
        config_38b, [size * GB for size in gpus], ServingSettings(**settings)
    )
    assert plan.fits == fits, f"{reason}: {plan.problem or plan.used}"
    if fits:
        assert sum(plan.layers_of_gpu) == 64 and all(u <= a for u, a in zip(plan.used, plan.usable))


@pytest.mark.parametrize(
    "gpus, context",
    [([80, 80], 8192), ([80, 80], 98304), ([24] * 4 + [48], 8192), ([80, 24], 8192)],
)
def test_layers_lie_where_loading_puts_them(config_38b, gpus, context, monkeypatch):
    """Loading knows nothing of a context, and the plan spreads layers as loading does."""
    plan = serving_plan.plan_memory(
        config_38b, [size * GB for size in gpus], ServingSettings(context=context)
    )
    share = 1 - device_map.RESERVED_SHARE
    monkeypatch.setattr(
        modeling_skywork_chat, "free_memory", lambda: [share * size for size in plan.usable]
    )
    placement = modeling_skywork_chat.SkyworkChatModel._split_device_map(config_38b, 2, 2)
    placed = [device for name, device in placement.items() if ".layers." in name]
    assert [placed.count(gpu) for gpu in range(len(gpus))] == plan.layers_of_gpu


@pytest.mark.parametrize("gpus, size, why", [
    ([80, 80], 2, "38 GB of weights on each"), ([80], None, "77 GB of weights"),
    ([80, 24], None, "38 GB on a card of 24"),
    ([24] * 4, None, "22 GB: 19, and on each the attention of a vision tower of 25 heads"),
    ([32] * 4, 4, "these 22 GB"), ([80, 80, 24, 24], 2, "the two large ones"),
    ([40, 40, 40], None, "two of three cards, without room for a cache"),
    ([48] * 3, 2, "a power of two"),
])  # fmt: skip
def test_tensor_parallel_size_of_vllm(config_38b, gpus, size, why):
    parts = serving_parts.memory_parts(config_38b)[0]
    assert (
        serving_plan.tensor_parallel_size(config_38b, parts, [gpu * GB for gpu in gpus]) == size
    ), why


def test_tensor_parallel_size_divides_the_heads():
    """Four heads in nano's language model: vLLM refuses eight GPUs."""
    config = sizes.load_config(checkpoints.NANO)
    parts = serving_parts.memory_parts(config, ServingSettings(context=1024))[0]
    assert serving_plan.tensor_parallel_size(config, parts, [8 * GB] * 8) == 4


class TestQuantizedCheckpoints:
    """The published AWQ variant: 4 bits, a scale and a zero for each 128 weights."""

    AWQ = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
    }
    BYTES = (4 + 20 / 128) / 8

    @pytest.fixture
    def awq(self, config_38b):
        config = copy.deepcopy(config_38b)
        config.llm_config.quantization_config = dict(self.AWQ)
        return config

    def test_its_layers_are_planned_as_they_are_stored(self, config_38b, awq):
        full = by_name(serving_parts.memory_parts(config_38b)[0])["decoder layers"] / 2
        assert by_name(serving_parts.memory_parts(awq)[0])["decoder layers"] == pytest.approx(
            full * self.BYTES
        )

    def test_it_fits_where_it_fits(self, awq):
        assert serving_plan.plan_memory(awq, [48 * GB]).fits

    def test_advice_does_not_quantize_it_again(self, awq):
        fitting = serving_plan.fitting_alternatives(awq, [32 * GB], ServingSettings())
        assert fitting and all(found.settings.quantization == "none" for found in fitting)
        with pytest.raises(ValueError, match=r"quantized already .awq"):
            serving_plan.plan_memory(awq, [48 * GB], ServingSettings(quantization="nf4"))

    def test_loading_plans_with_the_same_bytes(self, awq):
        loading.hoist_quantization(awq)
        assert loading.bytes_per_parameter({"dtype": torch.bfloat16}, awq) == (
            pytest.approx(self.BYTES),
            2,
        )

    def test_of_an_unknown_kind(self, config_38b):
        config = copy.deepcopy(config_38b)
        config.llm_config.quantization_config = {"quant_method": "novel"}
        with pytest.raises(ValueError, match="quantized by 'novel'"):
            serving_parts.memory_parts(config)


def test_batches_of_long_prompts_need_a_mask(config_38b):
    """A byte for each pair of positions, and two for its copy in bf16, besides the two prompts."""
    alone = ServingSettings(context=32768, batch=1)
    both = ServingSettings(context=32768, batch=2)
    one, two = (serving_parts.memory_parts(config_38b, settings)[0] for settings in (alone, both))
    masks = [part for part in two if part.kind == "mask"]
    assert [part.place for part in masks] == ["first", "further"] and len(two) == len(one) + 2
    assert {part.bytes for part in masks} == {2 * 32768**2 * 3}
    gpus = [80 * GB, 80 * GB]
    used = [
        serving_plan.plan_memory(config_38b, gpus, settings).used[1] for settings in (alone, both)
    ]
    assert used[1] - used[0] > 1.05 * 2 * 32768**2 * 3


def test_longest_context_fits_and_a_longer_one_does_not(config_38b):
    settings = ServingSettings(quantization="nf4", offload_vision=True, kv_bits=4)
    longest = serving_plan.longest_context(config_38b, [24 * GB], settings)
    assert 8192 <= longest < 131072
    fitting = dataclasses.replace(settings, context=longest)
    assert serving_plan.plan_memory(config_38b, [24 * GB], fitting).problem is None
    longer = dataclasses.replace(settings, context=longest + 512)
    assert serving_plan.plan_memory(config_38b, [24 * GB], longer).problem is not None


def test_advice_gives_up_as_little_as_possible(config_38b):
    def alternatives(gpu):
        settings = ServingSettings(context=4096)
        return serving_plan.fitting_alternatives(config_38b, [gpu * GB], settings)

    descriptions = [found.description for found in alternatives(70)]
    assert descriptions[:2] == ["decoder layers in int8", "decoder layers in nf4"]
    assert alternatives(48)[0].settings.quantization == "nf4"
    assert alternatives(4) == []


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"dtype": "int4"}, "dtype='int4' is unknown"),
        ({"quantization": "awq"}, "quantization='awq' is unknown"),
        ({"kv_bits": 8}, "kv_bits=8 is unknown"),
        ({"context": 0}, "context=0 must be positive"),
        ({"batch": 0}, "batch=0 must be positive"),
    ],
    ids=str,
)
def test_settings_that_do_not_exist_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        ServingSettings(**settings)


def most_allocated(call, trace):
    """Bytes of tensors alive at once during a call, at most.

    As torch's profiler counts them: what the process keeps besides differs with the machine.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    return max(itertools.accumulate(event["args"]["Bytes"] for event in changes))


class TestAgainstMeasuredMemory:
    """Against what is allocated, at widths that make every part larger than the noise.

    In float32: a CPU without bf16 units takes ten times as long for bf16, and converts the operands
    of every product to float32, which takes memory that no GPU needs.
    """

    TILES, TOKENS = 4, 2048
    SHAPES = {"vision": "300m", "language": "0.5b", "vision_layers": 2, "language_layers": 4}

    @pytest.fixture(scope="class")
    def config(self):
        return models.build_config(**self.SHAPES)

    @pytest.fixture(scope="class")
    def model(self, config):
        return models.build_ours(config)

    @pytest.mark.parametrize("context", [512, 2048])
    def test_cache_is_exact(self, config, model, context):
        cache = DynamicCache()
        with torch.no_grad():
            model(
                input_ids=torch.zeros(1, context, dtype=torch.long),
                past_key_values=cache,
                logits_to_keep=1,
            )
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        parts = by_name(self.parts(config, context))
        assert held == parts["KV cache"]

    def test_encoding_tiles(self, config, model, monkeypatch, tmp_path):
        positions = self.TILES * 1025
        # All tiles in one chunk, as on a GPU
        monkeypatch.setattr(image_features, "POSITIONS_PER_CHUNK_ON_CPU", positions)
        pixels = torch.randn(self.TILES, 3, 448, 448, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            measured = most_allocated(lambda: model.extract_feature(pixels), tmp_path / "trace")
        in_chunk = image_features.POSITIONS_PER_CHUNK
        planned = by_name(self.parts(config, 1))["activations"] * positions / in_chunk
        assert 0.7 < planned / measured < 1.2, (planned, measured)

    def test_reading_a_prompt(self, config, model, tmp_path):
        ids = torch.zeros(1, self.TOKENS, dtype=torch.long)
        reading = partial(model, input_ids=ids, use_cache=False, logits_to_keep=1)
        with torch.no_grad():
            measured = most_allocated(reading, tmp_path / "trace")
        config = copy.deepcopy(config)
        config.vision_config.hidden_size = 16  # so that encoding takes next to nothing
        config.vision_config.intermediate_size = 64
        planned = by_name(self.parts(config, self.TOKENS))["activations"]
        assert 0.7 < planned / measured < 1.2, (planned, measured)

    def parts(self, config, context):
        return serving_parts.memory_parts(config, ServingSettings(dtype="fp32", context=context))[0]


class TestCommand:
    def call(self, monkeypatch, capsys, *arguments):
        monkeypatch.setattr(sys, "argv", ["memory.serving", *arguments])
        code = serving.main()
        return code, capsys.readouterr().out

    def test_fits(self, monkeypatch, capsys):
        code, text = self.call(monkeypatch, capsys, "--gpus", "80,80")
        assert code == 0 and 'device_map="split"' in text and "--tensor-parallel-size 2" in text

    def test_does_not_fit_and_says_what_would(self, monkeypatch, capsys):
        code, text = self.call(monkeypatch, capsys, "--gpus", "24")
        assert (
            code == 1
            and "load_in_4bit=True" in text
            and "offload_vision=True" in text
            and "quantized" in text
        )

    def test_json(self, monkeypatch, capsys):
        code, text = self.call(
            monkeypatch, capsys, "--gpus", "8", "--model", str(checkpoints.NANO), "--json"
        )
        assert code == 0 and json.loads(text)["layers_of_gpu"] == [5]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--gpus", "many"],
            ["--gpus", "24", "--context", "0"],
            ["--gpus", "24", "--kv-bits", "8"],  # transformers' quanto cache has 2 and 4
        ],
    )
    def test_bad_arguments(self, monkeypatch, capsys, arguments):
        with pytest.raises(SystemExit):
            self.call(monkeypatch, capsys, *arguments)

    def test_no_such_model(self, monkeypatch, capsys):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            self.call(monkeypatch, capsys, "--gpus", "24", "--model", "/nowhere")
