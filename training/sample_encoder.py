"""What the model trains on: a checked sample becomes token ids, labels and tiles; samples a batch.

Prompts have the tokens that `chat()` gives them, and the loss is on answers only. An answer
`thinking</think>answer` (a leading `<think>` may be there) is reasoning as R1V writes it; a model
whose template opens no thinking learns it as text, without the marks. An answer without `</think>`
follows a prompt that skips the thinking, as `chat(mode="no-think")` writes it, or with
`loss_on_skipped_thinking` is learned as one that closes the thinking at once.

A sample that is too long gets fewer tiles or raises `TooLongError`; nothing is cut off. sources.py
counts it and, in a file or table, puts another sample in its place.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from preprocessor.image_loading import open_image
from preprocessor.image_settings import opening_keywords
from preprocessor.tiling import count_tiles
from remote_code import conversation
from training.rows import ChatSample, SampleError, TooLongError, local_path

IGNORED = -100  # the label of tokens without loss, as PyTorch has it
LONG_SAMPLES = ("fewer_tiles", "drop")


class ImageSize(NamedTuple):
    """Width and height of an image in pixels."""

    width: int
    height: int


NO_IMAGE = ImageSize(0, 0)


class SampleEncoder:
    """Turns a `ChatSample` into ids, labels and tiles.

    Args:
        config: `SkyworkChatConfig` of the model.
        tokenizer, image_processor: those of its repository.
        max_length: largest number of tokens of a sample.
        max_tiles: largest number of tiles of an image, thumbnail not counted; by default the image
            processor's.
        long_samples: "fewer_tiles" halves the tiles of a sample's images until it fits, and drops
            it if even one tile for each image is too much; "drop" drops it at once. Nothing is ever
            cut off.
        loss_on_skipped_thinking: whether a model learns to close its thinking at once from answers
            without thinking; otherwise the prompt closes it.

    Raises:
        ValueError: an unknown value of long_samples.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        max_length: int,
        max_tiles: int | None = None,
        long_samples: str = "fewer_tiles",
        loss_on_skipped_thinking: bool = False,
    ) -> None:
        if long_samples not in LONG_SAMPLES:
            raise ValueError(
                f"long_samples={long_samples!r} is unknown; expected 'fewer_tiles' or 'drop'."
            )
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = conversation.get_conv_template(config.template)
        self.tokens_per_tile: int = config.num_image_token
        self.max_length = max_length
        self.long_samples = long_samples
        self.loss_on_skipped_thinking = loss_on_skipped_thinking
        self.max_tiles: int = max_tiles or image_processor.max_dynamic_patch

    def __call__(self, sample: ChatSample, image_root: str | Path | None = None) -> dict[str, Any]:
        """The encoded sample.

        Returns:
            input_ids and labels (int64, length); pixel_values (tiles, 3, side, side), or None
            without images; fewer_tiles: whether the images have fewer tiles than they would in
            inference.

        Raises:
            SampleError: an image that cannot be read.
            TooLongError: more than `max_length` tokens.
        """
        images = [self._open(image, image_root) for image in sample.images]
        limit, ids, labels = self._fit(sample, images)
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "pixel_values": self._pixel_values(images, limit),
            "fewer_tiles": limit < self.max_tiles,
        }

    def with_max_tiles(self, max_tiles: int | None) -> SampleEncoder:
        """The same encoder with another limit of tiles; None for the same limit."""
        changed = copy.copy(self)
        changed.max_tiles = max_tiles or self.max_tiles
        return changed

    @property
    def fingerprint(self) -> str:
        """Changes with whatever the number of tokens of a sample depends on."""
        processor = self.image_processor
        tokenizer: Any = self.tokenizer
        decisive = [
            self.template.name,
            self.tokens_per_tile,
            self.max_length,
            self.max_tiles,
            self.long_samples,
            self.loss_on_skipped_thinking,
            processor.dynamic_image_size,
            processor.min_dynamic_patch,
            processor.use_thumbnail,
            processor.size,
            tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.blake2b(repr(decisive).encode(), digest_size=8).hexdigest()

    def count_tokens(self, sample: ChatSample, image_root: str | Path | None = None) -> int:
        """Number of tokens of a sample, from the headers of its images; `max_length` at most.

        An image that is no file counts as one of all tiles. One that cannot be read has none: it is
        reported when its turn comes.
        """
        text_ids, _ = self.tokens(sample, [0] * len(sample.images))
        sizes = [_size_of_file(local_path(image, image_root)) for image in sample.images]
        for limit in self._limits(bool(sizes)):
            tiles = sum(self._tiles_of_size(size, limit) for size in sizes)
            tokens = len(text_ids) + tiles * self.tokens_per_tile
            if tokens <= self.max_length:
                return tokens
        return self.max_length  # it will be left out

    def _tiles_of_size(self, size: ImageSize | None, limit: int) -> int:
        """Tiles of an image whose size is known, or else the most that it can have."""
        if size is None:
            has_thumbnail = self.image_processor.use_thumbnail and limit > 1
            return limit + has_thumbnail
        if size is NO_IMAGE:
            return 0
        return self.count_tiles(size, limit)

    def _fit(self, sample: ChatSample, images: list[Any]) -> tuple[int, list[int], list[int]]:
        """The largest number of tiles of an image with which a sample fits, its ids and labels.

        Raises:
            TooLongError: it does not fit with any.
        """
        num_tokens = 0
        limits = self._limits(bool(images))
        for limit in limits:
            tiles = [self.count_tiles(ImageSize(*image.size), limit) for image in images]
            ids, labels = self.tokens(sample, tiles)
            if len(ids) <= self.max_length:
                return limit, ids, labels
            num_tokens = len(ids)
        raise TooLongError(
            f"{num_tokens} tokens with at most {limits[-1]} tiles an image; {self.max_length} are "
            "allowed"
        )

    def _limits(self, has_images: bool) -> list[int]:
        """The numbers of tiles of an image to try, until a sample fits."""
        limits = [self.max_tiles]
        if has_images and self.long_samples == "fewer_tiles":
            while limits[-1] > 1:
                limits.append(limits[-1] // 2)
        return limits

    def _pixel_values(self, images: list[Any], limit: int) -> torch.Tensor | None:
        """The tiles of all images, or None without images."""
        if not images:
            return None
        smallest = min(self.image_processor.min_dynamic_patch, limit)
        tiled = self.image_processor(
            images=images, min_dynamic_patch=smallest, max_dynamic_patch=limit
        )
        return tiled["pixel_values"]

    def tokens(self, sample: ChatSample, tiles: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids and labels of a conversation; labels of prompts are IGNORED.

        Args:
            tiles: number of tiles of each image.
        """
        remaining = [self.tokens_per_tile * count for count in tiles]
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(sample.turns):
            num_images = min(question.count(conversation.IMAGE_PLACEHOLDER), len(remaining))
            is_first = number == 0
            system_message = ""
            if is_first:
                system_message = sample.system or self.template.system_message
            opened = conversation.open_conversation(
                self.template,
                conversation.Question(question, num_images),
                system_message=system_message,
            )
            prompt_segments = opened.segments(remaining[:num_images])
            skipped, reply_segments = self._reply(answer)
            if self.loss_on_skipped_thinking:
                reply_segments = skipped + reply_segments
            else:
                prompt_segments += skipped
            prompt = conversation.encode_segments(
                self.tokenizer, prompt_segments, self.template.begin if is_first else ""
            )
            reply = conversation.encode_segments(self.tokenizer, reply_segments)
            ids += prompt + reply
            labels += [IGNORED] * len(prompt) + reply
            remaining = remaining[num_images:]
        return ids, labels

    def _reply(self, answer: str) -> tuple[list[conversation.Segment], list[conversation.Segment]]:
        """The segments that skip the thinking, for an answer without one, and those of the answer.

        The first `</think>` is control where the template has opened the thinking; the template
        opens it itself, so a `<think>` in front is left out.
        """
        end: conversation.Segment = (self.template.sep, True)
        if conversation.THINK_END not in answer:
            skipped = [(self.template.skipped_thinking, True)]
            return skipped, [(answer, False), end]
        if answer.lstrip().startswith(conversation.THINK_START):
            answer = answer.lstrip().removeprefix(conversation.THINK_START).removeprefix("\n")
        if not self.template.opens_thinking:
            parts = conversation.split_thinking(answer)
            text = "\n\n".join(part for part in parts if part)
            return [], [(text, False), end]
        thinking, mark, rest = answer.partition(conversation.THINK_END)
        return [], [(thinking, False), (mark, True), (rest, False), end]

    def _open(self, image: Any, image_root: str | Path | None) -> Any:
        """The PIL image of an entry of a sample's images.

        Raises:
            SampleError: it cannot be read.
        """
        if isinstance(image, dict):  # as `datasets` gives an image that it did not decode
            image = image.get("bytes") or image.get("path")
        source = local_path(image, image_root) or image
        try:
            return open_image(source, **opening_keywords(self.image_processor))
        except (OSError, ValueError, TypeError) as error:
            raise SampleError(f"image: {error}") from error

    def count_tiles(self, size: ImageSize, limit: int) -> int:
        """Tiles of an image, thumbnail included.

        Args:
            size: in pixels.
            limit: largest number of tiles, thumbnail not counted.
        """
        processor = self.image_processor
        if not processor.dynamic_image_size:
            return 1
        smallest = min(processor.min_dynamic_patch, limit)
        return count_tiles(
            size.width, size.height, smallest, limit, processor.size, processor.use_thumbnail
        )


def _size_of_file(path: Path | None) -> ImageSize | None:
    """The size of an image from the header of its file.

    Returns:
        None without a file; NO_IMAGE if it cannot be read.
    """
    if path is None:
        return None
    try:
        with Image.open(path) as opened:
            return ImageSize(*opened.size)
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError):
        return NO_IMAGE


@dataclasses.dataclass
class Collator:
    """Pads encoded samples on the right to a batch.

    A batch without images gets one empty tile that is flagged as padding. So the projector takes
    part in every step, which gradients across processes need.

    Attributes:
        pad_token_id: fills input_ids; attention_mask and labels leave it out.
        tile_shape: (3, side, side), in pixels.
    """

    pad_token_id: int
    tile_shape: tuple[int, int, int]

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of what `SampleEncoder` gives, as the model's forward takes it."""
        length = max(len(sample["input_ids"]) for sample in samples)
        input_ids = torch.full((len(samples), length), self.pad_token_id)
        labels = torch.full((len(samples), length), IGNORED)
        attention_mask = torch.zeros(len(samples), length, dtype=torch.int64)
        for row, sample in enumerate(samples):
            num_tokens = len(sample["input_ids"])
            input_ids[row, :num_tokens] = sample["input_ids"]
            labels[row, :num_tokens] = sample["labels"]
            attention_mask[row, :num_tokens] = 1
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            **self._tiles(samples),
        }

    def pack(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One row of all samples, one after another, that do not see each other.

        The positions of each start at 0. There is no attention mask, which would hide that from
        transformers. The first token of a sample is of a prompt, so none is predicted from the
        sample before.
        """
        positions = [torch.arange(len(sample["input_ids"])) for sample in samples]
        return {
            "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
            "position_ids": torch.cat(positions)[None],
            "labels": torch.cat([sample["labels"] for sample in samples])[None],
            **self._tiles(samples),
        }

    def _tiles(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The tiles of all samples, with their flags."""
        tiles = []
        for sample in samples:
            if sample["pixel_values"] is not None:
                tiles.append(sample["pixel_values"])
        pixel_values = torch.cat(tiles) if tiles else torch.zeros(1, *self.tile_shape)
        flags = torch.full((len(pixel_values),), int(bool(tiles)))
        return {"pixel_values": pixel_values, "image_flags": flags}
