"""What a checkpoint needs in memory, whether it fits, and the settings to use.

    python -m memory.serving --gpus 80,80                       # 38B in bf16 on two cards of 80 GB
    python -m memory.serving --gpus 24 --quantization nf4 --offload-vision --kv-bits 4
    python -m memory.serving --model nano --gpus 8 --json

Sizes come from the configuration alone (built on the meta device); no weights and no GPU are
needed. GB are 10^9 bytes, as in the name of a card. Of each GPU 0.9 GB are set aside for the CUDA
context, and 5 % are added to everything for fragmentation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from memory import sizes
from memory.serving_parts import (
    DTYPE_BYTES,
    KV_BITS,
    QUANTIZED_BYTES,
    Part,
    ServingSettings,
)
from memory.serving_plan import (
    MemoryPlan,
    fitting_alternatives,
    longest_context,
    plan_memory,
    tensor_parallel_size,
)
from remote_code import configuration_skywork_chat, conversation

TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
QUANTIZATION_KEYWORDS = {"none": [], "int8": ["load_in_8bit=True"], "nf4": ["load_in_4bit=True"]}


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        config: of the checkpoint.
        gpus: bytes of each GPU.
        settings: how the checkpoint is to be served.
        as_json: print JSON rather than text.
    """

    config: configuration_skywork_chat.SkyworkChatConfig
    gpus: list[float]
    settings: ServingSettings
    as_json: bool


# -- the code to use -------------------------------------------------------------------------------


def loading_code(
    config: configuration_skywork_chat.SkyworkChatConfig,
    parts: Sequence[Part],
    settings: ServingSettings,
    gpus: Sequence[float],
) -> list[str]:
    """Lines of code that load a model as planned.

    They are the call of `from_pretrained`, and what goes into the generation config for a quantized
    cache, or vLLM's command if the model fits there.
    """
    lines = [_loading_call(settings)]
    if settings.kv_bits:
        cache_config = {"backend": "quanto", "nbits": settings.kv_bits}
        lines.append(
            "generation_config = {'cache_implementation': 'quantized', "
            f"'cache_config': {cache_config}, ...}}"
        )
    elif settings.quantization == "none" and not settings.offload_vision:
        size = tensor_parallel_size(config, parts, gpus)
        if size is not None:
            thinks = conversation.get_conv_template(config.template).opens_thinking
            lines.append(_vllm_command(settings, size, thinks))
    return lines


def _loading_call(settings: ServingSettings) -> str:
    arguments = [f'torch_dtype="{TORCH_DTYPES[settings.dtype]}"', 'device_map="split"']
    arguments += QUANTIZATION_KEYWORDS[settings.quantization]
    if settings.offload_vision:
        arguments.append("offload_vision=True")
    return f"AutoModel.from_pretrained(path, {', '.join(arguments)}, trust_remote_code=True)"


def _vllm_command(settings: ServingSettings, tensor_parallel: int, thinks: bool) -> str:
    command = f"vllm serve <path> --trust-remote-code --tensor-parallel-size {tensor_parallel}"
    if settings.dtype != "bf16":
        command += f" --dtype {TORCH_DTYPES[settings.dtype]}"
    command += f" --max-model-len {settings.context}"
    if thinks:
        command += " --reasoning-parser deepseek_r1"
    return command


# -- the command line ------------------------------------------------------------------------------


def main() -> int:
    """Print the plan; returns 0 where the model fits and 1 where it does not."""
    request = _read_request()
    plan = plan_memory(request.config, request.gpus, request.settings)
    if request.as_json:
        longest = longest_context(request.config, request.gpus, request.settings)
        print(json.dumps({**dataclasses.asdict(plan), "longest_context": longest}))
    else:
        _print_plan(request, plan)
    return 0 if plan.fits else 1


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="What a checkpoint needs in memory, whether it fits, and the settings to use."
    )
    parser.add_argument("--model", default=str(sizes.ROOT), help="directory or config.json")
    parser.add_argument("--gpus", required=True, help="memory of each in GB, such as 80,80")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="bf16")
    parser.add_argument(
        "--quantization", choices=QUANTIZED_BYTES, default="none", help="of the decoder layers"
    )
    parser.add_argument(
        "--context", type=int, default=8192, help="tokens of prompt and answer together"
    )
    parser.add_argument("--batch", type=int, default=1, help="conversations at once")
    parser.add_argument("--kv-bits", type=int, choices=KV_BITS, help="of a quantized KV cache")
    parser.add_argument(
        "--offload-vision", action="store_true", help="keep the vision tower in host memory"
    )
    parser.add_argument("--json", action="store_true", help="JSON rather than text")
    return parser


def _read_request() -> Request:
    """The checked command line; wrong numbers end the program with argparse's message.

    Raises:
        FileNotFoundError: no such model.
    """
    parser = _make_parser()
    arguments = parser.parse_args()
    try:
        gpus = _gpu_bytes(arguments.gpus)
        settings = ServingSettings(
            dtype=arguments.dtype,
            quantization=arguments.quantization,
            context=arguments.context,
            batch=arguments.batch,
            kv_bits=arguments.kv_bits,
            offload_vision=arguments.offload_vision,
        )
    except ValueError as error:
        parser.error(str(error))
    config = sizes.load_config(arguments.model)
    limit = config.llm_config.max_position_embeddings
    if settings.context > limit:
        print(f"The model's context ends at {limit} tokens; planning for that.", file=sys.stderr)
        settings = dataclasses.replace(settings, context=limit)
    return Request(config, gpus, settings, arguments.json)


def _gpu_bytes(text: str) -> list[float]:
    """Bytes of each GPU from a text such as "80,80".

    Raises:
        ValueError: the text is anything else, or a size is not positive.
    """
    try:
        gpus = [float(size) * sizes.GIGABYTE for size in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--gpus {text}: expected numbers of GB with commas between them, such as 80,80"
        ) from None
    if min(gpus) <= 0:
        raise ValueError(f"--gpus {text}: the memory of every GPU must be positive")
    return gpus


def _print_plan(request: Request, plan: MemoryPlan) -> None:
    """The parts, what each GPU holds, and the code to use, or an alternative that fits."""
    for part in plan.parts:
        if len(request.gpus) > 1 or part.place != "further":
            print(f"{part.bytes / sizes.GIGABYTE:8.2f} GB  {part.name}")
    for gpu, layers in enumerate(plan.layers_of_gpu):
        used = plan.used[gpu] / sizes.GIGABYTE
        usable = plan.usable[gpu] / sizes.GIGABYTE
        print(f"GPU {gpu}: {layers} layers, {used:.1f} of {usable:.1f} GB usable")
    if not plan.fits:
        print(f"Does not fit: {plan.problem}")
        _print_alternative(request)
        return
    longest = longest_context(request.config, request.gpus, request.settings)
    print(f"Fits. The longest context that does: {longest} tokens.")
    print("\n".join(loading_code(request.config, plan.parts, request.settings, request.gpus)))


def _print_alternative(request: Request) -> None:
    """The settings that give up least of those that fit."""
    fitting = fitting_alternatives(request.config, request.gpus, request.settings)
    if not fitting:
        print("Nothing here makes it fit at this context: add GPUs or shorten the context.")
        return
    best = fitting[0]
    longest = longest_context(request.config, request.gpus, best.settings)
    print(f"This does: {best.description} (up to {longest} tokens)")
    print("\n".join(loading_code(request.config, best.plan.parts, best.settings, request.gpus)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
