"""GGUF files, read back by the `gguf` package: weights, metadata, vocabulary, sizes, errors.

What llama.cpp computes from them is in tests/clients/check_llama_cpp.py (`make clients`).
"""

import functools
import json
import math
import shutil
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from export import gguf as command
from export import gguf_sizes, gguf_text, gguf_vision, gguf_writing
from memory import sizes
from tests import checkpoints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """38B's tokenizer and settings around tiny random weights."""
    return checkpoints.tiny_repository(tmp_path_factory.mktemp("gguf") / "tiny")


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """The two files of the tiny checkpoint in float32, and those of nano in q8_0."""
    folder = tmp_path_factory.mktemp("written")
    command.export(tiny, folder / "tiny", "f32")
    command.export(checkpoints.NANO, folder / "nano", "q8_0")
    return folder


@functools.cache
def read(path):
    """A reader of a file; the vocabulary of 38B takes seconds to read."""
    return gguf.GGUFReader(path)


def values(reader):
    """The tensors of a file by name, in float32."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }


def field(reader, name):
    return reader.get_field(name).contents()


def theirs(weights):
    """The weights of a checkpoint under llama.cpp's names, written down here by hand."""
    names = {
        "language_model.model.embed_tokens.weight": "token_embd.weight",
        "language_model.model.norm.weight": "output_norm.weight",
        "language_model.lm_head.weight": "output.weight",
        "vision_model.embeddings.class_embedding": "v.class_embd",
        "vision_model.embeddings.position_embedding": "v.position_embd.weight",
        "vision_model.embeddings.patch_embedding.weight": "v.patch_embd.weight",
        "vision_model.embeddings.patch_embedding.bias": "v.patch_embd.bias",
        "mlp1.0.weight": "mm.model.mlp.0.weight",
        "mlp1.0.bias": "mm.model.mlp.0.bias",
        "mlp1.1.weight": "mm.model.mlp.1.weight",
        "mlp1.1.bias": "mm.model.mlp.1.bias",
        "mlp1.3.weight": "mm.model.mlp.3.weight",
        "mlp1.3.bias": "mm.model.mlp.3.bias",
    }
    of_text_layer = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    of_vision_layer = {
        "norm1.weight": "ln1.weight",
        "norm2.weight": "ln2.weight",
        "ls1": "ls1.weight",
        "ls2": "ls2.weight",
        "attn.q_norm.weight": "attn_q_norm.weight",
        "attn.k_norm.weight": "attn_k_norm.weight",
        "attn.proj.weight": "attn_out.weight",
        "attn.proj.bias": "attn_out.bias",
        "mlp.fc1.weight": "ffn_up.weight",
        "mlp.fc1.bias": "ffn_up.bias",
        "mlp.fc2.weight": "ffn_down.weight",
        "mlp.fc2.bias": "ffn_down.bias",
    }
    expected = {}
    for name, tensor in weights.items():
        if name.startswith("language_model.model.layers."):
            layer, _, rest = name.removeprefix("language_model.model.layers.").partition(".")
            stem, _, end = rest.rpartition(".")
            expected[f"blk.{layer}.{of_text_layer[stem]}.{end}"] = tensor
        elif name.startswith("vision_model.encoder.layers."):
            layer, _, rest = name.removeprefix("vision_model.encoder.layers.").partition(".")
            if rest == "attn.qkv.weight":
                for letter, part in zip("qkv", tensor.chunk(3)):
                    expected[f"v.blk.{layer}.attn_{letter}.weight"] = part
            else:
                expected[f"v.blk.{layer}.{of_vision_layer[rest]}"] = tensor
        else:
            expected[names[name]] = tensor
    return {name: tensor.float().squeeze() for name, tensor in expected.items()}


@pytest.mark.parametrize("name", ["tiny", "nano"])
def test_every_weight_is_there_under_the_name_of_llama_cpp(written, tiny, name):
    source = tiny if name == "tiny" else checkpoints.NANO
    dtype = "f32" if name == "tiny" else "q8_0"
    found = values(read(written / name / f"model-{dtype}.gguf"))
    found.update(values(read(written / name / f"mmproj-{dtype}.gguf")))
    expected = theirs(load_file(source / "model.safetensors"))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        ours = torch.from_numpy(np.array(found[key])).reshape(tensor.shape)
        if name == "tiny" or tensor.dim() == 1:
            assert torch.equal(ours, tensor), key  # copied, not computed
        else:
            # q8_0 rounds to 127 steps of the largest of 32 values, and stores the step as float16.
            largest = tensor.reshape(-1, 32).abs().amax(1, keepdim=True)
            error = (ours - tensor).reshape(-1, 32).abs() / largest.clamp(min=1e-12)
            assert error.max() < 0.5 / 127 + 1e-3, key


def test_settings_are_those_of_the_config(written, tiny):
    config = json.loads((tiny / "config.json").read_text())
    text = read(written / "tiny" / "model-f32.gguf")
    vision = read(written / "tiny" / "mmproj-f32.gguf")
    llm, tower = config["llm_config"], config["vision_config"]
    rows = [
        (text, "general.architecture", "qwen2"),
        (text, "qwen2.block_count", llm["num_hidden_layers"]),
        (text, "qwen2.context_length", llm["max_position_embeddings"]),
        (text, "qwen2.embedding_length", llm["hidden_size"]),
        (text, "qwen2.feed_forward_length", llm["intermediate_size"]),
        (text, "qwen2.attention.head_count", llm["num_attention_heads"]),
        (text, "qwen2.attention.head_count_kv", llm["num_key_value_heads"]),
        (text, "qwen2.rope.freq_base", llm["rope_theta"]),
        (vision, "general.architecture", "clip"),
        (vision, "clip.projector_type", "internvl"),
        (vision, "clip.vision.image_size", 448),
        (vision, "clip.vision.patch_size", 14),
        (vision, "clip.vision.embedding_length", tower["hidden_size"]),
        (vision, "clip.vision.block_count", tower["num_hidden_layers"]),
        (vision, "clip.vision.projection_dim", llm["hidden_size"]),
        (vision, "clip.vision.projector.scale_factor", 2),
        (vision, "clip.vision.preproc_max_tiles", 12),
    ]
    for reader, key, value in rows:
        assert field(reader, key) == value, key
    assert math.isclose(field(text, "qwen2.attention.layer_norm_rms_epsilon"), 1e-5, rel_tol=1e-6)
    epsilon = field(vision, "clip.vision.attention.layer_norm_epsilon")
    assert math.isclose(epsilon, 1e-6, rel_tol=1e-6)
    settings = json.loads((tiny / "preprocessor_config.json").read_text())
    mean = field(vision, "clip.vision.image_mean")
    assert np.allclose(mean, settings["image_mean"])


@pytest.mark.parametrize("name", ["tiny", "nano"])
def test_the_vocabulary_is_the_tokenizers(written, tiny, name):
    source = tiny if name == "tiny" else checkpoints.NANO
    reader = read(next((written / name).glob("model-*.gguf")))
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    tokens = field(reader, "tokenizer.ggml.tokens")
    kinds = field(reader, "tokenizer.ggml.token_type")
    rows = sizes.load_config(source).llm_config.vocab_size
    assert len(tokens) == len(kinds) == rows
    assert all(tokens[index] == token for token, index in tokenizer.get_vocab().items())
    assert set(kinds[len(tokenizer) :]) <= {gguf.TokenType.UNUSED}
    by_token = dict(zip(tokens, kinds))
    # A control token is not printed; a reader of the answer needs the end of the thinking.
    assert by_token["<｜User｜>"] == by_token["<IMG_CONTEXT>"] == gguf.TokenType.CONTROL
    assert by_token["<think>"] == by_token["</think>"] == gguf.TokenType.USER_DEFINED
    assert field(reader, "tokenizer.ggml.bos_token_id") == tokenizer.bos_token_id
    assert field(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    # The copy without markers of what the assistant writes, which other engines may not know
    template = json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    assert field(reader, "tokenizer.chat_template") == template


@pytest.mark.parametrize("dtype, name", [("f32", "BF16"), ("q8_0", "Q8_0")])
def test_sizes_from_the_shapes_are_those_of_a_file(tmp_path, dtype, name):
    """Float32 has twice the bytes of bf16 where bf16 is not float32 already."""
    command.export(checkpoints.NANO, tmp_path, dtype)
    tensors = read(tmp_path / f"model-{dtype}.gguf").tensors
    shapes = gguf_sizes.text_shapes(sizes.load_config(checkpoints.NANO))
    assert shapes.keys() == {tensor.name for tensor in tensors}
    size = gguf_sizes.text_bytes(shapes, name)
    if dtype == "f32":
        vectors = sum(4 * shape[0] for shape in shapes.values() if len(shape) == 1)
        size = vectors + 2 * (size - vectors)
    assert size == sum(tensor.n_bytes for tensor in tensors)


@pytest.mark.parametrize("change, words", [
    ({"llm_config": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}}, "rope_scaling"),
    ({"select_layer": -2}, "select_layer=-2"),
    ({"ps_version": "v1"}, "ps_version='v1'"),
    ({"vision_config": {"hidden_act": "relu"}}, "hidden_act='relu'"),
])  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused(tiny, tmp_path, change, words):
    folder = shutil.copytree(tiny, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        if isinstance(value, dict):
            config[key].update(value)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        command.export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_fit_are_refused(tiny, tmp_path):
    """A tokenizer that splits text in another way, none at all, and a tensor of another model."""
    folder = shutil.copytree(tiny, tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="splits text in a way"):
        command.export(folder, tmp_path / "out")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        command.export(folder, tmp_path / "out")
    shutil.copy(tiny / "tokenizer.json", folder)
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.layers.0.extra.weight"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no tensor like language_model\.model\.layers\.0\.extra"):
        command.export(folder, tmp_path / "out")


def test_an_unknown_dtype_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"dtype='int4'.*f32, f16, bf16, q8_0"):
        command.export(checkpoints.NANO, tmp_path / "out", "int4")


def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ImportError, match="pip install llama-cpp-python"):
        command.export(checkpoints.NANO, tmp_path / "out", quantize="Q4_K_M")
    assert not (tmp_path / "out").exists()


def test_a_file_has_its_name_only_when_it_is_whole(monkeypatch, tmp_path):
    """A disk that is full in the middle, for example."""
    content = gguf_text.text_file(checkpoints.NANO, sizes.load_config(checkpoints.NANO))

    def fail():
        raise OSError("No space left on device")

    last = content.tensors[-1]
    content.tensors[-1] = gguf_writing.TensorSource(last.name, last.shape, fail)
    with pytest.raises(OSError, match="No space left"):
        gguf_writing.write(tmp_path / "model.gguf", content, "f16")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("shape, norm_type, sentences", [
    ((3200, 45), "rms_norm", 0),  # InternViT-6B, as 38B has it
    ((1024, 24), "layer_norm", 0),  # InternViT-300M
    ((256, 8), "rms_norm", 1),  # nano
    ((3200, 45), "layer_norm", 1),
])  # fmt: skip
def test_a_vision_part_that_llama_cpp_computes_otherwise_is_named(shape, norm_type, sentences):
    config = sizes.load_config(checkpoints.ROOT)
    config.vision_config.hidden_size, config.vision_config.num_hidden_layers = shape
    config.vision_config.norm_type = norm_type
    assert len(gguf_vision.differences(config)) == sentences


def test_the_command_prints_the_files(capsys, tmp_path):
    assert command.main([str(checkpoints.NANO), str(tmp_path / "out"), "--dtype", "f16"]) == 0
    printed = capsys.readouterr().out.splitlines()
    names = [line.partition(":")[0] for line in printed]
    assert names == [str(tmp_path / "out" / f"{name}-f16.gguf") for name in ("model", "mmproj")]


def test_the_sizes_of_38b(capsys):
    """32.76 billion weights of 16, 8.5 and 6.5625 bits, and 5.64 billion in the vision part."""
    assert command.main([str(checkpoints.ROOT), "--sizes"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    found = {name: float(size) for name, size, _ in rows}
    weights = 32.764e9
    assert found["model-BF16"] == pytest.approx(weights * 16 / 8e9, abs=0.02)
    assert found["model-Q8_0"] == pytest.approx(weights * 8.5 / 8e9, abs=0.02)
    assert found["model-Q6_K"] == pytest.approx(weights * 6.5625 / 8e9, abs=0.02)
    assert weights * 4.5 / 8e9 < found["model-Q4_K_M"] < weights * 5 / 8e9  # Q4_K to half Q6_K
    assert found["mmproj-bf16"] == pytest.approx(2 * 5.628, abs=0.02)


def test_a_wrong_directory_is_one_line(capsys, tmp_path):
    assert command.main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
    assert "expected a checkpoint's directory" in capsys.readouterr().err
