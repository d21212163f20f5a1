"""Where a model looked: for each image a map of what its answer depends on.

    from explain.looking import where_it_looked

    [weights] = where_it_looked(model, tokenizer, "a.png", "How many?", answer)
    weights  # (rows, columns) of cells, each an equal part of the image; their sum is 1

`explain/picture.py` shows them over the image.

The method is occlusion (explain/occlusion.py): of those that `python -m explain.check` compares it
is the one whose maps lie on what the questions are about.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from explain.occlusion import Occlusion, TiledImage
from explain.scoring import Prompt, ScoredAnswer, check_mode
from remote_code import chat_images


@dataclasses.dataclass(frozen=True)
class LookSettings:
    """How images are covered, and how the question was asked.

    Attributes:
        cells_per_side: along the longer side of an image. An image takes about the square of it in
            forward passes, of which those over cells of the median colour are left out.
        mode, system_message: as the question was asked with, see `chat()`.

    Raises:
        ValueError: fewer than one cell, or an unknown mode.
    """

    cells_per_side: int = 12
    mode: str = "think"
    system_message: str | None = None

    def __post_init__(self) -> None:
        if self.cells_per_side < 1:
            raise ValueError(f"cells_per_side={self.cells_per_side}: expected 1 or more.")
        check_mode(self.mode)


def where_it_looked(
    model: Any,
    tokenizer: Any,
    images: Any,
    question: str,
    answer: str,
    passage: str | None = None,
    history: list | None = None,
    settings: LookSettings | None = None,
) -> list[np.ndarray]:
    """Which parts of its images an answer depends on.

    Each cell of an image is covered in turn; its weight is by how much less likely the answer
    becomes. A conclusion that repeats what was thought depends on the thinking, which has read the
    image. So all that the model wrote is taken together, or a passage of it by itself, such as the
    value of one bar.

    Args:
        model: of `AutoModel` or `AutoModelForImageTextToText`, in evaluation mode.
        tokenizer: the checkpoint's tokenizer, or its processor.
        images: all images of the conversation, one or a list: paths, URLs, PIL images.
        question: as it was asked.
        answer: what the model wrote, with its thinking up to `</think>`.
        passage: words of the answer, where they stand first, that are explained by themselves.
        history: earlier turns, as `chat()` takes them.
        settings: `LookSettings`; None is its defaults.

    Returns:
        For each image float64 (rows, columns), not negative, with a sum of 1. Cells are equal parts
        of the image, turned as the camera was held. All are equal where covering an image lowers
        nothing.

    Raises:
        OSError, ValueError: no image or one that cannot be read; see also `ScoredAnswer`.
    """
    settings = settings or LookSettings()
    dtype = model.vision_model.embeddings.patch_embedding.weight.dtype
    image_processor = image_processor_of(model, tokenizer)
    opened = []
    for source in as_list(images):
        opened.append(TiledImage.read(source, image_processor, dtype))
    if not opened:
        raise ValueError("No image was given to look for what the answer depends on.")
    num_patches = [len(image.boxes) for image in opened]
    prompt = Prompt(question, num_patches, history, settings.mode, settings.system_message)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    occlusion = Occlusion(model, ScoredAnswer(model, tokenizer, prompt, answer, passage), opened)
    maps = []
    for index in range(len(opened)):
        maps.append(as_weights(occlusion.drops(index, settings.cells_per_side)))
    return maps


def image_processor_of(model: Any, tokenizer: Any) -> Any:
    """That of a processor, or of the repository that the model was loaded from."""
    return getattr(tokenizer, "image_processor", None) or chat_images.load_image_processor(model)


def as_list(images: Any) -> list:
    """One image or several as a list; None is no image."""
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def as_weights(values: np.ndarray) -> np.ndarray:
    """What is above 0, with a sum of 1; all equal where nothing is."""
    positive = np.maximum(values, 0)
    total = positive.sum()
    if not total:
        return np.full(values.shape, 1 / values.size)
    return positive / total
