"""Whether a model fits the GPUs, how long a context may be, and what could be given up to fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from memory import sizes
from memory.serving_parts import Part, ServingSettings, checkpoint_quantization, memory_parts
from remote_code import configuration_skywork_chat, device_map

VLLM_SHARE = 0.9  # of a GPU that vLLM takes for everything
CONTEXT_STEP = 256  # tokens
TENSOR_PARALLEL_SIZES = (8, 4, 2, 1)

# What is given up, from the least to the most
CONCESSIONS: tuple[tuple[str, dict[str, Any]], ...] = (
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
CONCESSIONS_OF_QUANTIZED_CHECKPOINTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *CONCESSIONS[:2],
    (
        "the vision tower in host memory, 4-bit cache",
        {"offload_vision": True, "kv_bits": 4},
    ),
)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Where everything goes.

    Attributes:
        parts: everything that needs memory.
        layers_of_gpu: number of decoder layers on each GPU; empty where the weights do not fit.
        used: bytes that each GPU holds; empty where the weights do not fit.
        usable: bytes of each GPU that a model may take.
        problem: why it does not fit, or None.
    """

    parts: list[Part]
    layers_of_gpu: list[int]
    used: list[float]
    usable: list[float]
    problem: str | None = None

    @property
    def fits(self) -> bool:
        """Whether everything fits."""
        return self.problem is None


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Settings with which a model fits.

    Attributes:
        description: what is given up.
        settings: the changed settings.
        plan: which fits.
    """

    description: str
    settings: ServingSettings
    plan: MemoryPlan


def plan_memory(
    config: configuration_skywork_chat.SkyworkChatConfig,
    gpus: Sequence[float],
    settings: ServingSettings | None = None,
) -> MemoryPlan:
    """Spread a model over GPUs and compare what each of them holds with what it has.

    Layers are placed by the size of their weights alone, as `device_map="split"` does it when it
    loads. Cache and activations are added afterwards.

    Args:
        config: of the checkpoint.
        gpus: bytes of each GPU.
        settings: how it is loaded and what it is asked.

    Raises:
        ValueError: another quantization on top of the checkpoint's own, or one of unknown size.
    """
    parts, layers = memory_parts(config, settings)
    usable = [gpu - sizes.CUDA_CONTEXT for gpu in gpus]
    for_weights = [size * (1 - device_map.RESERVED_SHARE) for size in usable]
    weights_of_first = _sum_bytes(parts, place="first", kind="weights")
    try:
        counts = device_map.split_layers(layers, weights_of_first, for_weights)
    except ValueError as error:
        return MemoryPlan(parts, [], [], usable, str(error))
    used = _used_bytes(parts, layers, counts)
    return MemoryPlan(parts, counts, used, usable, _first_problem(used, usable))


def _sum_bytes(parts: Iterable[Part], place: str | None = None, kind: str | None = None) -> int:
    """Bytes of the parts in a place and of a kind; None means any."""
    total = 0
    for part in parts:
        if place in (None, part.place) and kind in (None, part.kind):
            total += part.bytes
    return total


def _used_bytes(parts: Sequence[Part], layers: Sequence[int], counts: Sequence[int]) -> list[float]:
    """Bytes that each GPU holds, with what the allocator loses.

    Args:
        parts: everything that needs memory.
        layers: bytes of each decoder layer.
        counts: number of decoder layers on each GPU.
    """
    cache = _sum_bytes(parts, kind="cache")
    used = []
    for gpu, count in enumerate(counts):
        held = count * (layers[0] + cache / len(layers))
        if gpu == 0:
            held += _sum_bytes(parts, place="first")
        elif count:
            held += _sum_bytes(parts, place="further")
        used.append(sizes.ALLOCATOR_SLACK * held)
    return used


def _first_problem(used: Sequence[float], usable: Sequence[float]) -> str | None:
    """What is wrong with the first GPU that is too small, or None."""
    for gpu, (needed, available) in enumerate(zip(used, usable)):
        if needed > available:
            return (
                f"GPU {gpu} needs {needed / sizes.GIGABYTE:.1f} GB with cache and activations, "
                f"and has {available / sizes.GIGABYTE:.1f} GB."
            )
    return None


def longest_context(
    config: configuration_skywork_chat.SkyworkChatConfig,
    gpus: Sequence[float],
    settings: ServingSettings | None = None,
) -> int:
    """The longest context in tokens that fits, in steps of 256 and at most the model's; 0 if none.

    Args:
        config: of the checkpoint.
        gpus: bytes of each GPU.
        settings: as for `plan_memory`; their context does not count.
    """
    settings = settings or ServingSettings()
    low = 0
    high = config.llm_config.max_position_embeddings // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        tried = dataclasses.replace(settings, context=CONTEXT_STEP * middle)
        if plan_memory(config, gpus, tried).fits:
            low = middle
        else:
            high = middle - 1
    return CONTEXT_STEP * low


def fitting_alternatives(
    config: configuration_skywork_chat.SkyworkChatConfig,
    gpus: Sequence[float],
    settings: ServingSettings,
) -> list[Alternative]:
    """Changed settings that fit, from the least to the most that is given up.

    A checkpoint that is quantized already is not quantized again.

    Args:
        config: of the checkpoint.
        gpus: bytes of each GPU.
        settings: those that are changed.
    """
    concessions = CONCESSIONS
    if checkpoint_quantization(config) is not None:
        concessions = CONCESSIONS_OF_QUANTIZED_CHECKPOINTS
    fitting = []
    for description, changes in concessions:
        changed = dataclasses.replace(settings, **changes)
        plan = plan_memory(config, gpus, changed)
        if plan.fits:
            fitting.append(Alternative(description, changed, plan))
    return fitting


# -- tensor parallelism of vLLM --------------------------------------------------------------------


def tensor_parallel_size(
    config: configuration_skywork_chat.SkyworkChatConfig,
    parts: Sequence[Part],
    gpus: Sequence[float],
) -> int | None:
    """The most GPUs (8, 4, 2 or 1, the first ones) over which vLLM splits a model so that it fits.

    Args:
        config: of the checkpoint.
        parts: as `memory_parts` gives them.
        gpus: bytes of each GPU.

    Returns:
        None where no number of GPUs will do.
    """
    for size in TENSOR_PARALLEL_SIZES:
        if size > len(gpus) or not _divides_the_heads(config, size):
            continue
        if _bytes_per_vllm_gpu(config, parts, size) <= VLLM_SHARE * min(gpus[:size]):
            return size
    return None


def _divides_the_heads(config: configuration_skywork_chat.SkyworkChatConfig, size: int) -> bool:
    """Whether vLLM can split the heads of the language model over `size` GPUs.

    Where there are fewer key and value heads than GPUs, several GPUs hold the same head.
    """
    llm = config.llm_config
    heads = sizes.key_value_heads(llm)
    return llm.num_attention_heads % size == 0 and (heads % size == 0 or size % heads == 0)


def _bytes_per_vllm_gpu(
    config: configuration_skywork_chat.SkyworkChatConfig, parts: Sequence[Part], size: int
) -> float:
    """Bytes on each of `size` GPUs over which vLLM splits a model.

    Each holds the whole projector, at least one head of the cache, and the whole attention of the
    vision tower where its heads do not divide by that number, as the 25 of InternViT-6B do not
    (vLLM 0.32: intern_vit.py, skyworkr1v.py).
    """
    vision = config.vision_config
    bytes_by_name = {part.name.split(" (")[0]: part.bytes for part in parts}
    passing = _sum_bytes(parts, place="first", kind="passing")
    weights = _sum_bytes(parts, kind="weights")
    on_each = bytes_by_name["projector"]
    if vision.num_attention_heads % size:
        attention = 4 * vision.hidden_size
        attention_share = attention / (attention + 2 * vision.intermediate_size)
        on_each += attention_share * bytes_by_name["vision tower"]
    cache = bytes_by_name["KV cache"] / min(size, sizes.key_value_heads(config.llm_config))
    return on_each + (weights - on_each) / size + cache + passing
