"""What a checkpoint needs in memory, whether it fits, and the settings to use.

    python -m serving.memory_plan --gpus 80,80                       # 38B in bf16 on two cards of 80 GB
    python -m serving.memory_plan --gpus 24 --quantization nf4 --offload-vision --kv-bits 4 --context 8192
    python -m serving.memory_plan --model nano --gpus 8 --json

Sizes come from the configuration alone (built on the meta device); no weights and no GPU are needed. Memory is given in
GB of a card's name (10^9 bytes; CUDA reports a little more), less what the driver and the allocator keep.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from remote_code import configuration_skywork_chat, device_map, loading, modeling_skywork_chat

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
QUANTIZED_BYTES = {
    "none": None,
    **loading.QUANTIZED_BYTES,
}  # of the decoder layers, when they are loaded
KV_GROUP, KV_RESIDUAL = (
    64,
    128,
)  # transformers' QuantizedCache: group of one scale and zero; newest tokens kept whole
RESERVE = 0.9e9  # bytes of a GPU that the CUDA context and the libraries' workspaces take
VLLM_SHARE = 0.9  # of a GPU that vLLM takes for everything
ALLOCATOR_SLACK = 1.05  # of everything: what the caching allocator loses to fragments


@dataclasses.dataclass(frozen=True)
class Part:
    """One consumer of memory.

    Attributes:
        place: "first" GPU, "layers" (over all GPUs in proportion to decoder layers), "further" (each GPU but the first
            that has layers), or "host".
        kind: "weights", "cache", "passing" (activations, and weights on their way through a GPU) or "mask" (which vLLM
            does without).
    """

    name: str
    bytes: int
    place: str = "first"
    kind: str = "weights"


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def kv_bytes_per_token(llm_config, dtype_bytes, kv_bits=None):
    """Key and value of one token in all layers.

    Args:
        kv_bits: 2 or 4 of a quantized cache, or None for one in the model's dtype.
    """
    head_size = llm_config.hidden_size // llm_config.num_attention_heads
    values = 2 * llm_config.num_hidden_layers * llm_config.num_key_value_heads * head_size
    if kv_bits is None:
        return values * dtype_bytes
    return values * (kv_bits / 8 + 2 * dtype_bytes / KV_GROUP)


def own_quantization(config):
    """(name, bytes of a decoder layer's weight) of a checkpoint that is quantized already, or None.

    Raises:
        ValueError: a quantization of which the size is not known here.
    """
    own = getattr(config, "quantization_config", None) or getattr(
        config.llm_config, "quantization_config", None
    )
    if own is None:
        return None
    name = own.get("quant_method", "quantized")
    size = loading.bytes_of_quantization(own)
    if size is None:
        raise ValueError(
            f"The checkpoint is quantized by {name!r}; this plan knows AutoAWQ, GPTQ and bitsandbytes."
        )
    return f"{name} of the checkpoint", size


def memory_parts(
    config,
    dtype="bf16",
    quantization="none",
    context=8192,
    batch=1,
    kv_bits=None,
    offload_vision=False,
):
    """What is needed, part by part.

    Args:
        config: `SkyworkChatConfig`.
        dtype: of all weights that are not quantized, and of activations and cache.
        quantization: of the decoder layers, when they are loaded: "none", "int8" or "nf4". What the checkpoint's own
            config says of its weights (AutoAWQ, GPTQ, bitsandbytes) counts where this is "none".
        context: tokens of prompt and answer, of each of `batch` conversations.
        kv_bits: bits of a quantized cache, or None.
        offload_vision: the vision tower lives in host memory and goes through the GPU module by module.

    Returns:
        (list of `Part`, bytes of each decoder layer).

    Raises:
        ValueError: another quantization on top of the checkpoint's own.
    """
    wide = DTYPE_BYTES[dtype]
    own = own_quantization(config)
    if own is not None and quantization != "none":
        raise ValueError(
            f"The checkpoint is quantized already ({own[0]}): leave out --quantization {quantization}."
        )
    format_of_layers = own[0] if own else quantization if quantization != "none" else dtype
    with torch.device("meta"):
        model = modeling_skywork_chat.SkyworkChatModel(config)
    llm, vision = config.llm_config, config.vision_config
    layer_bytes = own[1] if own else QUANTIZED_BYTES[quantization] or wide
    layers = [
        round(layer_bytes * count_parameters(layer)) for layer in model.language_model.model.layers
    ]
    tower = wide * count_parameters(model.vision_model)
    of_modules = [
        [p.numel() for p in module.parameters(recurse=False)]
        for module in model.vision_model.modules()
    ]
    largest_module = wide * max(sum(sizes) for sizes in of_modules)
    # A chunk of tiles: the residual stream, its norm, and the widest pair of tensors that live at once
    positions = modeling_skywork_chat.POSITIONS_PER_CHUNK
    chunk = (
        positions
        * (2 * vision.hidden_size + max(2 * vision.intermediate_size, 7 * vision.hidden_size))
        * wide
    )
    # Prefill: the residual stream and its norm, gate and up and their product
    prefill = batch * context * (2 * llm.hidden_size + 3 * llm.intermediate_size) * wide
    full_cache = batch * context * kv_bytes_per_token(llm, wide, kv_bits)
    if kv_bits is not None:
        full_cache += batch * min(context, KV_RESIDUAL) * kv_bytes_per_token(llm, wide)
    embeddings = wide * (
        count_parameters(model.get_input_embeddings())
        + (0 if config.tie_word_embeddings else count_parameters(model.get_output_embeddings()))
        + count_parameters(model.language_model.model.norm)
    )
    parts = [
        Part("vision tower (in host memory)", tower, "host")
        if offload_vision
        else Part("vision tower", tower),
        Part("projector", wide * count_parameters(model.mlp1)),
        Part("embeddings and head", embeddings),
        Part(f"decoder layers ({format_of_layers})", sum(layers), "layers"),
        Part(
            f"KV cache ({f'{kv_bits} bit' if kv_bits else dtype})",
            round(full_cache),
            "layers",
            "cache",
        ),
        # They are not needed at the same time: images are encoded before the prompt is read
        Part(
            "activations (the larger of encoding tiles and reading the prompt)",
            max(chunk, prefill),
            kind="passing",
        ),
        Part("activations on each further GPU (reading the prompt)", prefill, "further", "passing"),
    ]
    if batch > 1:  # a byte for each pair of positions, and SDPA's copy of it
        mask = batch * context**2 * (1 + wide)
        parts.append(Part("mask of prompts of several lengths", mask, kind="mask"))
        parts.append(Part("mask on each further GPU", mask, "further", "mask"))
    if offload_vision:
        parts.append(Part("vision tower, the module in passage", largest_module, kind="passing"))
    return parts, layers


@dataclasses.dataclass
class MemoryPlan:
    """Where everything goes.

    Attributes:
        layers_of_gpu: decoder layers on each GPU.
        used, usable: bytes of each GPU.
        problem: why it does not fit, or None.
    """

    parts: list
    layers_of_gpu: list
    used: list
    usable: list
    problem: str | None = None


def plan(config, gpus, **settings):
    """Spread a model over GPUs as `device_map="split"` does, which knows of weights alone; see what each then holds.

    Args:
        gpus: bytes of each.
        settings: as for `memory_parts`.
    """
    parts, layers = memory_parts(config, **settings)
    cache = sum(part.bytes for part in parts if part.kind == "cache")
    usable = [gpu - RESERVE for gpu in gpus]
    try:
        weights = sum(
            part.bytes for part in parts if part.place == "first" and part.kind == "weights"
        )
        for_weights = [size * (1 - device_map.RESERVED_SHARE) for size in usable]
        counts = device_map.split_layers(layers, weights, for_weights)
    except ValueError as error:
        return MemoryPlan(parts, [], [], usable, str(error))
    used = [count * (layers[0] + cache / len(layers)) for count in counts]
    used[0] += sum(part.bytes for part in parts if part.place == "first")
    further = sum(part.bytes for part in parts if part.place == "further")
    used = [
        ALLOCATOR_SLACK * (size + (further if gpu and counts[gpu] else 0))
        for gpu, size in enumerate(used)
    ]
    problems = (
        f"GPU {gpu} needs {needed / 1e9:.1f} GB with cache and activations, and has {there / 1e9:.1f} GB."
        for gpu, (needed, there) in enumerate(zip(used, usable))
        if needed > there
    )
    return MemoryPlan(parts, counts, used, usable, next(problems, None))


def longest_context(config, gpus, **settings):
    """The most tokens of context that fit, in steps of 256, at most the model's; 0 if none do."""
    limit = config.llm_config.max_position_embeddings
    low, high = 0, limit // 256
    while low < high:
        middle = (low + high + 1) // 2
        if plan(config, gpus, **{**settings, "context": 256 * middle}).problem is None:
            low = middle
        else:
            high = middle - 1
    return 256 * low


def advice(config, gpus, **settings):
    """Plans that fit, from the least to the most that is given up; a list of (description, settings, plan)."""
    steps = (
        ("as it is", {}),
        ("the vision tower in host memory", {"offload_vision": True}),
        ("decoder layers in int8", {"quantization": "int8"}),
        ("decoder layers in nf4", {"quantization": "nf4"}),
        ("nf4, the vision tower in host memory", {"quantization": "nf4", "offload_vision": True}),
        (
            "nf4, vision tower in host memory, 4-bit cache",
            {"quantization": "nf4", "offload_vision": True, "kv_bits": 4},
        ),
    )
    if own_quantization(config):
        steps = (
            *steps[:2],
            (
                "the vision tower in host memory, 4-bit cache",
                {"offload_vision": True, "kv_bits": 4},
            ),
        )
    tried = [(text, {**settings, **change}) for text, change in steps]
    return [
        (text, new, found)
        for text, new in tried
        if (found := plan(config, gpus, **new)).problem is None
    ]


def tensor_parallel_size(config, parts, gpus):
    """The most GPUs (1, 2, 4 or 8, the first ones) over which vLLM can split a model that fits them then, or None.

    Their number has to divide the language model's heads. Each holds the whole projector, at least one head of the
    cache, and the whole attention of the vision tower where its heads do not divide by that number, as InternViT-6B's
    25 do not (vLLM 0.32: intern_vit.py, skyworkr1v.py).
    """
    llm, vision = config.llm_config, config.vision_config
    size_of = {part.name.split(" (")[0]: part.bytes for part in parts}
    passing = sum(part.bytes for part in parts if part.place == "first" and part.kind == "passing")
    resident = sum(part.bytes for part in parts if part.kind == "weights")
    attention_share = (
        4 * vision.hidden_size / (4 * vision.hidden_size + 2 * vision.intermediate_size)
    )
    for size in (8, 4, 2, 1):
        heads = llm.num_key_value_heads
        if size > len(gpus) or llm.num_attention_heads % size or (heads % size and size % heads):
            continue
        on_each = size_of["projector"]
        if vision.num_attention_heads % size:
            on_each += attention_share * size_of["vision tower"]
        cache = size_of["KV cache"] / min(size, heads)
        if on_each + (resident - on_each) / size + cache + passing <= VLLM_SHARE * min(gpus[:size]):
            return size
    return None


def loading_code(config, parts, settings, gpus):
    """The call that loads a model as planned, and what goes into the generation config; vLLM's command if it fits."""
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[settings["dtype"]]
    arguments = [f'torch_dtype="{dtype}"', 'device_map="split"']
    arguments += {"int8": ["load_in_8bit=True"], "nf4": ["load_in_4bit=True"], "none": []}[
        settings["quantization"]
    ]
    if settings["offload_vision"]:
        arguments.append("offload_vision=True")
    lines = [f"AutoModel.from_pretrained(path, {', '.join(arguments)}, trust_remote_code=True)"]
    if settings["kv_bits"]:
        cache_config = {"backend": "quanto", "nbits": settings["kv_bits"]}
        lines.append(
            f"generation_config = {{'cache_implementation': 'quantized', 'cache_config': {cache_config}, ...}}"
        )
    elif settings["quantization"] == "none" and not settings["offload_vision"]:
        size = tensor_parallel_size(config, parts, gpus)
        if size is not None:
            own = "" if settings["dtype"] == "bf16" else f" --dtype {dtype}"
            lines.append(
                f"vllm serve <path> --trust-remote-code --tensor-parallel-size {size}{own} "
                f"--max-model-len {settings['context']} --reasoning-parser deepseek_r1"
            )
    return lines


def load_config(path):
    """The configuration of a checkpoint's directory or of a config.json.

    Raises:
        FileNotFoundError: neither.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--model {path}: expected a checkpoint's directory or a config.json."
        )
    return configuration_skywork_chat.SkyworkChatConfig(**json.loads(path.read_text()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default=str(Path(__file__).resolve().parents[1]), help="directory or config.json"
    )
    parser.add_argument("--gpus", required=True, help="memory of each in GB, such as 80,80")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="bf16")
    parser.add_argument(
        "--quantization", choices=QUANTIZED_BYTES, default="none", help="of the decoder layers"
    )
    parser.add_argument(
        "--context", type=int, default=8192, help="tokens of prompt and answer together"
    )
    parser.add_argument("--batch", type=int, default=1, help="conversations at once")
    parser.add_argument("--kv-bits", type=int, choices=(2, 4), help="of a quantized KV cache")
    parser.add_argument(
        "--offload-vision", action="store_true", help="keep the vision tower in host memory"
    )
    parser.add_argument("--json", action="store_true", help="JSON rather than text")
    arguments = parser.parse_args()
    try:
        gpus = [float(size) * 1e9 for size in arguments.gpus.split(",")]
    except ValueError:
        parser.error(
            f"--gpus {arguments.gpus}: expected numbers of GB with commas between them, such as 80,80"
        )
    if arguments.context < 1 or arguments.batch < 1 or min(gpus) <= 0:
        parser.error("--context, --batch and --gpus must be positive")
    config = load_config(arguments.model)
    limit = config.llm_config.max_position_embeddings
    if arguments.context > limit:
        print(f"The model's context ends at {limit} tokens; planning for that.", file=sys.stderr)
        arguments.context = limit
    names = ("dtype", "quantization", "context", "batch", "kv_bits", "offload_vision")
    settings = {name: getattr(arguments, name) for name in names}
    found = plan(config, gpus, **settings)
    if arguments.json:
        print(
            json.dumps(
                {
                    **dataclasses.asdict(found),
                    "longest_context": longest_context(config, gpus, **settings),
                }
            )
        )
        return 0 if found.problem is None else 1
    for part in (
        found.parts if len(gpus) > 1 else [part for part in found.parts if part.place != "further"]
    ):
        print(f"{part.bytes / 1e9:8.2f} GB  {part.name}")
    for gpu, (used, usable) in enumerate(zip(found.used, found.usable)):
        print(
            f"GPU {gpu}: {found.layers_of_gpu[gpu]} layers, {used / 1e9:.1f} of {usable / 1e9:.1f} GB usable"
        )
    if found.problem is None:
        print(
            f"Fits. The longest context that does: {longest_context(config, gpus, **settings)} tokens."
        )
        print("\n".join(loading_code(config, found.parts, settings, gpus)))
        return 0
    print(f"Does not fit: {found.problem}")
    fitting = advice(config, gpus, **settings)
    if fitting:
        text, new, other = fitting[0]
        print(f"This does: {text} (up to {longest_context(config, gpus, **new)} tokens)")
        print("\n".join(loading_code(config, other.parts, new, gpus)))
    else:
        print("Nothing here makes it fit at this context: add GPUs or shorten the context.")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
