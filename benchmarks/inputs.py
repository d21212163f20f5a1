"""Random inputs of the models that are measured; the same in every run."""

from __future__ import annotations

import torch

from remote_code import configuration_skywork_chat

TEXT_TOKENS = 32  # of a prompt, besides those of its images


def random_prompt(
    config: configuration_skywork_chat.SkyworkChatConfig,
    tiles: int,
    rows: int = 1,
    text_tokens: int = TEXT_TOKENS,
    device: str = "cpu",
) -> torch.Tensor:
    """Token ids (rows, tokens) with the image tokens of `tiles` tiles in the middle of each row."""
    generator = torch.Generator().manual_seed(0)
    image_tokens = tiles * config.num_image_token
    ids = torch.randint(100, 1000, (rows, text_tokens + image_tokens), generator=generator)
    start = text_tokens // 2
    ids[:, start : start + image_tokens] = config.image_token_id
    return ids.to(device)


def random_tiles(
    config: configuration_skywork_chat.SkyworkChatConfig,
    count: int,
    device: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Pixel values (count, 3, side, side) of tiles."""
    generator = torch.Generator().manual_seed(1)
    side = config.tile_size
    return torch.randn(count, 3, side, side, generator=generator).to(device, dtype)
