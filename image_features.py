"""Image features: from pixels to the embeddings that take the place of a prompt's image tokens.

`ImageFeatureMixin` is a part of both model classes. Tiles go through the vision tower, pixel
shuffle and the projector `mlp1` (section 2.1 of the report of R1V), and their features replace the
embeddings of the image tokens, tile by tile in the order of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_skywork_chat import SkyworkChatConfig

# Tiles are encoded in chunks of about this many positions. On a GPU that is 16 tiles of 448 pixels,
# which bounds the activations of InternViT-6B at about 1 GB in bf16, whatever the number of tiles.
# On a CPU it is one tile, whose activations stay in the processor's cache.
POSITIONS_PER_CHUNK = 16 * 1025
POSITIONS_PER_CHUNK_ON_CPU = 1025


class ImageFeatureMixin:
    """The vision part of a model, and where its features go.

    Attributes:
        vision_model: the vision tower.
        mlp1: the projector.
        img_context_token_id: the id of the image tokens.
        whole_batches_of_tiles: whether all tiles are encoded at once. Training with parameters
            sharded over processes (FSDP, ZeRO-3) sets it, for its evaluations too: every process
            has to call every module equally often.
    """

    whole_batches_of_tiles = False

    if TYPE_CHECKING:  # what the model class brings
        config: SkyworkChatConfig
        vision_model: Any
        mlp1: nn.Sequential
        img_context_token_id: int
        training: bool
        get_input_embeddings: Callable[[], nn.Module]

    def pixel_shuffle(self, features: torch.Tensor) -> torch.Tensor:
        """Merge squares of f × f patches into the channels (f is `config.shuffle_factor`).

        Order "v2" keeps rows first. "v1", of the first InternVL, gives the tokens column by column.

        Args:
            features: (tiles, rows, columns, C).

        Returns:
            (tiles, rows / f, columns / f, C · f²).
        """
        factor = self.config.shuffle_factor
        features = features.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))
        # now (tiles, rows / f, f, columns / f, f, C)
        features = features.permute(0, 1, 3, 2, 4, 5)  # (tiles, rows / f, columns / f, f, f, C)
        features = features.flatten(3)  # (tiles, rows / f, columns / f, f · f · C)
        return features.transpose(1, 2) if self.config.ps_version == "v1" else features

    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features in the language model's width H.

        Tiles are encoded in chunks, but for training with sharded parameters, and where
        torch.compile, torch.export or torch.jit.trace follow the computation: there the number of
        tiles stays open.

        Args:
            pixel_values: (tiles, channels, side, side), normalised pixels.

        Returns:
            (tiles, num_image_token, H).

        Raises:
            ValueError: a shape that the vision tower cannot cut into patches.
        """
        device = self.vision_model.embeddings.patch_embedding.weight.device
        if device.type != "meta":  # of an offloaded tower a hook moves the inputs
            pixel_values = pixel_values.to(device)
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self.whole_batches_of_tiles or is_traced:
            return self._encode_tiles(pixel_values)
        num_pixels = pixel_values.shape[-2] * pixel_values.shape[-1]
        num_positions = 1 + num_pixels // self.config.vision_config.patch_size**2
        on_cpu = device.type == "cpu"
        limit = POSITIONS_PER_CHUNK_ON_CPU if on_cpu else POSITIONS_PER_CHUNK
        chunks = pixel_values.split(max(1, limit // num_positions))
        features = [self._encode_tiles(chunk) for chunk in chunks]
        return features[0] if len(features) == 1 else torch.cat(features)

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Image features with what the vision tower computed, all tiles at once.

        Name and result are those of the multimodal models of transformers 5; inside this model,
        `extract_feature` is used.

        Args:
            pixel_values: (tiles, channels, side, side).
            output_hidden_states, output_attentions: keep those of the vision tower.
            return_dict: False gives a tuple; by default what the config says.

        Returns:
            `BaseModelOutputWithPooling`: pooler_output (tiles, num_image_token, H) has the
            features, the other fields are the vision tower's.
        """
        tower = self.vision_model(
            pixel_values=pixel_values,
            num_layers=self.config.num_vision_layers_used,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=tower.last_hidden_state,
            pooler_output=self._project(tower.last_hidden_state, pixel_values.shape[-1]),
            hidden_states=tower.hidden_states,
            attentions=tower.attentions,
        )
        if return_dict is None:
            return_dict = self.config.use_return_dict
        return output if return_dict else output.to_tuple()

    def _encode_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(tiles, channels, side, side) to (tiles, num_image_token, H), in one pass."""
        hidden_states = self.vision_model(
            pixel_values=pixel_values, num_layers=self.config.num_vision_layers_used
        ).last_hidden_state  # (tiles, 1 + rows · columns, C)
        return self._project(hidden_states, pixel_values.shape[-1])

    def _project(self, hidden_states: torch.Tensor, width: int) -> torch.Tensor:
        """The vision tower's states (tiles, 1 + patches, C) to (tiles, num_image_token, H).

        Args:
            width: of a tile, in pixels.
        """
        patches = hidden_states[:, 1:]  # without the class token
        num_columns = width // self.config.vision_config.patch_size
        grid = patches.unflatten(1, (-1, num_columns))  # (tiles, rows, columns, C)
        features = self.pixel_shuffle(grid).flatten(1, 2)  # (tiles, num_image_token, C · f²)
        return self.mlp1(features.to(next(self.mlp1.parameters()).dtype))

    def _num_features_per_tile(self, pixel_values: torch.Tensor) -> int:
        """How many features a tile of this height and width gives, before it is encoded."""
        token_side = self.config.vision_config.patch_size * self.config.shuffle_factor  # pixels
        height, width = pixel_values.shape[-2:]
        return (height // token_side) * (width // token_side)

    def embed(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_token_id: int | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings with the image features in place of the image tokens.

        Args:
            input_ids: (batch, length); or None where `inputs_embeds` (batch, length, H) are given,
                in which the image tokens are known by their embedding.
            pixel_values: (tiles, channels, side, side) of all rows, in the order of their tokens.
            image_flags: (tiles,) or (tiles, 1); tiles flagged 0 are padding, without tokens in the
                prompt.
            image_features: (tiles, num_image_token, H), what `extract_feature` gave, in place of
                `pixel_values`.
            image_token_id: the id that is replaced, if it is not `img_context_token_id`.

        Returns:
            (batch, length, H).

        Raises:
            ValueError: images that give more or fewer features than there are image tokens. Image
                tokens that a model wrote, in runs shorter than a tile, do not count.
        """
        padding = None
        if image_flags is not None and pixel_values is not None:
            is_flagged = image_flags.flatten().to(pixel_values.device) == 1
            padding = pixel_values[~is_flagged]
            pixel_values = pixel_values[is_flagged]
        token_id = self.img_context_token_id if image_token_id is None else image_token_id
        if inputs_embeds is not None:
            is_image = self._is_embedding_of(inputs_embeds, token_id)  # (batch, length)
            embeds = inputs_embeds
        else:
            is_image = input_ids == token_id
            embeds = self.get_input_embeddings()(input_ids)  # (batch, length, H)
        num_tiles, features_per_tile = self._tiles_and_features(pixel_values, image_features)
        if not torch.compiler.is_compiling():  # masked_scatter fails there if there are too few
            is_image = placeholders(is_image, num_tiles, features_per_tile, token_id)
        if not num_tiles:
            return self._with_vision_gradient(embeds, padding)
        if pixel_values is not None:
            image_features = self.extract_feature(pixel_values)
        image_features = image_features.flatten(0, -2)  # (tiles · num_image_token, H)
        image_features = image_features.to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1).to(embeds.device), image_features)

    def _is_embedding_of(self, inputs_embeds: torch.Tensor, token_id: int) -> torch.Tensor:
        """Which positions have the embedding of a token: (batch, length), bool."""
        embeddings: Any = self.get_input_embeddings()
        token = torch.tensor(token_id, device=embeddings.weight.device)
        embedding = embeddings(token).to(inputs_embeds.device, inputs_embeds.dtype)
        return (inputs_embeds == embedding).all(dim=-1)

    def _tiles_and_features(
        self, pixel_values: torch.Tensor | None, image_features: torch.Tensor | None
    ) -> tuple[int, int]:
        """The number of tiles, and of the features of each."""
        if image_features is not None:
            return len(image_features), image_features.shape[1:-1].numel()
        if pixel_values is not None:
            return len(pixel_values), self._num_features_per_tile(pixel_values)
        return 0, self.config.num_image_token

    def _with_vision_gradient(
        self, inputs_embeds: torch.Tensor, padding: torch.Tensor | None
    ) -> torch.Tensor:
        """The embeddings of a batch without images, with a gradient of zero for the vision part.

        A step of training needs a gradient for something that trains, and over several processes
        for everything that trains. It comes from a blank tile (of padding, where the batch has
        one), or from the projector alone where the vision tower does not train. With parameters
        sharded over processes it is always a tile, without gradients too.
        """
        is_sharded = self.whole_batches_of_tiles
        if not is_sharded and not (self.training and torch.is_grad_enabled()):
            return inputs_embeds
        tower_trains = any(weight.requires_grad for weight in self.vision_model.parameters())
        projector_trains = any(weight.requires_grad for weight in self.mlp1.parameters())
        if not is_sharded and not tower_trains and not projector_trains:
            return inputs_embeds
        if padding is not None and len(padding):
            features = self.extract_feature(padding[:1])
        elif tower_trains or is_sharded:
            vision = self.config.vision_config
            weight = self.vision_model.embeddings.patch_embedding.weight
            side = vision.image_size
            features = self.extract_feature(weight.new_zeros(1, vision.num_channels, side, side))
        else:
            weight = next(self.mlp1.parameters())
            features = self.mlp1(weight.new_zeros(1, self.config.merged_size))
        return inputs_embeds + 0 * features.sum().to(inputs_embeds)


def placeholders(
    is_image: torch.Tensor, num_tiles: int, features_per_tile: int, token_id: int
) -> torch.Tensor:
    """Which image tokens the features of tiles replace; checked before images are encoded.

    Args:
        is_image: (batch, length), bool, where the image tokens are.

    Returns:
        (batch, length), bool: all image tokens; or, if there are too many, those in runs of whole
        tiles. The others are words that a model wrote, in a completion that is scored.

    Raises:
        ValueError: another number of image tokens than of features.
    """
    num_features = num_tiles * features_per_tile
    num_tokens = int(is_image.sum())
    if num_tokens == num_features:
        return is_image
    if num_tokens > num_features:
        of_tiles = in_runs_of_whole_tiles(is_image, features_per_tile)
        if int(of_tiles.sum()) == num_features:
            return of_tiles
    raise ValueError(
        f"The prompt has {num_tokens} image tokens (id {token_id}) but the images give "
        f"{num_features} features ({num_tiles} tiles of {features_per_tile}): pass the "
        "pixel_values that the prompt was built for."
    )


def in_runs_of_whole_tiles(is_image: torch.Tensor, features_per_tile: int) -> torch.Tensor:
    """The image tokens of runs whose length is a multiple of a tile's: (batch, length), bool."""
    before = F.pad(is_image, (1, 0))[:, :-1]
    starts = is_image & ~before
    # each run of image tokens has a number from 1, everything else has 0
    runs = starts.flatten().cumsum(0) * is_image.flatten()
    is_whole = torch.bincount(runs) % features_per_tile == 0
    is_whole[0] = False
    return is_whole[runs].view_as(is_image)
