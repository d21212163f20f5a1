"""Configuration of Skywork-R1V: a vision tower, a projector and a Qwen2 language model.

    config = AutoConfig.from_pretrained("Skywork/Skywork-R1V-38B", trust_remote_code=True)
    config.vision_config, config.llm_config, config.image_token_id

Every default of `SkyworkVisionConfig` is that of InternViT-6B-448px-V2_5. `SkyworkChatConfig()`
with no arguments is a complete 38B configuration, because transformers builds one while loading
(from 4.52).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from transformers import PretrainedConfig, Qwen2Config
from transformers.utils import logging

logger = logging.get_logger(__name__)

SUPPORTED_LANGUAGE_ARCHITECTURES = ("Qwen2ForCausalLM",)
KNOWN_TEMPLATES = ("skywork-r1v", "skywork-r1v3", "qwen2.5")
# `<IMG_CONTEXT>`, the third token appended to the vocabulary of DeepSeek-R1-Distill-Qwen.
IMAGE_TOKEN_ID = 151667

# Properties here; some published files repeat them.
DERIVED_FIELDS = (
    "hidden_size",
    "vocab_size",
    "tile_size",
    "num_image_token",
    "shuffle_factor",
    "merged_size",
    "num_vision_layers_used",
)

VISION_COUNTS = (
    "num_channels",
    "patch_size",
    "image_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "num_hidden_layers",
)
VISION_NUMBERS = (
    "layer_norm_eps",
    "dropout",
    "attention_dropout",
    "drop_path_rate",
    "initializer_factor",
)
LANGUAGE_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "num_hidden_layers",
    "max_position_embeddings",
)

# DeepSeek-R1-Distill-Qwen-32B, where it differs from the defaults of Qwen2Config.
_LANGUAGE_DEFAULTS = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "max_position_embeddings": 131072,
    "max_window_layers": 64,
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


class SkyworkVisionConfig(PretrainedConfig):
    """Shape of an InternViT encoder. The defaults are InternViT-6B-448px-V2_5.

    Args:
        hidden_size: width C of the encoder; a multiple of `num_attention_heads`.
        image_size: side of a tile in pixels; a multiple of `patch_size` (pixels per patch side).
        norm_type: `"rms_norm"` (6B) or `"layer_norm"` (300M).
        qk_normalization: RMS norm on queries and keys, over all heads together (C), not per head.
        qkv_bias: bias on the joint query/key/value projection (300M: true, 6B: false).
        drop_path_rate: highest rate of stochastic depth, reached in the last layer.
        initializer_factor: initial value of the layer scales `ls1` and `ls2`.
        use_flash_attn: kept for the published files; attention is chosen when a model is loaded.

    Raises:
        ValueError: fields that contradict each other, by name.
    """

    model_type = "skywork_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 448,
        hidden_size: int = 3200,
        num_hidden_layers: int = 45,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        hidden_act: str = "gelu",
        norm_type: str = "rms_norm",
        layer_norm_eps: float = 1e-6,
        qk_normalization: bool = True,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        initializer_range: float = 1e-10,
        initializer_factor: float = 0.1,
        use_flash_attn: bool = True,
        **kwargs: Any,
    ) -> None:
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.qk_normalization = qk_normalization
        self.qkv_bias = qkv_bias
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.drop_path_rate = drop_path_rate
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        self.use_flash_attn = use_flash_attn
        super().__init__(**kwargs)
        self._check_fields()

    def _check_fields(self) -> None:
        check_counts(self, VISION_COUNTS, "vision_config: ")
        check_numbers(self, VISION_NUMBERS, "vision_config: ")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config: hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision_config: image_size={self.image_size} is not divisible by "
                f"patch_size={self.patch_size} (pixels)."
            )
        if self.norm_type not in ("rms_norm", "layer_norm"):
            raise ValueError(
                f"vision_config: norm_type={self.norm_type!r} is unknown; expected 'rms_norm' or "
                "'layer_norm'."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(
                f"vision_config: drop_path_rate={self.drop_path_rate} must be in [0, 1)."
            )

    # transformers 5 turns every config into a dataclass, whose generated __eq__ compares the fields
    # of the base class only.
    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = None


class SkyworkChatConfig(PretrainedConfig):
    """A Skywork-R1V model: `vision_config`, `llm_config` and how images become tokens.

    Args:
        vision_config: `SkyworkVisionConfig`, a dict of its fields, or None (InternViT-6B). A
            `model_type` of another name (checkpoints use several) is accepted, with one warning if
            it is not InternViT's.
        llm_config: `Qwen2Config`, a dict of its fields, or None (DeepSeek-R1-Distill-Qwen-32B).
        select_layer: vision layer whose output is used: -1 is the last, -2 the one before; a value
            from 0 on counts layers from the patch embeddings.
        force_image_size: side of a tile in pixels, if not the vision tower's own.
        downsample_ratio: pixel shuffle; 0.5 merges 2 × 2 patches into one token.
        ps_version: "v1" or "v2"; they differ in the order of the shuffled tokens.
        template: conversation template; an unknown name falls back to the default with one warning.
        dynamic_image_size, min_dynamic_patch, max_dynamic_patch, use_thumbnail: how serving engines
            cut images into tiles. `chat()` and training read preprocessor_config.json instead.
        image_token_id: id of `<IMG_CONTEXT>`, the token that image features replace.

    Raises:
        ValueError: fields that contradict each other, by name.
        TypeError: a sub-config of another type.
    """

    model_type = "skywork_chat"
    is_composition = True
    # transformers declares a property and reads a dict.
    sub_configs = {  # pyright: ignore[reportAssignmentType]
        "vision_config": SkyworkVisionConfig,
        "llm_config": Qwen2Config,
    }
    # Engines (vLLM among them) set and read `text_config`. It is the same object under a second
    # name, so that it can neither drift from llm_config nor be written out twice.
    attribute_map = {"text_config": "llm_config", "image_token_index": "image_token_id"}

    def __init__(
        self,
        vision_config: Any = None,
        llm_config: Any = None,
        use_backbone_lora: int = 0,
        use_llm_lora: int = 0,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        template: str | None = None,
        dynamic_image_size: bool = False,
        use_thumbnail: bool = False,
        ps_version: str = "v1",
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 6,
        pad2square: bool = False,
        image_token_id: int = IMAGE_TOKEN_ID,
        **kwargs: Any,
    ) -> None:
        text_config = kwargs.pop("text_config", None)
        image_token_id = kwargs.pop("image_token_index", image_token_id)
        for derived in DERIVED_FIELDS:
            kwargs.pop(derived, None)
        self.vision_config = _as_vision_config(vision_config)
        self.llm_config = _as_language_config(text_config if llm_config is None else llm_config)
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.pad2square = pad2square
        self.image_token_id = image_token_id
        # The base class's default is True. What decides is whether the language model ties its
        # head.
        kwargs.setdefault("tie_word_embeddings", bool(self.llm_config.tie_word_embeddings))
        tie_word_embeddings = kwargs["tie_word_embeddings"]
        super().__init__(**kwargs)
        self.tie_word_embeddings = tie_word_embeddings
        self._check_fields()

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def shuffle_factor(self) -> int:
        """f of the pixel shuffle: a square of f × f patches becomes one token."""
        return round(1 / self.downsample_ratio)

    @property
    def merged_size(self) -> int:
        """C · f², the width of f × f patches of the vision tower merged into one token."""
        return self.vision_config.hidden_size * self.shuffle_factor**2

    @property
    def num_vision_layers_used(self) -> int:
        """How many layers of the vision tower are computed: all of them up to `select_layer`."""
        if self.select_layer >= 0:
            return self.select_layer
        return self.vision_config.num_hidden_layers + 1 + self.select_layer

    @property
    def num_image_token(self) -> int:
        """Number of tokens of a tile in the prompt, 256 at 38B.

        That is int((image_size // patch_size)² · downsample_ratio²).
        """
        patches_per_side = self.tile_size // self.vision_config.patch_size
        return int(patches_per_side**2 * self.downsample_ratio**2)

    @property
    def hidden_size(self) -> int:
        """Width of the language model, which DeepSpeed and TRL read at the top level."""
        return self.llm_config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Number of rows of the language model's embedding.

        It can be set, because before 4.46 resizing the embedding sets it at the top level.
        """
        return self.llm_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.llm_config.vocab_size = value

    def get_text_config(self, *args: Any, **kwargs: Any) -> Qwen2Config:
        """The language model's config, whichever half (`decoder`, `encoder`) is asked for."""
        return self.llm_config

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, sub-configs included, which `from_dict` of every version takes back."""
        output = _with_torch_dtype(super().to_dict())
        output["vision_config"] = _with_torch_dtype(self.vision_config.to_dict())
        output["llm_config"] = portable_language_config(self.llm_config.to_dict())
        output["vision_config"].pop("transformers_version", None)
        return output

    def _check_fields(self) -> None:
        check_counts(self.llm_config, LANGUAGE_COUNTS, "llm_config: ")
        check_counts(self, ("min_dynamic_patch", "max_dynamic_patch"))
        check_numbers(self, ("downsample_ratio", "select_layer", "image_token_id"))
        if self.force_image_size is not None:
            check_counts(self, ("force_image_size",))
        vision = self.vision_config
        if self.tile_size % vision.patch_size:
            raise ValueError(
                f"force_image_size={self.force_image_size} is not divisible by "
                f"vision_config.patch_size={vision.patch_size} (pixels)."
            )
        self._check_pixel_shuffle()
        if self.ps_version not in ("v1", "v2"):
            raise ValueError(f"ps_version={self.ps_version!r} is unknown; expected 'v1' or 'v2'.")
        if not 1 <= self.min_dynamic_patch <= self.max_dynamic_patch:
            raise ValueError(
                f"min_dynamic_patch={self.min_dynamic_patch} and "
                f"max_dynamic_patch={self.max_dynamic_patch} (tiles): expected "
                "1 <= min_dynamic_patch <= max_dynamic_patch."
            )
        if not -vision.num_hidden_layers - 1 <= self.select_layer <= vision.num_hidden_layers:
            raise ValueError(
                f"select_layer={self.select_layer} does not exist in a vision tower of "
                f"num_hidden_layers={vision.num_hidden_layers}."
            )
        if self.template is not None and self.template not in KNOWN_TEMPLATES:
            logger.warning_once(
                f"template={self.template!r} is not one of {', '.join(KNOWN_TEMPLATES)}; prompts "
                "use 'skywork-r1v'."
            )

    def _check_pixel_shuffle(self) -> None:
        patch_size = self.vision_config.patch_size
        grid = self.tile_size // patch_size
        merged = grid * self.downsample_ratio
        is_ratio = 0 < self.downsample_ratio <= 1
        if not is_ratio or merged != int(merged) or grid % int(merged):
            raise ValueError(
                f"downsample_ratio={self.downsample_ratio} cannot shuffle a grid of {grid} × "
                f"{grid} patches (image_size={self.tile_size}, patch_size={patch_size}): both the "
                "merged side and the factor must be whole numbers."
            )

    __eq__ = SkyworkVisionConfig.__eq__
    __hash__ = None


def check_counts(config: Any, names: Iterable[str], where: str = "") -> None:
    """Check that fields are whole numbers from 1 on.

    Args:
        where: what stands in front of a field's name in the message.

    Raises:
        ValueError: with the field's name and value.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}{name}={value!r}: expected a whole number from 1 on.")


def check_numbers(config: Any, names: Iterable[str], where: str = "") -> None:
    """Check that fields are numbers.

    Raises:
        ValueError: with the field's name and value.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{where}{name}={value!r}: expected a number.")


def portable_language_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Qwen2 config under the names that every transformers version reads.

    Version 5 writes other names. Version 4 knows nothing of `rope_parameters`, and would silently
    compute with a `rope_theta` of 10,000.
    """
    fields = _with_torch_dtype(fields)
    rope = fields.pop("rope_parameters", None)
    if rope is not None:
        rope = dict(rope)
        fields["rope_theta"] = rope.pop("rope_theta", 10000.0)
        is_scaled = rope.get("rope_type", "default") != "default"
        fields["rope_scaling"] = rope if is_scaled else None
    for name in ("layer_types", "auto_map", "_name_or_path", "transformers_version"):
        fields.pop(name, None)
    if not fields.get("use_sliding_window") and fields.get("sliding_window") is None:
        fields["sliding_window"] = fields["max_position_embeddings"]  # without effect; as published
    return fields


def _with_torch_dtype(fields: dict[str, Any]) -> dict[str, Any]:
    """A copy with the dtype under the name that every version reads.

    Versions from 4.56 on write it as `dtype`.
    """
    fields = dict(fields)
    dtype = fields.pop("dtype", None)
    if dtype is not None:
        fields["torch_dtype"] = dtype
    return fields


def _as_vision_config(value: Any) -> SkyworkVisionConfig:
    if value is None:
        return SkyworkVisionConfig()
    if isinstance(value, SkyworkVisionConfig):
        return value
    if isinstance(value, PretrainedConfig):
        value = value.to_dict()
    if not isinstance(value, dict):
        raise TypeError(
            f"vision_config must be a dict or a SkyworkVisionConfig, not {type(value).__name__}."
        )
    fields = copy.deepcopy(value)
    model_type = fields.pop("model_type", SkyworkVisionConfig.model_type)
    if model_type != SkyworkVisionConfig.model_type and not model_type.startswith("intern_vit"):
        logger.warning_once(f"vision_config.model_type={model_type!r} is read as an InternViT.")
    return SkyworkVisionConfig(**fields)


def _as_language_config(value: Any) -> Qwen2Config:
    if value is None:
        value = _LANGUAGE_DEFAULTS
    architectures = _language_architectures(value)
    if architectures and architectures[0] not in SUPPORTED_LANGUAGE_ARCHITECTURES:
        raise ValueError(
            f"llm_config.architectures={architectures} is not supported; expected one of "
            f"{list(SUPPORTED_LANGUAGE_ARCHITECTURES)} (every Skywork-R1V language model is a "
            "Qwen2)."
        )
    if isinstance(value, Qwen2Config):
        return value
    fields = copy.deepcopy(value if isinstance(value, dict) else value.to_dict())
    fields.pop("model_type", None)
    fields.setdefault("architectures", list(SUPPORTED_LANGUAGE_ARCHITECTURES[:1]))
    return Qwen2Config(**fields)


def _language_architectures(value: Any) -> list[str] | None:
    """The architectures that a language config names; without any, those of its model type."""
    if isinstance(value, Qwen2Config):
        return value.architectures
    if isinstance(value, dict):
        architectures = value.get("architectures")
        model_type = value.get("model_type", Qwen2Config.model_type)
    elif isinstance(value, PretrainedConfig):
        return value.architectures or [value.model_type]
    else:
        raise TypeError(f"llm_config must be a dict or a Qwen2Config, not {type(value).__name__}.")
    if model_type != Qwen2Config.model_type:
        return architectures or [model_type]
    return architectures
