"""How much the tokens of an answer attended to each part of its images: what is compared with.

    [weights] = attended(model, scored, images, cells_per_side=12)

The mean over layers and heads, as it is often shown. It is what the model read, which is not always
what its answer depends on: see `python -m explain.check`, the only user of this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from explain.occlusion import TiledImage
from explain.scoring import ScoredAnswer


@torch.no_grad()
def attended(
    model: Any, image_processor: Any, scored: ScoredAnswer, images: list[TiledImage], cells: int
) -> list[np.ndarray]:
    """Maps like those of `where_it_looked`, of attention.

    Args:
        model: with attn_implementation="eager", which alone gives attention weights. All layers'
            are in memory together, (heads, length, length) each.
        image_processor: the checkpoint's.
        scored: the answer.
        images: of the whole conversation.
        cells: along the longer side of an image.

    Returns:
        For each image float64 (rows, columns) with a sum of 1.
    """
    ids = torch.tensor([scored.ids])
    pixel_values = torch.cat([image.pixel_values for image in images])
    output = model(
        input_ids=ids, pixel_values=pixel_values, output_attentions=True, logits_to_keep=1
    )
    weights = torch.stack(output.attentions)[:, 0].mean(dim=(0, 1))  # (length, length)
    # what is read at one place predicts the next
    reading = weights[scored.scored.start - 1 : scored.scored.stop - 1]
    of_tokens = reading[:, scored.is_image].mean(0).double().numpy()  # (image tokens,)
    tokens_per_side = round(model.num_image_token**0.5)
    maps = []
    for image in images:
        boxes = image_processor.token_boxes(*image.picture.size, tokens_per_side)
        maps.append(on_cells(boxes, of_tokens[: len(boxes)], image, cells))
        of_tokens = of_tokens[len(boxes) :]
    return maps


def on_cells(boxes: np.ndarray, values: np.ndarray, image: TiledImage, cells: int) -> np.ndarray:
    """Values of tokens, each spread evenly over its box, as shares of an image's cells.

    Args:
        boxes: of the tokens in pixels, (tokens, 4).
        values: of the tokens, not negative.
    """
    shares = np.zeros(image.grid_shape(cells))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for row, column, (left, upper, right, lower) in image.cells(cells):
        across = np.minimum(boxes[:, 2], right) - np.maximum(boxes[:, 0], left)
        down = np.minimum(boxes[:, 3], lower) - np.maximum(boxes[:, 1], upper)
        common = across.clip(min=0) * down.clip(min=0)
        shares[row, column] = (values * common / areas).sum()
    return shares / shares.sum()
