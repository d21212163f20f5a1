"""How a model is loaded: its attention implementation, its quantization and its dtype.

`from_pretrained` passes through `loading_keywords`, which turns the model card's keywords into
those of the installed transformers version.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from .transformers_compat import default_loading_dtype, loads_meta_first, with_dtype_keyword

logger = logging.get_logger(__name__)

# These modules keep their full width where weights are quantized. Together they have a sixth of the
# parameters of 38B, and image features and logits pass through them.
UNQUANTIZED_MODULES = ("vision_model", "mlp1", "language_model.lm_head")
# Bytes of a quantized weight. int8 has a float scale for each row. nf4 has a scale of one byte for
# each 64 weights, and a float for each 256 scales (QLoRA, arXiv:2305.14314, double quantization).
QUANTIZED_BYTES = {"int8": 1.01, "nf4": 0.5 + 1.0 / 64 + 4.0 / (64 * 256)}
HALF_PRECISION = (torch.float16, torch.bfloat16, "float16", "bfloat16")
FLASH_ATTENTION = "flash_attention_2"
HOST_MEMORY_SWITCH = "llm_int8_enable_fp32_cpu_offload"  # of bitsandbytes, in transformers


def loading_keywords(
    keywords: dict[str, Any],
    config: PretrainedConfig | None,
    use_flash_attn: bool | None,
    load_in_8bit: bool,
    load_in_4bit: bool,
) -> dict[str, Any]:
    """Keywords for `from_pretrained` of the installed version, from those of any version.

    Args:
        keywords: what the caller gave; not changed.
        config: the loaded config, or None.
        use_flash_attn: the model card's switch; None leaves the choice to the vision config.
        load_in_8bit, load_in_4bit: the model card's switches for bitsandbytes, which transformers
            replaced by `quantization_config` in 5.0.

    Raises:
        ImportError: quantization without bitsandbytes.
    """
    keywords = with_dtype_keyword(keywords)
    if loads_meta_first():
        keywords.pop("low_cpu_mem_usage", None)
    elif importlib.util.find_spec("accelerate") is not None and not is_deepspeed_zero3_enabled():
        # Otherwise the weights are in memory twice while they are loaded. ZeRO-3 of DeepSpeed
        # shards them by itself.
        keywords.setdefault("low_cpu_mem_usage", True)
    if load_in_8bit or load_in_4bit:
        keywords.setdefault("quantization_config", _bitsandbytes_config(load_in_8bit))
    if keywords.get("quantization_config") is not None:
        keywords["quantization_config"] = language_layers_only(keywords["quantization_config"])
    requested = keywords.get("attn_implementation")
    requested = requested or getattr(config, "_attn_implementation_internal", None)
    resolved = choose_attention(requested, use_flash_attn, dtype_of_loading(keywords, config))
    if resolved is not None:
        keywords["attn_implementation"] = resolved
    return keywords


# -- attention -------------------------------------------------------------------------------------


def is_flash_attention_available() -> bool:
    """Whether flash-attn is installed; it is optional."""
    return importlib.util.find_spec("flash_attn") is not None


def flash_attention_function() -> Any:
    """`flash_attn.flash_attn_func`, imported when it is first used.

    It is imported by name, because transformers takes any import statement in a remote-code file
    for a package that the model cannot do without.
    """
    return importlib.import_module("flash_attn").flash_attn_func


def choose_attention(
    requested: str | dict[str, str] | None,
    use_flash_attn: bool | None = None,
    dtype: torch.dtype | str | None = None,
) -> Any:
    """The attention implementation to ask transformers for.

    Args:
        requested: a name, a dict with a name for each part of the model (from 4.48), or None.
        use_flash_attn: the model card's switch; it asks for flash-attn where that can run.
        dtype: of the loaded weights; flash-attn takes half precision only.

    Returns:
        A name, a dict of names, or None, which leaves the choice to transformers (SDPA).
    """
    if isinstance(requested, dict):
        return {part: choose_attention(name) for part, name in requested.items()}
    if requested is None and use_flash_attn:
        if is_flash_attention_available() and torch.cuda.is_available() and dtype in HALF_PRECISION:
            return FLASH_ATTENTION
        logger.warning_once(
            "use_flash_attn=True, but flash-attn is not usable here: attention runs through SDPA."
        )
        return None
    if requested == FLASH_ATTENTION and not is_flash_attention_available():
        logger.warning_once(
            "flash-attn is not installed: attention runs through SDPA instead of flash_attention_2."
        )
        return "sdpa"
    return requested


def resolve_attention_of_config(
    config: PretrainedConfig,
    requested: str | None = None,
    use_flash_attn: bool | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Set an attention implementation that can run here, before transformers checks the config.

    transformers raises an error where a config asks for flash-attn and it is not installed.
    """
    requested = requested or getattr(config, "_attn_implementation_internal", None)
    resolved = choose_attention(requested, use_flash_attn, dtype)
    if resolved is not None and not isinstance(resolved, dict):
        config._attn_implementation = resolved


def attention_of_part(part: PretrainedConfig) -> str | None:
    """The attention implementation that a sub-config was given, by a script or in its file."""
    by_script = part.__dict__.get("attn_implementation")
    return by_script or getattr(part, "_attn_implementation_internal", None)


def clear_attention_of_parts(config: PretrainedConfig) -> None:
    """Remove what the sub-configs ask for, so that the request at the top level holds for both."""
    for part in (config.vision_config, config.llm_config):
        part.__dict__.pop("attn_implementation", None)
        part._attn_implementation = None


def share_attention(config: PretrainedConfig) -> None:
    """Give both sub-configs the top level's attention implementation, unless they have their own.

    transformers does it by itself from 4.48 on.
    """
    for part in (config.vision_config, config.llm_config):
        chosen = choose_attention(attention_of_part(part))
        part._attn_implementation = chosen or config._attn_implementation


# -- quantization ----------------------------------------------------------------------------------


def language_layers_only(quantization_config: Any) -> Any:
    """A copy of a quantization config that leaves vision tower, projector and head as they are.

    Args:
        quantization_config: an object, or a dict as in config.json. If it names modules that are
            not to be quantized, its own list is kept.
    """
    quantization_config = copy.deepcopy(quantization_config)
    bitsandbytes_name = "llm_int8_skip_modules"
    other_name = "modules_to_not_convert"
    if isinstance(quantization_config, dict):
        is_bitsandbytes = _is_bitsandbytes(quantization_config)
        name = bitsandbytes_name if is_bitsandbytes else other_name
        quantization_config[name] = quantization_config.get(name) or list(UNQUANTIZED_MODULES)
        return quantization_config
    for name in (bitsandbytes_name, other_name):
        if hasattr(quantization_config, name) and getattr(quantization_config, name) is None:
            setattr(quantization_config, name, list(UNQUANTIZED_MODULES))
    return quantization_config


def allow_host_memory(keywords: dict[str, Any], config: PretrainedConfig) -> None:
    """Let bitsandbytes load a model of which a part stays in host memory, in place.

    It refuses a device map with "cpu" beside GPUs unless this switch is set. Its name is that of
    8 bits and 32-bit weights, but it serves 4 bits, too, and the part keeps the dtype of loading.

    Args:
        keywords: of `from_pretrained`, with a resolved device map.
        config: of the model, which may be quantized already.
    """
    device_map = keywords.get("device_map")
    if not isinstance(device_map, dict) or "cpu" not in map(str, device_map.values()):
        return
    for holder in (keywords, vars(config)):
        quantization_config = holder.get("quantization_config")
        if isinstance(quantization_config, dict) and _is_bitsandbytes(quantization_config):
            holder["quantization_config"] = {**quantization_config, HOST_MEMORY_SWITCH: True}
        elif hasattr(quantization_config, HOST_MEMORY_SWITCH):
            quantization_config = copy.deepcopy(quantization_config)
            setattr(quantization_config, HOST_MEMORY_SWITCH, True)
            holder["quantization_config"] = quantization_config


def _is_bitsandbytes(quantization_config: dict[str, Any]) -> bool:
    method = str(quantization_config.get("quant_method", ""))
    return (
        method.startswith("bitsandbytes")
        or _is_set(quantization_config, "load_in_8bit")
        or _is_set(quantization_config, "load_in_4bit")
    )


def _is_set(quantization_config: Any, switch: str) -> bool:
    """Whether a quantization config, an object or a dict, has a switch of bitsandbytes set."""
    if isinstance(quantization_config, dict):
        return bool(quantization_config.get(switch))
    return bool(getattr(quantization_config, switch, False))


def hoist_quantization(config: PretrainedConfig) -> None:
    """Copy the quantization config inside `llm_config` to the top level, in place.

    The published AWQ variant has it inside `llm_config`, where serving engines look for it.
    transformers looks at the top level only.
    """
    nested = getattr(config.llm_config, "quantization_config", None)
    if nested is None or getattr(config, "quantization_config", None) is not None:
        return
    fields = nested if isinstance(nested, dict) else nested.to_dict()
    config.quantization_config = language_layers_only(fields)


def _bitsandbytes_config(load_in_8bit: bool) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        switch = "load_in_8bit" if load_in_8bit else "load_in_4bit"
        raise ImportError(
            f"{switch}=True needs bitsandbytes, which is not installed: pip install bitsandbytes, "
            "or load without it."
        )
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


# -- dtype and sizes -------------------------------------------------------------------------------


def dtype_of_loading(keywords: dict[str, Any], config: PretrainedConfig | None) -> torch.dtype:
    """The dtype that `from_pretrained` will give the weights that are not quantized."""
    dtype = keywords.get("dtype", keywords.get("torch_dtype"))
    if dtype is None:
        dtype = default_loading_dtype()
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        dtype = dtype or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def bytes_per_parameter(keywords: dict[str, Any], config: PretrainedConfig) -> tuple[float, int]:
    """Bytes of a weight in the decoder layers, and of any other weight, once they are loaded.

    Args:
        keywords: of `from_pretrained`, as `loading_keywords` gives them.
    """
    full = torch.empty(0, dtype=dtype_of_loading(keywords, config)).element_size()
    quantization = keywords.get("quantization_config")
    quantization = quantization or getattr(config, "quantization_config", None)
    return bytes_of_quantization(quantization) or full, full


def bytes_of_quantization(quantization_config: Any) -> float | None:
    """Bytes of a decoder layer's weight under a quantization config, an object or a dict.

    In the formats of AutoAWQ and GPTQ a group of weights has a scale of 16 bits, and a zero point
    as wide as a weight.

    Returns:
        None where the config does not say.
    """
    if quantization_config is None:
        return None
    if _is_set(quantization_config, "load_in_8bit"):
        return QUANTIZED_BYTES["int8"]
    if _is_set(quantization_config, "load_in_4bit"):
        return QUANTIZED_BYTES["nf4"]
    is_dict = isinstance(quantization_config, dict)
    fields = quantization_config if is_dict else vars(quantization_config)
    bits = fields.get("bits", fields.get("w_bit"))
    if not isinstance(bits, int):
        return None
    group_size = fields.get("group_size", fields.get("q_group_size")) or 128
    if group_size <= 0:  # one scale for a whole row, which does not count
        return bits / 8
    return (bits + (16 + bits) / group_size) / 8
