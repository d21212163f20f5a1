"""Configuration of Skywork-R1V: a vision tower, a projector and a Qwen2 language model.

    config = AutoConfig.from_pretrained("Skywork/Skywork-R1V-38B", trust_remote_code=True)
    config.vision_config, config.llm_config, config.image_token_id

Every default of `SkyworkVisionConfig` is that of InternViT-6B-448px-V2_5; `SkyworkChatConfig()` with no arguments is
a complete 38B configuration, because transformers builds one while loading (from 4.52).
"""

import copy

from transformers import PretrainedConfig, Qwen2Config
from transformers.utils import logging

logger = logging.get_logger(__name__)

SUPPORTED_LANGUAGE_ARCHITECTURES = ("Qwen2ForCausalLM",)
KNOWN_TEMPLATES = ("skywork-r1v", "skywork-r1v3")
IMAGE_TOKEN_ID = (
    151667  # `<IMG_CONTEXT>`, the third token appended to DeepSeek-R1-Distill-Qwen's vocabulary
)

# Properties here; some published files repeat them.
DERIVED_FIELDS = (
    "hidden_size",
    "vocab_size",
    "tile_size",
    "num_image_token",
    "shuffle_factor",
    "num_vision_layers_used",
)

# DeepSeek-R1-Distill-Qwen-32B, where it differs from the defaults of Qwen2Config
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
        num_channels=3,
        patch_size=14,
        image_size=448,
        hidden_size=3200,
        num_hidden_layers=45,
        num_attention_heads=25,
        intermediate_size=12800,
        hidden_act="gelu",
        norm_type="rms_norm",
        layer_norm_eps=1e-6,
        qk_normalization=True,
        qkv_bias=False,
        dropout=0.0,
        attention_dropout=0.0,
        drop_path_rate=0.0,
        initializer_range=1e-10,
        initializer_factor=0.1,
        use_flash_attn=True,
        **kwargs,
    ):
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

    def _check_fields(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config: hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision_config: image_size={self.image_size} is not divisible by patch_size={self.patch_size} "
                "(pixels)."
            )
        if self.norm_type not in ("rms_norm", "layer_norm"):
            raise ValueError(
                f"vision_config: norm_type={self.norm_type!r} is unknown; expected 'rms_norm' or 'layer_norm'."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(
                f"vision_config: drop_path_rate={self.drop_path_rate} must be in [0, 1)."
            )

    # transformers 5 turns every config into a dataclass, whose generated __eq__ sees the base class's fields only
    def __eq__(self, other):
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = None


class SkyworkChatConfig(PretrainedConfig):
    """A Skywork-R1V model: `vision_config`, `llm_config` and how images become tokens.

    Args:
        vision_config: `SkyworkVisionConfig`, a dict of its fields, or None (InternViT-6B). A `model_type` of another
            name (checkpoints use several) is accepted, with one warning if it is not InternViT's.
        llm_config: `Qwen2Config`, a dict of its fields, or None (DeepSeek-R1-Distill-Qwen-32B).
        select_layer: vision layer whose output is used: -1 is the last, -2 the one before; a non-negative value counts
            layers from the patch embeddings.
        force_image_size: side of a tile in pixels, if not the vision tower's own.
        downsample_ratio: pixel shuffle; 0.5 merges 2 × 2 patches into one token.
        ps_version: "v1" or "v2"; they differ in the order of the shuffled tokens.
        template: conversation template; an unknown name falls back to the default with one warning.
        dynamic_image_size, min_dynamic_patch, max_dynamic_patch, use_thumbnail: tiling of an image, in tiles.
        image_token_id: id of `<IMG_CONTEXT>`, the token that image features replace.

    Raises:
        ValueError: fields that contradict each other, by name.
        TypeError: a sub-config of another type.
    """

    model_type = "skywork_chat"
    is_composition = True
    sub_configs = {"vision_config": SkyworkVisionConfig, "llm_config": Qwen2Config}
    # Engines (vLLM among them) set and read `text_config`: the same object under a second name, so that it can
    # neither drift from llm_config nor be written out twice.
    attribute_map = {"text_config": "llm_config", "image_token_index": "image_token_id"}

    def __init__(
        self,
        vision_config=None,
        llm_config=None,
        use_backbone_lora=0,
        use_llm_lora=0,
        select_layer=-1,
        force_image_size=None,
        downsample_ratio=0.5,
        template=None,
        dynamic_image_size=False,
        use_thumbnail=False,
        ps_version="v1",
        min_dynamic_patch=1,
        max_dynamic_patch=6,
        pad2square=False,
        image_token_id=IMAGE_TOKEN_ID,
        **kwargs,
    ):
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
        # The base class's default is True; what decides is whether the language model ties its head
        kwargs.setdefault("tie_word_embeddings", bool(self.llm_config.tie_word_embeddings))
        tie_word_embeddings = kwargs["tie_word_embeddings"]
        super().__init__(**kwargs)
        self.tie_word_embeddings = tie_word_embeddings
        self._check_fields()

    @property
    def tile_size(self):
        """Side of a tile in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def shuffle_factor(self):
        """f of the pixel shuffle: a square of f × f patches becomes one token."""
        return round(1 / self.downsample_ratio)

    @property
    def num_vision_layers_used(self):
        """How many layers of the vision tower are computed: all of them up to `select_layer`."""
        if self.select_layer >= 0:
            return self.select_layer
        return self.vision_config.num_hidden_layers + 1 + self.select_layer

    @property
    def num_image_token(self):
        """Tokens a tile takes in the prompt: int((image_size // patch_size)² · downsample_ratio²), 256 at 38B."""
        return int(
            (self.tile_size // self.vision_config.patch_size) ** 2 * self.downsample_ratio**2
        )

    @property
    def hidden_size(self):
        """Width of the language model: what training code (DeepSpeed, TRL) reads at the top level."""
        return self.llm_config.hidden_size

    @property
    def vocab_size(self):
        """Rows of the language model's embedding; settable, as resizing it sets this at the top level before 4.46."""
        return self.llm_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value):
        self.llm_config.vocab_size = value

    def get_text_config(self, *args, **kwargs):
        """The language model's config, whichever half (`decoder`, `encoder`) is asked for."""
        return self.llm_config

    def to_dict(self):
        """A plain dict, sub-configs included: on every transformers version what `from_dict` takes back."""
        output = _with_torch_dtype(super().to_dict())
        output["vision_config"] = _with_torch_dtype(self.vision_config.to_dict())
        output["llm_config"] = portable_language_config(self.llm_config.to_dict())
        output["vision_config"].pop("transformers_version", None)
        return output

    def _check_fields(self):
        vision = self.vision_config
        if self.tile_size % vision.patch_size:
            raise ValueError(
                f"force_image_size={self.force_image_size} is not divisible by "
                f"vision_config.patch_size={vision.patch_size} (pixels)."
            )
        grid = self.tile_size // vision.patch_size
        merged = grid * self.downsample_ratio
        if not 0 < self.downsample_ratio <= 1 or merged != int(merged) or grid % int(merged):
            raise ValueError(
                f"downsample_ratio={self.downsample_ratio} cannot shuffle a grid of {grid} × {grid} patches "
                f"(image_size={self.tile_size}, patch_size={vision.patch_size}): both the merged side and the "
                "factor must be whole numbers."
            )
        if self.ps_version not in ("v1", "v2"):
            raise ValueError(f"ps_version={self.ps_version!r} is unknown; expected 'v1' or 'v2'.")
        if not 1 <= self.min_dynamic_patch <= self.max_dynamic_patch:
            raise ValueError(
                f"min_dynamic_patch={self.min_dynamic_patch} and max_dynamic_patch={self.max_dynamic_patch} (tiles): "
                "expected 1 <= min_dynamic_patch <= max_dynamic_patch."
            )
        if not -vision.num_hidden_layers - 1 <= self.select_layer <= vision.num_hidden_layers:
            raise ValueError(
                f"select_layer={self.select_layer} does not exist in a vision tower of "
                f"num_hidden_layers={vision.num_hidden_layers}."
            )
        if self.template is not None and self.template not in KNOWN_TEMPLATES:
            logger.warning_once(
                f"template={self.template!r} is not one of {', '.join(KNOWN_TEMPLATES)}; prompts use 'skywork-r1v'."
            )

    __eq__ = SkyworkVisionConfig.__eq__
    __hash__ = None


def portable_language_config(fields):
    """A Qwen2 config (a dict) in the words that every transformers version reads; version 5 writes others.

    Version 4 knows nothing of `rope_parameters` and would silently compute with a `rope_theta` of 10,000.
    """
    fields = _with_torch_dtype(fields)
    rope = fields.pop("rope_parameters", None)
    if rope is not None:
        rope = dict(rope)
        fields["rope_theta"] = rope.pop("rope_theta", 10000.0)
        fields["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    for name in ("layer_types", "auto_map", "_name_or_path", "transformers_version"):
        fields.pop(name, None)
    if not fields.get("use_sliding_window") and fields.get("sliding_window") is None:
        fields["sliding_window"] = fields["max_position_embeddings"]  # without effect; as published
    return fields


def _with_torch_dtype(fields):
    """A copy that names the dtype as every version reads it; from 4.56 on it is written as `dtype`."""
    fields = dict(fields)
    dtype = fields.pop("dtype", None)
    if dtype is not None:
        fields["torch_dtype"] = dtype
    return fields


def _as_vision_config(value):
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


def _as_language_config(value):
    if value is None:
        value = _LANGUAGE_DEFAULTS
    if isinstance(value, Qwen2Config):
        architectures, config = value.architectures, value
    elif isinstance(value, dict):
        architectures, config = value.get("architectures"), None
        model_type = value.get("model_type", Qwen2Config.model_type)
        if model_type != Qwen2Config.model_type:
            architectures = architectures or [model_type]
    elif isinstance(value, PretrainedConfig):
        architectures, config = value.architectures or [value.model_type], None
    else:
        raise TypeError(f"llm_config must be a dict or a Qwen2Config, not {type(value).__name__}.")
    if architectures and architectures[0] not in SUPPORTED_LANGUAGE_ARCHITECTURES:
        raise ValueError(
            f"llm_config.architectures={architectures} is not supported; expected one of "
            f"{list(SUPPORTED_LANGUAGE_ARCHITECTURES)} (every Skywork-R1V language model is a Qwen2)."
        )
    if config is None:
        fields = copy.deepcopy(value if isinstance(value, dict) else value.to_dict())
        fields.pop("model_type", None)
        fields.setdefault("architectures", list(SUPPORTED_LANGUAGE_ARCHITECTURES[:1]))
        config = Qwen2Config(**fields)
    return config
