"""The images of `chat()` and `batch_chat()`: which question they belong to, and their tiles.

Users give images as pixel values with the number of tiles of each, as the model card does, as
images to be tiled here, or as features that were encoded before. `ChatImages` is what all of them
become.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoImageProcessor

from .conversation import IMAGE_PLACEHOLDER
from .transformers_compat import LOADS_CLASSES_FROM_FOLDERS

# How images are tiled stands in config.json and in preprocessor_config.json.
SETTINGS_IN_BOTH_FILES = (
    "dynamic_image_size",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "use_thumbnail",
)
# Turns a list of images into pixel values (tiles, channels, side, side) and the tiles of each
# image.
Tiler = Callable[[list], "tuple[torch.Tensor, list[int]]"]


@dataclasses.dataclass
class ImageFeatures:
    """Images that have been through the vision tower and the projector.

    `chat()` takes them in place of pixels. Add two of them (`+`) as a conversation gets more
    images.

    Attributes:
        features: (tiles, num_image_token, H), with H the width of the language model.
        num_patches: number of tiles of each image.
    """

    features: torch.Tensor
    num_patches: list[int]

    def __add__(self, other: Any) -> ImageFeatures:
        """These images and then the others, as a conversation collects them."""
        if not isinstance(other, ImageFeatures):
            return NotImplemented
        features = torch.cat([self.features, other.features.to(self.features)])
        return ImageFeatures(features, [*self.num_patches, *other.num_patches])


@dataclasses.dataclass
class ChatImages:
    """The images of one question or several; at most one of the two tensors is given.

    Attributes:
        num_patches: for each question the number of tiles of each of its images.
        pixel_values: (tiles, channels, side, side) of all questions, in order.
        features: (tiles, num_image_token, H) of all questions, in order.
    """

    num_patches: list[list[int]]
    pixel_values: torch.Tensor | None = None
    features: torch.Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no question has an image."""
        return self.pixel_values is None and self.features is None


def images_of_question(
    images: Any, num_patches_list: Sequence[int] | None, tile: Tiler
) -> ChatImages:
    """The images of a single question, in any form that `chat()` takes.

    Raises:
        ValueError: numbers of images and tiles that do not match.
    """
    if isinstance(images, ImageFeatures):
        if num_patches_list not in (None, images.num_patches):
            raise ValueError(
                f"num_patches_list={num_patches_list}, but the features are of "
                f"{images.num_patches}."
            )
        return ChatImages([images.num_patches], features=images.features)
    if images is None or torch.is_tensor(images):
        if num_patches_list is None and images is not None and len(images):
            num_patches_list = [len(images)]
        return _images_of_pixel_values(images, [list(num_patches_list or [])])
    _check_without_num_patches(num_patches_list)
    return _images_of_groups([_as_list(images)], tile)


def images_of_batch(
    images: Any, num_patches_list: Sequence | None, questions: Sequence[str], tile: Tiler
) -> ChatImages:
    """The images of several questions, in any form that `batch_chat()` takes.

    Raises:
        ValueError: numbers of questions, images and tiles that do not match.
    """
    if images is None or torch.is_tensor(images):
        num_patches = _num_patches_of_questions(num_patches_list, images, questions)
        return _images_of_pixel_values(images, num_patches)
    _check_without_num_patches(num_patches_list)
    if not isinstance(images, (list, tuple)):
        raise ValueError(
            f"images is one {type(images).__name__}; expected pixel_values, or a list with an "
            f"entry for each of the {len(questions)} questions."
        )
    if len(images) != len(questions):
        raise ValueError(
            f"{len(questions)} questions but {len(images)} entries of images: give one for each "
            "question, and None for a question without images."
        )
    if any(isinstance(entry, ImageFeatures) for entry in images):
        return _images_of_features(images)
    return _images_of_groups([_as_list(entry) for entry in images], tile)


def _as_list(entry: Any) -> list:
    """The images of one question as a list."""
    if entry is None:
        return []
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def _images_of_groups(groups: list[list], tile: Tiler) -> ChatImages:
    """Images that are tiled here, from a list of images for each question."""
    flat = list(itertools.chain(*groups))
    if not flat:
        return ChatImages([[] for _ in groups])
    pixel_values, tiles_of_images = tile(flat)
    num_patches = []
    for group in groups:
        num_patches.append(tiles_of_images[: len(group)])
        tiles_of_images = tiles_of_images[len(group) :]
    return ChatImages(num_patches, pixel_values)


def _images_of_features(entries: Sequence[Any]) -> ChatImages:
    """Images that were encoded before, from `ImageFeatures` or None for each question."""
    if not all(entry is None or isinstance(entry, ImageFeatures) for entry in entries):
        raise ValueError(
            "images mixes encoded images with others: pass all of them through encode_images() "
            "first."
        )
    features = []
    num_patches = []
    for entry in entries:
        num_patches.append([] if entry is None else list(entry.num_patches))
        if entry is not None:
            features.append(entry.features)
    return ChatImages(num_patches, features=torch.cat(features))


def _images_of_pixel_values(
    pixel_values: torch.Tensor | None, num_patches: list[list[int]]
) -> ChatImages:
    """Images that were tiled before, once their tiles are found to be as many as stated."""
    num_tiles = 0 if pixel_values is None else len(pixel_values)
    num_patches = [list(map(int, group)) for group in num_patches]
    flat = list(itertools.chain(*num_patches))
    if sum(flat) != num_tiles or any(count < 1 for count in flat):
        raise ValueError(
            f"num_patches_list={flat} stands for {sum(flat)} tiles but pixel_values has "
            f"{num_tiles}: give the number of tiles of each image, each at least 1."
        )
    return ChatImages(num_patches, pixel_values if num_tiles else None)


def _num_patches_of_questions(
    num_patches_list: Sequence | None, pixel_values: Any, questions: Sequence[str]
) -> list[list[int]]:
    """For each question the number of tiles of each of its images.

    Args:
        num_patches_list: a list for each question; or, as in the published code, a number for each
            question, which then has one image, or none where the number is 0.

    Raises:
        ValueError: a list that can be read in several ways, with the list of lists to write.
    """
    entries = list(num_patches_list or [])
    if pixel_values is None and not entries:
        return [[] for _ in questions]  # text alone; an `<image>` in it is a word
    if num_patches_list is None and pixel_values is not None:
        entries = [len(pixel_values)]
    if any(isinstance(entry, (list, tuple)) for entry in entries):
        if len(entries) != len(questions):
            raise ValueError(
                f"{len(questions)} questions but {len(entries)} entries in num_patches_list."
            )
        return [_as_list(entry) for entry in entries]
    _check_one_image_each(entries, questions)
    return [[count] if count else [] for count in entries]


def _check_one_image_each(counts: list[int], questions: Sequence[str]) -> None:
    """Check that a flat list of tiles can only mean one image for each question.

    Raises:
        ValueError: with the list of lists that says what may be meant.
    """
    has_several = any(question.count(IMAGE_PLACEHOLDER) > 1 for question in questions)
    if len(counts) == len(questions) and not has_several:
        return
    raise ValueError(
        f"num_patches_list={counts} has {len(counts)} images for {len(questions)} questions, and a "
        "flat list gives each question one image. Write a list for each question, with the tiles "
        f"of each of its images: {_suggested_lists(counts, questions)}."
    )


def _suggested_lists(counts: list[int], questions: Sequence[str]) -> list[list[int]]:
    """The list of lists that a flat list may have meant: one image for each `<image>`."""
    remaining = list(counts)
    suggestion = []
    for question in questions:
        num_images = question.count(IMAGE_PLACEHOLDER)
        suggestion.append(remaining[:num_images])
        remaining = remaining[num_images:]
    suggestion[-1] += remaining
    return suggestion


def _check_without_num_patches(num_patches_list: Sequence | None) -> None:
    if num_patches_list is not None:
        raise ValueError("num_patches_list goes with pixel_values; images are tiled here.")


def load_image_processor(model: Any) -> Any:
    """The image processor of the repository that a model was loaded from.

    Raises:
        ValueError: a transformers version that cannot load it, or a model that was not loaded from
            a repository.
    """
    if not LOADS_CLASSES_FROM_FOLDERS:
        raise ValueError(
            "Passing images rather than pixel_values needs transformers 4.53 or newer; installed "
            f"is {transformers.__version__}. Prepare pixel_values with the model card's "
            "load_image()."
        )
    source = model.config._name_or_path
    if not source:
        raise ValueError(
            "This model was not loaded from a repository, so it has no image processor for images: "
            "pass pixel_values."
        )
    processor: Any = AutoImageProcessor.from_pretrained(
        source, trust_remote_code=True, **model.hub_keywords
    )
    for name in SETTINGS_IN_BOTH_FILES:
        of_config = getattr(model.config, name)
        of_processor = getattr(processor, name)
        if of_config != of_processor:
            raise ValueError(
                f"{name} is {of_config} in config.json, which engines read, and {of_processor} in "
                "preprocessor_config.json, by which images are tiled here: make both the same."
            )
    return processor
