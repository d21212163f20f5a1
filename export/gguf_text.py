"""The language model of a checkpoint as llama.cpp knows Qwen2, with tokenizer and chat template."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PretrainedConfig

from export.gguf_writing import GgufContent, library, named_tensor
from training.checkpoint import Checkpoint

PREFIX = "language_model."
# llama.cpp splits text into words by code of its own, chosen by name; this is the name for the
# following expression, which is that of DeepSeek-R1-Distill-Qwen.
PRE_TOKENIZER = "deepseek-r1-qwen"
PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL_TOKEN_ENDS = (("<|", "|>"), ("<｜", "｜>"))


def text_file(model: Path, config: PretrainedConfig) -> GgufContent:
    """The content of the language model's file.

    Args:
        model: the checkpoint's directory.
        config: of the checkpoint.

    Raises:
        FileNotFoundError: no weights, or no tokenizer.json.
        ValueError: a setting of the language model that is not written, a tokenizer that splits
            text in another way, or a tensor without a name in llama.cpp.
    """
    _check(config.llm_config)
    tokenizer = _read_tokenizer(model)
    checkpoint = Checkpoint(model, prefix=PREFIX)
    names = tensor_names(config)
    tensors = []
    for name in checkpoint.names:
        shape = checkpoint.shape(name)
        read = partial(checkpoint.read, name)
        tensors.append(named_tensor(names, name, shape, read, PREFIX + name))

    def describe(writer: Any) -> None:
        _describe_model(writer, config.llm_config)
        _describe_tokenizer(writer, model, tokenizer, config.llm_config.vocab_size)

    return GgufContent("qwen2", "model", model.resolve().name, describe, tensors)


def tensor_names(config: PretrainedConfig) -> Any:
    """The `gguf.TensorNameMap` of the language model."""
    gguf = library()
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.llm_config.num_hidden_layers)


def _check(llm_config: PretrainedConfig) -> None:
    """Raise ValueError for settings that the file has no place for."""
    if llm_config.model_type != "qwen2":
        raise ValueError(
            f"llm_config.model_type={llm_config.model_type!r} is not written: expected 'qwen2'."
        )
    scaling = getattr(llm_config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"llm_config.rope_scaling of type {kind!r} is not written: expected none. Take it out "
            "of config.json and give llama.cpp its own --rope-scaling."
        )


def _describe_model(writer: Any, llm_config: PretrainedConfig) -> None:
    writer.add_block_count(llm_config.num_hidden_layers)
    writer.add_context_length(llm_config.max_position_embeddings)
    writer.add_embedding_length(llm_config.hidden_size)
    writer.add_feed_forward_length(llm_config.intermediate_size)
    writer.add_head_count(llm_config.num_attention_heads)
    writer.add_head_count_kv(llm_config.num_key_value_heads)
    writer.add_rope_freq_base(_rope_theta(llm_config))
    writer.add_layer_norm_rms_eps(llm_config.rms_norm_eps)


def _rope_theta(llm_config: PretrainedConfig) -> float:
    """The base of the rotary embedding, which transformers 5 keeps in `rope_parameters`."""
    parameters = getattr(llm_config, "rope_parameters", None) or {}
    return parameters.get("rope_theta") or llm_config.rope_theta


def _read_tokenizer(model: Path) -> Tokenizer:
    path = model / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{model} has no tokenizer.json: download it again.")
    content = json.loads(path.read_text(encoding="utf-8"))
    if PRE_TOKENIZER_PATTERN not in _patterns(content.get("pre_tokenizer") or {}):
        raise ValueError(
            f"{path} splits text in a way that has no known name in llama.cpp: expected the "
            "pre-tokenizer of DeepSeek-R1-Distill-Qwen."
        )
    return Tokenizer.from_file(str(path))


def _patterns(pre_tokenizer: dict[str, Any]) -> list[str]:
    """The regular expressions by which a pre-tokenizer of tokenizer.json splits text."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return [step["pattern"].get("Regex", "") for step in steps if "pattern" in step]


def _describe_tokenizer(writer: Any, model: Path, tokenizer: Tokenizer, size: int) -> None:
    """Add vocabulary, merges, special tokens and chat template.

    Args:
        writer: a `gguf.GGUFWriter`.
        model: the checkpoint's directory.
        tokenizer: read from it.
        size: rows of the embeddings, in tokens; those behind the vocabulary are unused.
    """
    gguf = library()
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        tokens[index] = token
        kinds[index] = gguf.TokenType.NORMAL
    for index, token in tokenizer.get_added_tokens_decoder().items():
        # As llama.cpp's converter does: control tokens are not printed, <think> and </think> are.
        is_control = token.special or _looks_like_control(token.content)
        kinds[index] = gguf.TokenType.CONTROL if is_control else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(model, load_merges=True, n_vocab=size)
    special.add_to_gguf(writer, quiet=True)


def _looks_like_control(token: str) -> bool:
    return any(token.startswith(start) and token.endswith(end) for start, end in CONTROL_TOKEN_ENDS)
