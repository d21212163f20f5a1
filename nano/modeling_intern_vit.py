"""InternViT, the vision encoder of Skywork-R1V (InternViT-6B-448px-V2_5; 300M with LayerNorm).

It is a plain vision transformer: patch embedding with a class token and learned positions, pre-norm
blocks with layer scale, no final norm (InternVL 2.5, arXiv:2412.05271, section 3).

Shapes: tiles are square images of `image_size` pixels. A tile has (image_size / patch_size)²
patches, N = patches + 1 positions and C channels.

    vision_model = SkyworkVisionModel(SkyworkVisionConfig())
    vision_model(pixel_values).last_hidden_state  # (tiles, 1025, 3200)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from .configuration_skywork_chat import SkyworkVisionConfig
from .loading import flash_attention_function
from .transformers_compat import fill_unless_loaded


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv:1910.07467) over the last axis, computed in fp32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., C), in the dtype of the input."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.float()
        mean_square = hidden_states.square().mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(mean_square + self.eps)
        return self.weight * hidden_states.to(dtype)


# Whether this CPU multiplies bf16 matrices itself (AVX-512, AMX). Others convert the operands of
# each product: on an EPYC with AVX2, attention over a tile takes 3.2 s by bf16 products and 0.18 s
# by SDPA.
_is_bf16_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
CPU_HAS_BF16_UNITS: bool = _is_bf16_supported is not None and _is_bf16_supported()

NORMS = {"rms_norm": RMSNorm, "layer_norm": nn.LayerNorm}


class PatchEmbeddings(nn.Module):
    """Patches and a class token, with learned positions.

    The positions are interpolated for tiles of another size.
    """

    def __init__(self, config: SkyworkVisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.grid = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        self.position_embedding = nn.Parameter(torch.randn(1, self.grid**2 + 1, config.hidden_size))

    def interpolated_positions(self, height: int, width: int) -> torch.Tensor:
        """Positions for a grid of `height` × `width` patches, bicubic, computed in fp32.

        Returns:
            (1, 1 + height · width, C).
        """
        if (height, width) == (self.grid, self.grid):
            return self.position_embedding
        class_position, patch_positions = self.position_embedding.split([1, self.grid**2], dim=1)
        grid = patch_positions.float().reshape(1, self.grid, self.grid, -1)
        grid = grid.permute(0, 3, 1, 2)  # (1, C, grid, grid)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        patch_positions = grid.flatten(2).transpose(1, 2)  # (1, height · width, C)
        return torch.cat([class_position, patch_positions.to(class_position.dtype)], dim=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(tiles, channels, height, width) to (tiles, N, C), the class token first."""
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values)  # (tiles, C, rows, columns)
        height, width = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # (tiles, rows · columns, C)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1).to(patches.dtype)
        embeddings = torch.cat([class_token, patches], dim=1)  # (tiles, N, C)
        return embeddings + self.interpolated_positions(height, width).to(embeddings.dtype)


# -- attention: queries, keys and values are (tiles, heads, N, head size) --------------------------

AttentionOutput = tuple[torch.Tensor, "torch.Tensor | None"]  # the output, and the weights


def eager_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float
) -> AttentionOutput:
    """Softmax attention with materialised weights (tiles, heads, N, N)."""
    weights = (query * scale) @ key.transpose(-2, -1)
    weights = F.dropout(weights.softmax(dim=-1), dropout, training=dropout > 0)
    return weights @ value, weights


def sdpa_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float
) -> AttentionOutput:
    """torch's fused attention; the weights are not available.

    On a CPU with bf16 units, matrix products of one tile after the other are faster in bf16 than
    the fused kernel, which does not use these units as they do (benchmarks/NOTES.md).
    """
    if CPU_HAS_BF16_UNITS and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        tiles = zip(query.split(1), key.split(1), value.split(1))
        outputs = [eager_attention(*tile, scale, dropout)[0] for tile in tiles]
        return torch.cat(outputs), None
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale), None


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float
) -> AttentionOutput:
    """flash-attn (arXiv:2307.08691) on CUDA tensors in half precision, and SDPA for all others."""
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        return sdpa_attention(query, key, value, scale, dropout)
    query = query.transpose(1, 2)  # (tiles, N, heads, head size)
    key = key.transpose(1, 2)
    value = value.transpose(1, 2)
    output = flash_attention_function()(query, key, value, dropout_p=dropout, softmax_scale=scale)
    return output.transpose(1, 2), None


ATTENTION: dict[Any, Any] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "flash_attention_2": flash_attention,
}


class VisionAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value.

    The q/k norm of InternViT-6B is over all heads together (C channels), before the heads are
    split.
    """

    def __init__(self, config: SkyworkVisionConfig) -> None:
        super().__init__()
        self.config = config  # read at run time: `set_attn_implementation` changes it
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // self.num_heads
        self.scale = self.head_size**-0.5
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.dropout)
        self.qk_normalization = config.qk_normalization
        if self.qk_normalization:
            self.q_norm = RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.k_norm = RMSNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> AttentionOutput:
        """(tiles, N, C) to (tiles, N, C).

        Returns:
            The output, and the attention weights where the implementation is eager, else None.
        """
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)  # each (tiles, N, C)
        if self.qk_normalization:
            query = self.q_norm(query)
            key = self.k_norm(key)
        query = self._split_heads(query)
        key = self._split_heads(key)
        value = self._split_heads(value)
        dropout = self.attention_dropout if self.training else 0.0
        attend = ATTENTION.get(self.config._attn_implementation, sdpa_attention)
        output, weights = attend(query, key, value, self.scale, dropout)
        output = output.transpose(1, 2).flatten(2)  # (tiles, N, C)
        return self.proj_drop(self.proj(output)), weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(tiles, N, C) to (tiles, heads, N, head size)."""
        return states.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)


class VisionMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: SkyworkVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(tiles, N, C) to (tiles, N, C)."""
        return self.fc2(self.act(self.fc1(hidden_states)))


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole tiles while training (arXiv:1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """(tiles, N, C) to (tiles, N, C), scaled so that the mean stays."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        mask_shape = (branch.shape[0], *[1] * (branch.dim() - 1))
        mask = branch.new_empty(mask_shape).bernoulli_(keep)
        return branch * mask / keep


class VisionLayer(nn.Module):
    """A pre-norm transformer block with layer scale (arXiv:2103.17239)."""

    def __init__(self, config: SkyworkVisionConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)
        self.norm1 = NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)
        self.ls1 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.drop_path = StochasticDepth(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor) -> AttentionOutput:
        """(tiles, N, C) to (tiles, N, C), and the attention weights or None."""
        attention, weights = self.attn(self.norm1(hidden_states))
        hidden_states = hidden_states + self.drop_path(attention * self.ls1)
        mlp = self.mlp(self.norm2(hidden_states))
        hidden_states = hidden_states + self.drop_path(mlp * self.ls2)
        return hidden_states, weights


class VisionEncoder(nn.Module):
    """The stack of layers; `num_layers` of them are computed."""

    def __init__(self, config: SkyworkVisionConfig) -> None:
        super().__init__()
        last = max(config.num_hidden_layers - 1, 1)
        # Plain Python numbers: under transformers 5 modules are built on the meta device, where a
        # tensor has no values.
        rates = [config.drop_path_rate * index / last for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([VisionLayer(config, rate) for rate in rates])
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_layers: int | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """(tiles, N, C) to an output with `last_hidden_state` (tiles, N, C)."""
        all_hidden_states = [hidden_states]
        all_attentions = []
        for layer in self.layers[:num_layers]:
            if self.gradient_checkpointing and self.training:
                # transformers sets the function when checkpointing is turned on.
                checkpoint: Any = self._gradient_checkpointing_func
                hidden_states, weights = checkpoint(layer.__call__, hidden_states)
            else:
                hidden_states, weights = layer(hidden_states)
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            if output_attentions:
                all_attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )


class SkyworkVisionModel(PreTrainedModel):
    """InternViT as a model of its own.

    Args:
        config: `SkyworkVisionConfig`. Its attention implementation (`eager`, `sdpa`,
            `flash_attention_2`) is the one given as `attn_implementation=` when the model is built
            or loaded.
    """

    config_class = SkyworkVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vision_model"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn_2 = True  # the flag's name before transformers 4.54
    _supports_flash_attn = True
    _no_split_modules = ["VisionLayer"]

    def __init__(self, config: SkyworkVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for its own dispatcher in the text of this file. Ours reads the config
        # as well, so that its attention implementation can be changed.
        return True

    def _init_weights(self, module: nn.Module) -> None:
        initialize_vision_module(module, self.config)

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings."""
        return self.embeddings

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        num_layers: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode tiles.

        Args:
            pixel_values: (tiles, channels, height, width), normalised pixels; sides are multiples
                of `patch_size`.
            pixel_embeds: (tiles, N, C), what `embeddings` gives, in place of `pixel_values`.
            num_layers: compute only this many layers; None is all of them.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (tiles, N, C); `pooler_output`
            (tiles, C), the class token; and, if asked for, `hidden_states`, embeddings first, and
            `attentions` (eager attention only).

        Raises:
            ValueError: neither or both inputs, or a shape that cannot be cut into patches.
        """
        if (pixel_values is None) == (pixel_embeds is None):
            raise ValueError("Exactly one of pixel_values and pixel_embeds must be given.")
        if pixel_values is not None:
            self._check_shape(pixel_values)
            pixel_embeds = self.embeddings(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        output = self.encoder(
            pixel_embeds,
            num_layers=num_layers,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=output.last_hidden_state[:, 0],
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def _check_shape(self, pixel_values: torch.Tensor) -> None:
        channels = self.config.num_channels
        patch_size = self.config.patch_size
        has_channels = pixel_values.dim() == 4 and pixel_values.shape[1] == channels
        sides = pixel_values.shape[2:]
        has_patches = all(side >= patch_size and side % patch_size == 0 for side in sides)
        if not has_channels or not has_patches:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected (tiles, {channels}, "
                f"height, width) with sides that are multiples of patch_size={patch_size} pixels."
            )


def initialize_vision_module(module: nn.Module, config: Any) -> None:
    """Initialise one module's own parameters, but for those that a checkpoint has filled."""
    std = config.initializer_range
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        fill_unless_loaded(module.weight, "normal_", 0.0, std)
        fill_unless_loaded(module.bias, "zero_")
    elif isinstance(module, PatchEmbeddings):
        fill_unless_loaded(module.class_embedding, "normal_", 0.0, std)
        fill_unless_loaded(module.position_embedding, "normal_", 0.0, std)
    elif isinstance(module, VisionLayer):
        fill_unless_loaded(module.ls1, "fill_", config.initializer_factor)
        fill_unless_loaded(module.ls2, "fill_", config.initializer_factor)
    elif isinstance(module, (RMSNorm, nn.LayerNorm)):
        fill_unless_loaded(module.weight, "fill_", 1.0)
        fill_unless_loaded(getattr(module, "bias", None), "zero_")
