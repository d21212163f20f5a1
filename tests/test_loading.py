"""Loading and saving: every way users load, memory, quantization switches, the Hub's cache.

Weights are compared bit for bit, since loading and saving copy bytes. Answers of two models, which
hold their weights at different places in memory, are compared up to a tie (tests/comparison.py).
"""

import copy
import gc
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.quantizers import AutoHfQuantizer

from remote_code import checkpoint_files, configuration_skywork_chat, loading, modeling_skywork_chat
from tests import checkpoints, comparison

OPTIONS = {"torch_dtype": torch.float32, "trust_remote_code": True}


def assert_golden(model):
    """Check that the answer is the reference lineage's, up to a tie."""
    model.eval()
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    inputs = checkpoints.golden("inputs")
    prompt = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    expected = checkpoints.golden("expected")["generated_ids"]
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
    new_ids = ids.cpu()[:, -24:]
    assert new_ids.shape == expected.shape
    (row,) = comparison.prompts_of(model, **prompt)
    comparison.assert_same_greedy(row.next_logits, new_ids[0].tolist(), expected[0].tolist())


def shard(folder, count):
    """Rewrite model.safetensors as `count` shards with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    weight_map = {}
    for index in range(count):
        part = f"model-{index + 1:05}-of-{count:05}.safetensors"
        chosen = names[index::count]
        save_file(
            {name: weights[name] for name in chosen}, folder / part, metadata={"format": "pt"}
        )
        weight_map.update(dict.fromkeys(chosen, part))
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def card_map():
    """What the model card's split_model() gives for two GPUs, all on the CPU."""
    names = [f"language_model.model.layers.{index}" for index in range(7)]  # the golden model has 3
    names += [
        "vision_model",
        "mlp1",
        "language_model.model.tok_embeddings",
        "language_model.model.embed_tokens",
    ]
    names += [
        "language_model.output",
        "language_model.model.norm",
        "language_model.model.rotary_emb",
    ]
    return dict.fromkeys([*names, "language_model.lm_head"], "cpu")


@pytest.mark.parametrize("device_map", [
    pytest.param(card_map(), id="the model card's dict"),
    pytest.param("auto", id="auto"),
    pytest.param("balanced_low_0", id="balanced_low_0"),
    pytest.param({"": "cpu"}, id="all on the CPU"),
    pytest.param("cpu", id="cpu"),
])  # fmt: skip
@pytest.mark.parametrize("shards", [1, 3])
def test_device_maps(tmp_path, device_map, shards):
    path = checkpoints.golden_repository(tmp_path / "checkpoint")
    if shards > 1:
        shard(path, shards)
    assert_golden(AutoModelForCausalLM.from_pretrained(path, device_map=device_map, **OPTIONS))


def test_cpu_and_disk_offload(golden_path, tmp_path):
    names = {"vision_model": "cpu", "mlp1": "cpu", "language_model.model.embed_tokens": "cpu"}
    names.update({f"language_model.model.layers.{index}": "disk" for index in range(3)})
    names.update(
        {
            "language_model.model.norm": "cpu",
            "language_model.model.rotary_emb": "cpu",
            "language_model.lm_head": "disk",
        }
    )
    model = AutoModel.from_pretrained(
        golden_path, device_map=names, offload_folder=str(tmp_path), **OPTIONS
    )
    assert model.language_model.model.layers[0].mlp.up_proj.weight.device.type == "meta"
    assert_golden(model)


def test_offload_vision_needs_the_split_map(golden_path):
    with pytest.raises(ValueError, match="offload_vision=True goes with device_map='split'"):
        AutoModel.from_pretrained(golden_path, offload_vision=True, **OPTIONS)


def test_offload_vision_plans_without_the_tower(golden_path, monkeypatch):
    """The map that accelerate gets: the tower on the host, the rest on the GPU.

    The GPU needs no room for the tower.
    """
    config = configuration_skywork_chat.SkyworkChatConfig.from_pretrained(checkpoints.ROOT)
    monkeypatch.setattr(modeling_skywork_chat, "free_memory", lambda: [70_000_000_000])
    with pytest.raises(ValueError, match="does not fit"):
        modeling_skywork_chat.SkyworkChatModel._split_device_map(config, 2, 2)
    device_map = modeling_skywork_chat.SkyworkChatModel._split_device_map(
        config, 2, 2, offload_vision=True
    )
    assert device_map.pop("vision_model") == "cpu" and set(device_map.values()) == {0}


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("switch", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("holder", ["keywords", "config"])
def test_bitsandbytes_takes_a_map_with_the_host(switch, holder, is_dict):
    """transformers' own check, which refuses such a map, is content; the caller's config stays.

    The config of a checkpoint that is quantized already is a dict, one of the caller's an object.
    """
    given = BitsAndBytesConfig(**{switch: True})
    stored = given.to_dict() if is_dict else given
    config = configuration_skywork_chat.SkyworkChatConfig()
    keywords = {"device_map": {"vision_model": "cpu", "mlp1": 0, "language_model": 0}}
    where = keywords if holder == "keywords" else vars(config)
    where["quantization_config"] = stored
    before = copy.deepcopy(stored if is_dict else stored.to_dict())
    loading.allow_host_memory(keywords, config)
    resolved = where["quantization_config"]
    if is_dict:
        resolved = BitsAndBytesConfig.from_dict(resolved)
    check = AutoHfQuantizer.from_config(resolved, pre_quantized=True).validate_environment
    check(device_map=keywords["device_map"])
    assert (stored if is_dict else stored.to_dict()) == before
    refusing = AutoHfQuantizer.from_config(given, pre_quantized=True).validate_environment
    with pytest.raises(ValueError, match="dispatched on the CPU"):
        refusing(device_map=keywords["device_map"])


def test_a_map_without_the_host_needs_no_switch():
    for device_map in (None, "auto", {"": 0}):
        keywords = {
            "device_map": device_map,
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
        }
        before = dict(keywords)
        loading.allow_host_memory(keywords, configuration_skywork_chat.SkyworkChatConfig())
        assert keywords == before
        assert keywords["quantization_config"] is before["quantization_config"]


def test_answers_with_the_vision_tower_passing_through(nano_model, nano_tokenizer):
    """accelerate's hooks hold the tower's weights apart and bring each module's when it computes.

    As on a GPU.
    """
    model = AutoModel.from_pretrained(checkpoints.NANO, **OPTIONS).eval()
    cpu_offload(model.vision_model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.vision_model.parameters())
    question = [
        str(checkpoints.ROOT / "examples" / "images" / "counting_1.png"),
        "Count.",
        {"max_new_tokens": 24},
    ]
    comparison.assert_same_answers(
        comparison.ask(nano_model.chat, nano_tokenizer, *question),
        comparison.ask(model.chat, nano_tokenizer, *question),
    )
    assert all(parameter.is_meta for parameter in model.vision_model.parameters())


def test_chat_with_offloaded_embeddings(tmp_path, nano_model, nano_tokenizer):
    device_map = {
        "vision_model": "disk",
        "mlp1": "cpu",
        "language_model.model.embed_tokens": "disk",
    }
    device_map.update({f"language_model.model.layers.{index}": "cpu" for index in range(5)})
    device_map.update({"language_model.model.norm": "cpu", "language_model.lm_head": "disk"})
    model = AutoModel.from_pretrained(
        checkpoints.NANO, device_map=device_map, offload_folder=str(tmp_path), **OPTIONS
    )
    image, options = (
        str(checkpoints.ROOT / "examples" / "image1.jpg"),
        {"max_new_tokens": 6, "do_sample": False},
    )
    comparison.assert_same_answers(
        comparison.ask(nano_model.chat, nano_tokenizer, image, "What?", options),
        comparison.ask(model.chat, nano_tokenizer, image, "What?", options),
    )


@pytest.mark.parametrize(
    "auto_class", [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText]
)
def test_the_auto_classes(golden_path, auto_class):
    model = auto_class.from_pretrained(golden_path, **OPTIONS)
    standard = auto_class is AutoModelForImageTextToText
    assert type(model).__name__ == (
        "SkyworkChatForConditionalGeneration" if standard else "SkyworkChatModel"
    )
    assert_golden(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash-attn is tried where there is a GPU")
@pytest.mark.parametrize(
    "options", [{"use_flash_attn": True}, {"attn_implementation": "flash_attention_2"}]
)
def test_missing_flash_attention_means_sdpa(golden_path, options):
    model = AutoModel.from_pretrained(golden_path, **options, **OPTIONS)
    assert (
        model.vision_model.config._attn_implementation
        == model.language_model.config._attn_implementation
        == "sdpa"
    )
    assert_golden(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash-attn is tried where there is a GPU")
@pytest.mark.parametrize("part", ["llm_config", "vision_config", None])
def test_flash_attention_saved_in_a_config_is_no_crash(tmp_path, part):
    path = checkpoints.golden_repository(tmp_path / "checkpoint")
    config = json.loads((path / "config.json").read_text())
    (config[part] if part else config)["attn_implementation"] = "flash_attention_2"
    (path / "config.json").write_text(json.dumps(config))
    assert_golden(AutoModel.from_pretrained(path, **OPTIONS))
    assert_golden(AutoModel.from_pretrained(path, attn_implementation="eager", **OPTIONS))
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    model = AutoModel.from_config(
        config, trust_remote_code=True, attn_implementation="flash_attention_2"
    )
    assert model.vision_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "dtype, expected", [(torch.float32, None), (torch.bfloat16, "flash_attention_2"), (None, None)]
)
def test_flash_attention_needs_half_precision(monkeypatch, dtype, expected):
    monkeypatch.setattr(loading, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.choose_attention(None, True, dtype) == expected
    assert loading.choose_attention(None, None, dtype) is None  # nobody asked


@pytest.mark.parametrize("keywords, saved, expected", [
    ({"dtype": "auto"}, torch.bfloat16, "flash_attention_2"),
    ({"dtype": "auto"}, torch.float32, None),
    ({}, torch.bfloat16, "flash_attention_2"),  # transformers 5 loads a checkpoint as it was saved
    ({"dtype": torch.float32}, torch.bfloat16, None),
])  # fmt: skip
def test_flash_attention_goes_by_the_dtype_that_is_loaded(monkeypatch, keywords, saved, expected):
    monkeypatch.setattr(loading, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = types.SimpleNamespace(dtype=saved, torch_dtype=saved)
    assert (
        loading.loading_keywords(keywords, config, True, False, False).get("attn_implementation")
        == expected
    )


@pytest.mark.parametrize("keywords, expected", [
    ({"dtype": torch.float32}, (4, 4)), ({"dtype": "bfloat16"}, (2, 2)),
    ({"torch_dtype": torch.bfloat16}, (2, 2)), ({"dtype": "auto"}, (2, 2)), ({}, (2, 2)),
])  # fmt: skip
def test_sizes_follow_the_dtype(keywords, expected, root_config):
    assert loading.bytes_per_parameter(keywords, root_config) == expected


def find_bitsandbytes(monkeypatch, found):
    """Let bitsandbytes be found, or not.

    Of other packages the truth is told: transformers remembers for the whole process what it found.
    """
    find_spec = loading.importlib.util.find_spec

    def find(name, *more):
        return found if name == "bitsandbytes" else find_spec(name, *more)

    monkeypatch.setattr(loading.importlib.util, "find_spec", find)


def test_load_in_8bit_names_bitsandbytes_where_it_is_missing(golden_path, monkeypatch):
    AutoModel.from_pretrained(golden_path, load_in_8bit=False, **OPTIONS)
    find_bitsandbytes(monkeypatch, None)
    for switch in ("load_in_8bit", "load_in_4bit"):
        with pytest.raises(ImportError, match="bitsandbytes"):
            AutoModel.from_pretrained(golden_path, **{switch: True}, **OPTIONS)


def test_load_in_8bit_becomes_a_quantization_config_of_the_language_model(monkeypatch):
    find_bitsandbytes(monkeypatch, object())
    keywords = {"torch_dtype": torch.bfloat16}
    loaded = loading.loading_keywords(keywords, None, None, True, False)
    assert loading.bytes_per_parameter(loaded, None) == (loading.QUANTIZED_BYTES["int8"], 2)
    config = loaded["quantization_config"]
    assert config.load_in_8bit and {"vision_model", "mlp1"} <= set(config.llm_int8_skip_modules)
    config = loading.loading_keywords(keywords, None, None, False, True)["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert keywords == {"torch_dtype": torch.bfloat16}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it loads")
def test_splitting_over_no_gpu_is_an_error(golden_path):
    with pytest.raises(ValueError, match="No GPU to split"):
        AutoModel.from_pretrained(golden_path, device_map="split", **OPTIONS)


def test_weights_can_come_without_a_repository(nano_model):
    model = modeling_skywork_chat.SkyworkChatModel.from_pretrained(
        None, config=nano_model.config, state_dict=nano_model.state_dict()
    )
    assert torch.equal(model.mlp1[1].weight, nano_model.mlp1[1].weight)


def test_unknown_keywords_are_named(golden_path):
    with pytest.raises(TypeError, match="use_flashattn"):
        AutoModel.from_pretrained(golden_path, use_flashattn=True, **OPTIONS)


def test_a_model_built_from_a_config_takes_a_choice_for_each_part(golden_path):
    config = AutoConfig.from_pretrained(golden_path, trust_remote_code=True)
    chosen = {"vision_config": "eager", "llm_config": "sdpa"}
    model = AutoModel.from_config(config, trust_remote_code=True, attn_implementation=chosen)
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.language_model.config._attn_implementation == "sdpa"


def test_a_model_built_from_a_config_takes_the_switch(golden_path):
    config = AutoConfig.from_pretrained(golden_path, trust_remote_code=True)
    model = AutoModel.from_config(config, trust_remote_code=True, use_flash_attn=True)
    assert model.vision_model.config._attn_implementation == "sdpa"
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="not loaded from a repository"):
        model.chat(None, "examples/image1.jpg", "What?", {})


def test_saved_checkpoints_load_by_themselves(tmp_path):
    """Code, tokenizer and processor come along; answers are equal; the source may be gone."""
    source = checkpoints.tiny_repository(tmp_path / "source")
    model = AutoModel.from_pretrained(source, **OPTIONS).eval()
    saved = tmp_path / "saved"
    model.save_pretrained(saved, max_shard_size="20MB")
    assert (saved / "model.safetensors.index.json").exists()
    source.rename(tmp_path / "elsewhere")
    written = json.loads((saved / "config.json").read_text())
    assert written["architectures"] == ["SkyworkR1VChatModel"] and model.config.architectures == [
        "SkyworkR1VChatModel"
    ]
    assert (
        written["auto_map"]
        == json.loads((checkpoints.ROOT / "config.json").read_text())["auto_map"]
    )
    again = AutoModel.from_pretrained(saved, **OPTIONS).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(saved, trust_remote_code=True)
    image, options = (
        str(checkpoints.ROOT / "examples" / "image1.jpg"),
        {"max_new_tokens": 6, "do_sample": False},
    )
    answer = comparison.ask(again.chat, tokenizer, image, "What?", options)
    processor = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    pixel_values = processor.image_processor(image)["pixel_values"]
    expected = comparison.ask(model.chat, tokenizer, pixel_values, "What?", options)
    comparison.assert_same_answers(expected, answer)
    twice = tmp_path / "twice"
    again.save_pretrained(twice)
    assert {path.name for path in twice.rglob("*.py")} == {
        path.name for path in saved.rglob("*.py")
    }


HUB_SCRIPT = """
import json, sys, torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
name, image = "Skywork/nano-test", sys.argv[1]
hub = {"trust_remote_code": True, "revision": "v2"}
model = AutoModel.from_pretrained(name, torch_dtype=torch.float32, **hub).eval()
tokenizer = AutoTokenizer.from_pretrained(name, **hub)
processor = AutoProcessor.from_pretrained(name, **hub)
assert type(processor).__name__ == "SkyworkChatProcessor"
generate, ids = model.generate, []
model.generate = lambda **keywords: ids.append(generate(**keywords)) or ids[-1]
answer = model.chat(tokenizer, image, "What?", {"max_new_tokens": 8, "do_sample": False})
print(json.dumps([answer, ids[0][0].tolist()]))
del model.generate
model.save_pretrained(sys.argv[2])
"""


def hub_cache(folder, source, name="Skywork/nano-test"):
    """A cache as huggingface_hub lays it out: blobs, a snapshot of links to them, and a ref.

    The ref is not main.
    """
    repository = folder / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v2").write_text(commit)
    (repository / "blobs").mkdir()
    for index, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        if "__pycache__" in path.parts:
            continue
        blob = repository / "blobs" / f"{index:040x}"
        blob.write_bytes(path.read_bytes())
        link = repository / "snapshots" / commit / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def test_a_relative_path_is_found_again_from_elsewhere(tmp_path, monkeypatch, nano_tokenizer):
    monkeypatch.chdir(checkpoints.ROOT)
    model = AutoModel.from_pretrained("nano", **OPTIONS).eval()
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("saved")
    assert (tmp_path / "saved" / "tokenizer.json").exists() and (
        tmp_path / "saved" / "preprocessor"
    ).is_dir()
    image = str(checkpoints.ROOT / "examples" / "image1.jpg")
    assert (
        model.chat(nano_tokenizer, image, "What?", {"max_new_tokens": 2, "do_sample": False})
        is not None
    )


def test_loading_from_a_hub_cache_offline(tmp_path, nano_model, nano_tokenizer):
    source = checkpoints.copy_code(tmp_path / "source")
    for name in (
        *checkpoints.TEXT_FILES,
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ):
        (source / name).write_bytes((checkpoints.NANO / name).read_bytes())
    hub_cache(tmp_path / "hub", source)
    image = str(checkpoints.ROOT / "examples" / "image1.jpg")
    environment = dict(
        os.environ,
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HF_MODULES_CACHE=str(tmp_path / "modules"),
        HF_HUB_OFFLINE="1",
    )
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, image, str(tmp_path / "saved")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected = comparison.ask(
        nano_model.chat, nano_tokenizer, image, "What?", {"max_new_tokens": 8, "do_sample": False}
    )
    # Up to a tie: another process may compute with another number of threads
    answer, new_ids = json.loads(done.stdout.strip().splitlines()[-1])
    row = comparison.Row(
        expected.rows[0].prompt,
        comparison.until_stop(new_ids, nano_model.generation_config.eos_token_id),
    )
    comparison.assert_same_answers(expected, comparison.Answers(answer, [answer], [row]))
    assert (tmp_path / "saved" / "tokenizer.json").is_file() and (
        tmp_path / "saved" / "preprocessor"
    ).is_dir()
    saved = {
        str(path.relative_to(tmp_path / "saved"))
        for path in (tmp_path / "saved").rglob("*")
        if path.is_file()
    }
    assert {"tokenizer.json", "preprocessor/tiling.py", "modeling_skywork_chat.py"} <= saved


MEMORY_SCRIPT = """
import json, resource, sys, torch
from transformers import AutoModel
# What is imported anyway does not count
import transformers.models.qwen2.modeling_qwen2, accelerate
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = AutoModel.from_pretrained(sys.argv[1], torch_dtype="auto", trust_remote_code=True)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([(after - before) * 1024, sum(p.nbytes for p in model.parameters())]))
"""


def test_a_folder_is_uploaded_as_it_was_written(tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, private, exist_ok):
            calls.append(("repository", repo_id, private, exist_ok))
            return types.SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, **keywords):
            calls.append(keywords)

    model = AutoModel.from_pretrained(checkpoints.golden_repository(tmp_path / "golden"), **OPTIONS)
    monkeypatch.setattr(
        sys.modules[type(model).__module__.replace("modeling_skywork_chat", "checkpoint_files")],
        "HfApi",
        Api,
    )
    changed = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(
        tmp_path / "saved",
        state_dict=changed,
        push_to_hub=True,
        private=True,
        commit_message="x",
        create_pr=True,
    )
    assert calls[1:] == [
        ("repository", "saved", True, True),
        {
            "repo_id": "me/saved",
            "folder_path": tmp_path / "saved",
            "commit_message": "x",
            "create_pr": True,
        },
    ]
    assert not any(
        tensor.any() for tensor in load_file(tmp_path / "saved" / "model.safetensors").values()
    )


def test_peak_memory_of_loading(tmp_path):
    """Within 1.15 x the checkpoint + 0.5 GB, so that a second copy of the 1.5 GB would show."""
    path = checkpoints.copy_code(tmp_path / "checkpoint")
    config = checkpoints.tiny_config()
    config["llm_config"].update(
        hidden_size=512, intermediate_size=14336, num_hidden_layers=24, max_window_layers=24
    )
    config["llm_config"]["num_attention_heads"] = 8
    for part in (config, config["llm_config"], config["vision_config"]):
        part["torch_dtype"] = "bfloat16"
    (path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = modeling_skywork_chat.SkyworkChatModel(
            configuration_skywork_chat.SkyworkChatConfig(**config)
        ).state_dict()
    weights = {
        name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in shapes.items()
    }
    size = sum(tensor.nbytes for tensor in weights.values())
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    del weights
    gc.collect()
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, loaded = json.loads(done.stdout.strip().splitlines()[-1])
    assert loaded == size > 1.3e9
    assert peak <= 1.15 * size + 0.5e9, f"{peak / 1e9:.2f} GB for {size / 1e9:.2f} GB"


def test_the_code_in_the_nano_repository_is_that_of_this_one():
    """Copies, so that it is a repository wherever it is copied; `make nano-code` renews them."""
    needed = {*checkpoints.CODE, "chat_template.jinja"}
    needed |= {name for name in checkpoint_files.SUPPORT_FILES if name.startswith("preprocessor/")}
    for name in needed:
        copied = checkpoints.NANO / name
        assert not copied.is_symlink() and not copied.parent.is_symlink()
        assert copied.read_bytes() == (checkpoints.ROOT / name).read_bytes(), "run make nano-code"
    code = {
        path.relative_to(checkpoints.NANO).as_posix() for path in checkpoints.NANO.rglob("*.py")
    }
    assert code == {name for name in needed if name.endswith(".py")}
    assert Path(checkpoints.NANO / "model.safetensors").stat().st_size <= 25_000_000
