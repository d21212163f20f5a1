"""What serving a checkpoint takes, part by part: weights, cache and activations."""

from __future__ import annotations

import dataclasses

from memory import sizes
from remote_code import configuration_skywork_chat, image_features, loading

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Bytes of a weight in the decoder layers if they are quantized while loading; None is the dtype's.
QUANTIZED_BYTES = {"none": None, **loading.QUANTIZED_BYTES}
KV_BITS = (2, 4)  # what transformers' quanto cache has
KV_RESIDUAL = 128  # newest tokens, which transformers' QuantizedCache does not quantize


@dataclasses.dataclass(frozen=True)
class ServingSettings:
    """How a model is loaded, and what it is asked.

    Attributes:
        dtype: of all weights that are not quantized, and of activations and cache.
        quantization: of the decoder layers while they are loaded: "none", "int8" or "nf4". Where
            this is "none", what the checkpoint's config says of its weights counts (AutoAWQ, GPTQ,
            bitsandbytes).
        context: tokens of prompt and answer together, of each conversation.
        batch: conversations at once.
        kv_bits: bits of a number in a quantized KV cache (2 or 4), or None for the dtype.
        offload_vision: the vision tower stays in host memory and passes through the GPU module by
            module.

    Raises:
        ValueError: a setting that does not exist, or a number below 1.
    """

    dtype: str = "bf16"
    quantization: str = "none"
    context: int = 8192
    batch: int = 1
    kv_bits: int | None = None
    offload_vision: bool = False

    def __post_init__(self) -> None:
        choices = (
            ("dtype", self.dtype, tuple(DTYPE_BYTES)),
            ("quantization", self.quantization, tuple(QUANTIZED_BYTES)),
            ("kv_bits", self.kv_bits, (None, *KV_BITS)),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; expected one of {allowed}.")
        for name, number in (("context", self.context), ("batch", self.batch)):
            if number < 1:
                raise ValueError(f"{name}={number} must be positive: give at least 1.")

    @property
    def dtype_bytes(self) -> int:
        """Bytes of a number that is not quantized."""
        return DTYPE_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Part:
    """One consumer of memory.

    Attributes:
        name: for people.
        bytes: its size.
        place: "first" GPU, "layers" (over all GPUs in proportion to their decoder layers),
            "further" (on each GPU with layers but the first), or "host".
        kind: "weights", "cache", "passing" (activations, and weights on their way through a GPU) or
            "mask" (which vLLM does without).
    """

    name: str
    bytes: int
    place: str = "first"
    kind: str = "weights"


def checkpoint_quantization(
    config: configuration_skywork_chat.SkyworkChatConfig,
) -> tuple[str, float] | None:
    """(name, bytes of a decoder layer's weight) of a checkpoint that is stored quantized, or None.

    Raises:
        ValueError: a quantization whose size is not known here.
    """
    stored = getattr(config, "quantization_config", None)
    stored = stored or getattr(config.llm_config, "quantization_config", None)
    if stored is None:
        return None
    name = stored.get("quant_method", "quantized")
    weight_bytes = loading.bytes_of_quantization(stored)
    if weight_bytes is None:
        raise ValueError(
            f"The checkpoint is quantized by {name!r}; this plan knows AutoAWQ, GPTQ and "
            "bitsandbytes."
        )
    return f"{name} of the checkpoint", weight_bytes


def layer_format(
    config: configuration_skywork_chat.SkyworkChatConfig, settings: ServingSettings
) -> tuple[str, float]:
    """(name, bytes of a weight) of the decoder layers, as they are loaded.

    Raises:
        ValueError: another quantization on top of the checkpoint's own, or one of unknown size.
    """
    stored = checkpoint_quantization(config)
    if stored is not None and settings.quantization != "none":
        raise ValueError(
            f"The checkpoint is quantized already ({stored[0]}): leave out --quantization "
            f"{settings.quantization}."
        )
    if stored is not None:
        return stored
    quantized_bytes = QUANTIZED_BYTES[settings.quantization]
    if quantized_bytes is None:
        return settings.dtype, settings.dtype_bytes
    return settings.quantization, quantized_bytes


def memory_parts(
    config: configuration_skywork_chat.SkyworkChatConfig,
    settings: ServingSettings | None = None,
) -> tuple[list[Part], list[int]]:
    """Everything that serving takes, part by part.

    Returns:
        The parts, and the bytes of each decoder layer.

    Raises:
        ValueError: another quantization on top of the checkpoint's own, or one of unknown size.
    """
    settings = settings or ServingSettings()
    format_name, weight_bytes = layer_format(config, settings)
    model = sizes.model_without_weights(config)
    layers = [
        round(weight_bytes * sizes.count_parameters(layer))
        for layer in model.language_model.model.layers
    ]
    parts = [
        *_weights_outside_layers(model, config, settings),
        Part(f"decoder layers ({format_name})", sum(layers), "layers"),
        _cache(config, settings),
        *_activations(config, settings),
        *_masks(settings),
    ]
    if settings.offload_vision:
        module_bytes = _largest_vision_module(model, settings)
        parts.append(Part("vision tower, the module in passage", module_bytes, kind="passing"))
    return parts, layers


def _weights_outside_layers(
    model: sizes.Model,
    config: configuration_skywork_chat.SkyworkChatConfig,
    settings: ServingSettings,
) -> list[Part]:
    """Vision tower, projector, and the language model but for its decoder layers."""
    tower_bytes = settings.dtype_bytes * sizes.count_parameters(model.vision_model)
    tower = Part("vision tower", tower_bytes)
    if settings.offload_vision:
        tower = Part("vision tower (in host memory)", tower_bytes, "host")
    embeddings = sizes.count_parameters(model.get_input_embeddings())
    embeddings += sizes.count_parameters(model.language_model.model.norm)
    if not config.tie_word_embeddings:
        embeddings += sizes.count_parameters(model.get_output_embeddings())
    return [
        tower,
        Part("projector", settings.dtype_bytes * sizes.count_parameters(model.mlp1)),
        Part("embeddings and head", settings.dtype_bytes * embeddings),
    ]


def _largest_vision_module(model: sizes.Model, settings: ServingSettings) -> int:
    """Bytes of the vision tower's module that holds most parameters itself."""
    largest = 0
    for module in model.vision_model.modules():
        numbers = [parameter.numel() for parameter in module.parameters(recurse=False)]
        largest = max(largest, sum(numbers))
    return settings.dtype_bytes * largest


def _cache(config: configuration_skywork_chat.SkyworkChatConfig, settings: ServingSettings) -> Part:
    """The KV cache of all conversations at their longest."""
    llm = config.llm_config
    per_token = sizes.kv_bytes_per_token(llm, settings.dtype_bytes, settings.kv_bits)
    cache_bytes = settings.batch * settings.context * per_token
    if settings.kv_bits is None:
        return Part(f"KV cache ({settings.dtype})", round(cache_bytes), "layers", "cache")
    newest = settings.batch * min(settings.context, KV_RESIDUAL)
    cache_bytes += newest * sizes.kv_bytes_per_token(llm, settings.dtype_bytes)
    return Part(f"KV cache ({settings.kv_bits} bit)", round(cache_bytes), "layers", "cache")


def _activations(
    config: configuration_skywork_chat.SkyworkChatConfig, settings: ServingSettings
) -> list[Part]:
    """What encoding a chunk of tiles and reading the prompt take at their widest.

    Images are encoded before the prompt is read, so the two are not needed at the same time.
    """
    llm = config.llm_config
    positions = image_features.POSITIONS_PER_CHUNK
    encoding = sizes.vision_working_bytes(config.vision_config, positions, settings.dtype_bytes)
    # The residual stream and its norm; gate, up and their product
    values_per_token = 2 * llm.hidden_size + 3 * llm.intermediate_size
    reading = settings.batch * settings.context * values_per_token * settings.dtype_bytes
    return [
        Part(
            "activations (the larger of encoding tiles and reading the prompt)",
            max(encoding, reading),
            kind="passing",
        ),
        Part("activations on each further GPU (reading the prompt)", reading, "further", "passing"),
    ]


def _masks(settings: ServingSettings) -> list[Part]:
    """The attention masks that a batch of prompts of several lengths needs; one prompt needs none.

    A mask has a byte for each pair of positions, and SDPA makes a copy of it in the dtype.
    """
    if settings.batch == 1:
        return []
    mask_bytes = settings.batch * settings.context**2 * (1 + settings.dtype_bytes)
    return [
        Part("mask of prompts of several lengths", mask_bytes, kind="mask"),
        Part("mask on each further GPU", mask_bytes, "further", "mask"),
    ]
