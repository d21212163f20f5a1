"""Every difference between transformers versions that the model code has to know, with the version and the reason.

The model files read as if there were one version; supported are 4.37 to 5.23 (see the table in the README).
"""

import contextlib
import copy
import importlib
import importlib.util
import inspect
import threading

import torch
import transformers
from packaging import version
from transformers import AutoImageProcessor, BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

logger = logging.get_logger(__name__)

TRANSFORMERS_VERSION = version.parse(transformers.__version__)
TORCH_VERSION = version.parse(torch.__version__).release
# Modules that stay in full width where weights are quantized: they are small and lose most
KEPT_WHOLE = ("vision_model", "mlp1", "language_model.lm_head")
# Bytes of a quantized weight: int8 has a float scale for each row, nf4 a byte-sized one for each 64 weights (QLoRA,
# arXiv:2305.14314, with double quantization)
QUANTIZED_BYTES = {"int8": 1.01, "nf4": 0.5 + 1.0 / 64 + 4.0 / (64 * 256)}
STATIC_CACHE_LOCK = threading.Lock()
HALF_PRECISION = (torch.float16, torch.bfloat16, "float16", "bfloat16")


def at_least(minimum):
    """Whether the installed transformers is `minimum` or newer, development builds of it included."""
    return TRANSFORMERS_VERSION.release >= version.parse(minimum).release


def fill_unless_loaded(parameter, method, *arguments):
    """Initialise a parameter in place (`"normal_"`, `"fill_"`, …), unless it is None or a checkpoint has filled it.

    From 5.0 `_init_weights` runs after loading. Up to 5.12 nothing but the mark that loading leaves on each parameter
    keeps it from overwriting a module of which only some parameters were in the file.
    """
    if parameter is not None and not getattr(parameter, "_is_hf_initialized", False):
        getattr(parameter.data, method)(*arguments)


def is_flash_attention_available():
    """Whether flash-attn is installed (it is optional)."""
    return importlib.util.find_spec("flash_attn") is not None


def flash_attention_function():
    """`flash_attn.flash_attn_func`, imported when first used.

    By name, because transformers reads an import statement, wherever it stands, as a package that remote code needs.
    """
    return importlib.import_module("flash_attn").flash_attn_func


def accepted_keywords(module, keywords):
    """Those of `keywords` that the module's forward takes: a decoder has taken any of them only since 4.46."""
    parameters = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}


def cached_length(past_key_values):
    """Positions in a cache: None, a `Cache`, or (before 4.46) a tuple of layers of (key, value)."""
    if past_key_values is None:
        return 0
    if hasattr(past_key_values, "get_seq_length"):
        return int(past_key_values.get_seq_length())
    return past_key_values[0][0].shape[-2] if past_key_values else 0


# Ids in front of the first generated one when `generate` gets embeddings alone: up to 4.37 a begin-of-sentence token
GENERATED_FROM = 0 if at_least("4.38") else 1


def stopping_decision(stop, input_ids):
    """A stopping criterion's answer: for each row since 4.39, one for all rows before."""
    return input_ids.new_full((len(input_ids),), stop, dtype=torch.bool) if at_least("4.39") else stop


def new_tokens(options, generation_config, prompt_length):
    """How many tokens a call of `generate` may add to a prompt: `max_new_tokens`, what `max_length` leaves, or None.

    A `max_length` of 20 is what transformers puts into every config up to 4.57; nobody asks for it.
    """
    of_config = [getattr(generation_config, name, None) for name in ("max_new_tokens", "max_length")]
    asked = [options.get("max_new_tokens"), options.get("max_length")]
    new, total = (own if own is not None else default for own, default in zip(asked, of_config))
    if new is not None or total is None or (total == 20 and asked[1] is None):
        return new
    # Up to 4.37 the length of embeddings does not count; a begin-of-sentence token does
    return total - (prompt_length if at_least("4.38") else GENERATED_FROM)


def requested_cache(keywords, generation_config):
    """The `cache_implementation` that a call of `generate` asks for, or None."""
    return keywords.get("cache_implementation") or getattr(generation_config, "cache_implementation", None)


def compiled_decoding(keywords, generation_config, device, cpu_backend):
    """Keywords for `generate` with which a static cache means compiled decoding on every device and in every thread.

    transformers compiles by itself where the cache is static (from 4.47), but on a CPU only if its compile config says
    so. Before, a static cache is just that.
    """
    own = keywords.get("compile_config") or getattr(generation_config, "compile_config", None)
    compile_config = getattr(transformers, "CompileConfig", None)
    if requested_cache(keywords, generation_config) != "static" or own is not None or compile_config is None:
        return keywords
    if device.type == "cpu":
        compile_config = compile_config(mode="default", backend=cpu_backend)
        compile_config._compile_all_devices = True
    elif TORCH_VERSION < (2, 13) and threading.current_thread() is not threading.main_thread():
        # transformers' default, "reduce-overhead", has CUDA graphs, which fail in a thread that torch did not start,
        # such as chat_stream()'s (pytorch issue 123177)
        compile_config = compile_config(mode="default")
    else:
        return keywords
    return {**keywords, "compile_config": compile_config}


@contextlib.contextmanager
def one_static_cache_at_a_time(keywords, generation_config):
    """Keeps threads apart while they generate with a static cache, where a model has only one.

    Up to 5.14 transformers keeps that cache on the model and hands the same one to every call.
    """
    shared = ("static", "offloaded_static", "sliding_window", "hybrid")
    if requested_cache(keywords, generation_config) not in shared or at_least("5.15"):
        yield
        return
    with STATIC_CACHE_LOCK:
        yield


def generate_from_embeddings(language_model, inputs_embeds, cpu_backend, generation_config=None, **keywords):
    """`generate` of the language model; returns the new tokens only."""
    keywords = compiled_decoding(keywords, generation_config, inputs_embeds.device, cpu_backend)
    keywords["generation_config"] = generation_config
    with one_static_cache_at_a_time(keywords, generation_config):
        output = language_model.generate(inputs_embeds=inputs_embeds, **keywords)
    if torch.is_tensor(output):
        return output[:, GENERATED_FROM:]
    output.sequences = output.sequences[:, GENERATED_FROM:]
    return output


def load_image_processor(model):
    """The image processor of the repository that a model was loaded from.

    Raises:
        ValueError: before 4.53, whose `auto_map` cannot name a class in a folder, and for a model that was not loaded
            from a repository.
    """
    if not at_least("4.53"):
        raise ValueError(
            f"Passing images rather than pixel_values needs transformers 4.53 or newer; installed is "
            f"{transformers.__version__}. Prepare pixel_values with the model card's load_image()."
        )
    source = model.config._name_or_path
    if not source:
        raise ValueError(
            "This model was not loaded from a repository, so it has no image processor for images: pass pixel_values."
        )
    return AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **model.hub_keywords)


def hub_keywords_of(config, keywords, names):
    """With which keywords a loaded model's other files are found: those it was loaded with, at the commit it came from.

    Up to 5.17 a config knows that commit; from then on the revision that was asked for has to do.
    """
    found = {name: keywords[name] for name in names if keywords.get(name) is not None and name != "force_download"}
    commit = getattr(config, "_commit_hash", None)
    return {**found, "revision": commit} if commit else found


def loading_keywords(keywords, config, use_flash_attn, load_in_8bit, load_in_4bit):
    """Keywords for `from_pretrained` of this transformers version, from those that users of any version pass.

    Args:
        keywords: what the caller gave, not changed.
        config: the loaded config, or None.
        use_flash_attn: the model card's switch; None leaves it to the vision config.
        load_in_8bit, load_in_4bit: removed from transformers in 5.0 in favour of `quantization_config`.

    Raises:
        ImportError: quantization without bitsandbytes.
    """
    keywords = dict(keywords)
    if not at_least("4.56") and "dtype" in keywords:  # its name from 4.56 on
        keywords["torch_dtype"] = keywords.pop("dtype")
    elif at_least("4.56") and "torch_dtype" in keywords:
        keywords.setdefault("dtype", keywords.pop("torch_dtype"))
    if at_least("5.0"):
        keywords.pop("low_cpu_mem_usage", None)  # the only way since 5.0
    elif importlib.util.find_spec("accelerate") is not None and not is_deepspeed_zero3_enabled():
        # Else the weights are in memory twice while loading; DeepSpeed's stage 3 shards them by itself
        keywords.setdefault("low_cpu_mem_usage", True)
    if load_in_8bit or load_in_4bit:
        keywords.setdefault("quantization_config", _bitsandbytes_config(load_in_8bit))
    if keywords.get("quantization_config") is not None:
        keywords["quantization_config"] = language_layers_only(keywords["quantization_config"])
    requested = keywords.get("attn_implementation") or getattr(config, "_attn_implementation_internal", None)
    resolved = choose_attention(requested, use_flash_attn, dtype_of_loading(keywords, config))
    if resolved is not None:
        keywords["attn_implementation"] = resolved
    return keywords


def language_layers_only(quantization_config):
    """A copy of the user's quantization config in which the vision tower, the projector and the head are kept.

    A list of the user's own, of what is to be kept, is taken as it is. The config may be a dict, as in config.json.
    """
    quantization_config = copy.deepcopy(quantization_config)
    bitsandbytes_name, others_name = "llm_int8_skip_modules", "modules_to_not_convert"
    if isinstance(quantization_config, dict):
        method = str(quantization_config.get("quant_method", ""))
        marked = any(_asks_for(quantization_config, mark) for mark in ("load_in_8bit", "load_in_4bit"))
        name = bitsandbytes_name if marked or method.startswith("bitsandbytes") else others_name
        quantization_config[name] = quantization_config.get(name) or list(KEPT_WHOLE)
        return quantization_config
    for name in (bitsandbytes_name, others_name):
        if hasattr(quantization_config, name) and getattr(quantization_config, name) is None:
            setattr(quantization_config, name, list(KEPT_WHOLE))
    return quantization_config


def _asks_for(quantization_config, mark):
    """Whether a quantization config, an object or a dict, has `load_in_8bit` or `load_in_4bit` set."""
    if isinstance(quantization_config, dict):
        return bool(quantization_config.get(mark))
    return getattr(quantization_config, mark, False)


def hoist_quantization(config):
    """Let transformers see a checkpoint's quantization that its config has inside `llm_config`.

    The published AWQ variant has it there, where engines look; transformers looks at the top level only. The config is
    changed in place, which here is a copy of the caller's.
    """
    own = getattr(config.llm_config, "quantization_config", None)
    if own is None or getattr(config, "quantization_config", None) is not None:
        return
    config.quantization_config = language_layers_only(own if isinstance(own, dict) else own.to_dict())


def _bitsandbytes_config(load_in_8bit):
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"load_in_{'8' if load_in_8bit else '4'}bit=True needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or load without it."
        )
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def choose_attention(requested, use_flash_attn=None, dtype=None):
    """The attention implementation to ask transformers for, or None for its own choice (SDPA).

    Args:
        requested: a name, a dict of names for the parts (from 4.48), or None.
        use_flash_attn: the model card's switch; it asks for flash-attn where that can run.
        dtype: what the weights are loaded as; flash-attn takes half precision only.
    """
    flash = "flash_attention_2"
    if isinstance(requested, dict):
        return {part: choose_attention(name) for part, name in requested.items()}
    if requested is None and use_flash_attn:
        if is_flash_attention_available() and torch.cuda.is_available() and dtype in HALF_PRECISION:
            return flash
        logger.warning_once("use_flash_attn=True, but flash-attn is not usable here: attention runs through SDPA.")
        return None
    if requested == flash and not is_flash_attention_available():
        logger.warning_once("flash-attn is not installed: attention runs through SDPA instead of flash_attention_2.")
        return "sdpa"
    return requested


def own_attention(part):
    """What a sub-config asks for by itself: set by a script (`llm_config.attn_implementation = "eager"`), or saved."""
    return part.__dict__.get("attn_implementation") or getattr(part, "_attn_implementation_internal", None)


def clear_own_attention(config):
    """Let what is asked for at the top level hold for both parts."""
    for part in (config.vision_config, config.llm_config):
        part.__dict__.pop("attn_implementation", None)
        part._attn_implementation = None


def share_attention(config):
    """Give the vision tower and the language model the attention implementation asked for at the top level.

    transformers does it by itself from 4.48 on. A part that was given its own keeps it.
    """
    for part in (config.vision_config, config.llm_config):
        part._attn_implementation = choose_attention(own_attention(part)) or config._attn_implementation


def resolve_attention_of_config(config, requested=None, use_flash_attn=None, dtype=None):
    """Settle what a config asks for before transformers checks it, which would raise where flash-attn is missing."""
    requested = requested or getattr(config, "_attn_implementation_internal", None)
    resolved = choose_attention(requested, use_flash_attn, dtype)
    if resolved is not None and not isinstance(resolved, dict):
        config._attn_implementation = resolved


def tokens_device(embedding):
    """Where token ids have to be for an embedding: its device, or its hook's where accelerate has offloaded it."""
    if embedding.weight.device.type != "meta":
        return embedding.weight.device
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu") if device is None else torch.device(device)


def dtype_of_loading(keywords, config):
    """The dtype that `from_pretrained` will give weights which are not quantized."""
    dtype = keywords.get("dtype", keywords.get("torch_dtype"))
    if dtype is None:
        dtype = "auto" if at_least("5.0") else torch.float32  # 5.0 loads a checkpoint as it was saved
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def bytes_per_parameter(keywords, config):
    """(of the decoder layers' weights, of all others) as `from_pretrained` will load them, for planning.

    Args:
        keywords: those of `from_pretrained`, as `loading_keywords` gives them.
    """
    full = torch.empty(0, dtype=dtype_of_loading(keywords, config)).element_size()
    quantization = keywords.get("quantization_config") or getattr(config, "quantization_config", None)
    return bytes_of_quantization(quantization) or full, full


def bytes_of_quantization(quantization_config):
    """Bytes of a decoder layer's weight under a quantization config, an object or a dict; None where it says nothing.

    Of AutoAWQ's and GPTQ's formats a group of weights has a scale of 16 bits and a zero of the weights' own width.
    """
    if quantization_config is None:
        return None
    if _asks_for(quantization_config, "load_in_8bit"):
        return QUANTIZED_BYTES["int8"]
    if _asks_for(quantization_config, "load_in_4bit"):
        return QUANTIZED_BYTES["nf4"]
    values = quantization_config if isinstance(quantization_config, dict) else vars(quantization_config)
    bits = values.get("bits", values.get("w_bit"))
    if not isinstance(bits, int):
        return None
    group = values.get("group_size", values.get("q_group_size")) or 128
    return (bits + (16 + bits) / group if group > 0 else bits) / 8
