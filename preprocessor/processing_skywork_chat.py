"""Processor of Skywork-R1V: text and images to model inputs, as pipelines and trainers expect them.

processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
content = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What is it?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import transformers
from packaging import version
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

# Only files that import no further sibling: before 5.9 transformers copies the files that this one
# imports itself.
from .image_loading import flatten_images
from .image_settings import CALL_SETTINGS
from .messages import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    ControlTokenMarker,
    images_of_messages,
)

# Keywords of apply_chat_template that belong to the call; any other is a variable of the template.
CALL_KEYWORDS = (
    "padding",
    "padding_side",
    "truncation",
    "max_length",
    "pad_to_multiple_of",
    "return_attention_mask",
    "images_kwargs",
    "text_kwargs",
    "dtype",
    *CALL_SETTINGS,
)


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The keywords of a call that are about its texts; see `SkyworkChatProcessor.__call__`."""

    padding: bool | str = False
    padding_side: str | None = None
    truncation: bool = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = True

    def updated(self, text_kwargs: dict[str, Any] | None) -> TextSettings:
        """A copy with those values that transformers' `text_kwargs` have."""
        given = text_kwargs or {}
        names = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **{name: given[name] for name in names if name in given})


class SkyworkChatProcessor(ProcessorMixin):
    """Image processor and tokenizer in one, with the chat template.

    Args:
        image_processor: `SkyworkImageProcessor`.
        tokenizer: the checkpoint's tokenizer.
        chat_template: in place of the tokenizer's.
        num_image_token: number of tokens of a tile (`config.num_image_token`).
    """

    if version.parse(transformers.__version__).major < 5:  # read off __init__ since 5.0
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"
        valid_kwargs = ["chat_template", "num_image_token"]

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        num_image_token: int = 256,
        **kwargs: Any,
    ) -> None:
        self.num_image_token = num_image_token
        self.image_token = IMAGE_CONTEXT
        self.image_token_id = None
        if tokenizer is not None:
            self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)
        if chat_template is None:
            chat_template = getattr(tokenizer, "chat_template", None)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        """The names that `__call__` returns."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        images_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
        pad_to_multiple_of: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs of texts with images.

        Args:
            images: an image, a list of images, or a list with a list (or None) for each text.
            text: a text or a list of texts; each `<image>` stands for one image of that text, up to
                their number.
            padding: True or "longest" pads to the longest row, "max_length" to `max_length`.
            padding_side: "left" or "right"; by default the tokenizer's (left).
            truncation: cut texts at `max_length`, except that image tokens are never cut.
            max_length: in tokens.
            add_special_tokens: put the begin-of-sentence token in front where the text does not
                start with it.
            return_tensors: "pt", "np" or None (lists of ids; pixel_values are always tensors).
            images_kwargs, text_kwargs: more settings, as transformers' processors take them.
            pad_to_multiple_of: round the length up to a multiple of this.
            kwargs: go to the image processor.

        Returns:
            `BatchFeature`: input_ids, attention_mask, each (texts, length), and pixel_values
            (tiles, 3, side, side).

        Raises:
            ValueError: fewer `<image>` than images, no text, or truncation through an image.
        """
        settings = TextSettings(
            padding, padding_side, truncation, max_length, pad_to_multiple_of, add_special_tokens
        ).updated(text_kwargs)
        return_tensors = kwargs.pop("common_kwargs", {}).get("return_tensors", return_tensors)
        if text is None:
            raise ValueError("No text was given; for images alone call processor.image_processor.")
        texts = [text] if isinstance(text, str) else list(text)
        images_of_texts = self._images_of_texts(images, texts)
        kwargs.update(images_kwargs or {})
        data, num_patches = self._tile_images(images_of_texts, kwargs)
        rows = self._encode_texts(texts, images_of_texts, num_patches, settings)
        data["input_ids"], masks = self._pad(rows, settings)
        if return_attention_mask:
            data["attention_mask"] = masks
        return BatchFeature(data=data, tensor_type=return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence,
        chat_template: str | None = None,
        tools: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render messages, and with `tokenize` make model inputs of them.

        Args:
            conversation: a list of messages `{"role", "content"}`, or a list of such lists.
                `content` is a string, or parts `{"type": "text", "text"}` and `{"type": "image",
                …}` with the image (PIL, path, URL, base64) under "image", "url", "path", "base64"
                or "image_url".
            tokenize, return_dict: without `tokenize` the text is returned; with both the model
                inputs; with `tokenize` alone their input_ids.
            kwargs: keywords of `__call__`, also in a dict `processor_kwargs`; any other is a
                variable of the template (`enable_thinking`).

        Returns:
            What `tokenize` and `return_dict` ask for. In a text, control tokens that a user typed
            are marked (see `ControlTokenMarker`).
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if is_batch else [conversation]
        call_keywords = dict(kwargs.pop("processor_kwargs", None) or {})
        return_tensors = call_keywords.pop("return_tensors", return_tensors)
        call_keywords.pop("add_special_tokens", None)  # of TRL; the template has written them
        call_keywords.update({name: kwargs.pop(name) for name in CALL_KEYWORDS if name in kwargs})
        images = [images_of_messages(messages, must_have=tokenize) for messages in conversations]
        template_keywords = {
            "chat_template": chat_template or self.chat_template,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **kwargs,
        }
        texts = self._render(conversations, template_keywords)
        if not tokenize:
            return texts if is_batch else texts[0]
        call_keywords.update(return_tensors=return_tensors, add_special_tokens=False)
        inputs = self(text=texts, images=images if any(images) else None, **call_keywords)
        if return_dict:
            return inputs
        ids = inputs["input_ids"]
        is_single_list = return_tensors is None and not is_batch
        return ids[0] if is_single_list else ids

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """As the tokenizer's."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """As the tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)

    def _render(self, conversations: Sequence, keywords: dict[str, Any]) -> list[str]:
        """The text of each conversation, in which control tokens that a user typed are marked."""
        marker = self._marker()
        texts = []
        for messages in conversations:
            marked = marker.mark_messages(messages)
            text = self.tokenizer.apply_chat_template(marked, tokenize=False, **keywords)
            texts.append(text)
        return texts

    def _tile_images(
        self, images_of_texts: list[list], keywords: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        """A dict with the pixel values, if there are images, and the tiles of each image."""
        if not any(images_of_texts):
            return {}, []
        features = self.image_processor(images_of_texts, **keywords)
        return {"pixel_values": features["pixel_values"]}, features["num_patches"].tolist()

    def _marker(self) -> ControlTokenMarker:
        return ControlTokenMarker(self.tokenizer.get_added_vocab())

    def _images_of_texts(self, images: Any, texts: Sequence[str]) -> list[list]:
        """The list of images of each text."""
        if images is None:
            return [[] for _ in texts]
        if _is_nested(images):
            if len(images) != len(texts):
                raise ValueError(f"{len(texts)} texts but {len(images)} lists of images.")
            return [flatten_images(entry) for entry in images]
        flat = flatten_images(images)
        if len(texts) == 1:
            return [flat]
        placeholders = [text.count(IMAGE_PLACEHOLDER) for text in texts]
        if sum(placeholders) != len(flat):
            raise ValueError(
                f"{len(flat)} images for {len(texts)} texts with {placeholders} "
                f"{IMAGE_PLACEHOLDER}: pass a list of images for each text."
            )
        images_of_texts = []
        for count in placeholders:
            images_of_texts.append(flat[:count])
            flat = flat[count:]
        return images_of_texts

    def _encode_texts(
        self,
        texts: Sequence[str],
        images_of_texts: Sequence[list],
        num_patches: Sequence[int],
        settings: TextSettings,
    ) -> list[list[int]]:
        """The ids of each text, with the image tokens of its images.

        Args:
            num_patches: number of tiles of each image, over all texts.
        """
        remaining = iter(num_patches)
        rows = []
        for text, images in zip(texts, images_of_texts):
            tokens_of_images = [next(remaining) * self.num_image_token for _ in images]
            expanded = _expand_placeholders(text, tokens_of_images)
            row = self._encode(expanded, settings.add_special_tokens)
            if settings.truncation:
                row = self._truncate(row, settings.max_length)
            rows.append(row)
        return rows

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text in which control tokens may be marked as text."""
        begin = self.tokenizer.bos_token
        ids = []
        if begin and add_special_tokens and not text.startswith(begin):
            ids.append(self.tokenizer.convert_tokens_to_ids(begin))
        for part in self._marker().split(text):
            if part:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def _truncate(self, row: list[int], max_length: int | None) -> list[int]:
        if max_length is None or len(row) <= max_length:
            return row
        if self.image_token_id in row[max_length:]:
            raise ValueError(
                f"max_length={max_length} would cut through an image of a text of {len(row)} "
                "tokens: raise it, or use fewer tiles (max_dynamic_patch)."
            )
        return row[:max_length]

    def _pad(
        self, rows: list[list[int]], settings: TextSettings
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Rows and their attention masks, of one length if padding is asked for."""
        length = self._padded_length(rows, settings)
        on_left = (settings.padding_side or self.tokenizer.padding_side) == "left"
        padded = []
        masks = []
        for row in rows:
            num_padding = max(0, length - len(row))
            padding = [self.tokenizer.pad_token_id] * num_padding
            ones = [1] * len(row)
            zeros = [0] * num_padding
            padded.append(padding + row if on_left else row + padding)
            masks.append(zeros + ones if on_left else ones + zeros)
        return padded, masks

    def _padded_length(self, rows: list[list[int]], settings: TextSettings) -> int:
        """The length that rows are padded to; 0 for no padding."""
        length = 0
        if settings.padding is True or settings.padding == "longest":
            length = max(len(row) for row in rows)
        elif settings.padding == "max_length":
            length = settings.max_length or self.tokenizer.model_max_length
        multiple = settings.pad_to_multiple_of
        return -(-length // multiple) * multiple if multiple else length


def _is_nested(images: Any) -> bool:
    """Whether images are a list with a list, or None, for each text."""
    if not isinstance(images, (list, tuple)):
        return False
    return any(entry is None or isinstance(entry, (list, tuple)) for entry in images)


def _expand_placeholders(text: str, tokens_of_images: Sequence[int]) -> str:
    """The text with image tokens in place of the first `<image>`, one for each image.

    Args:
        tokens_of_images: number of tokens of each image.
    """
    num_images = len(tokens_of_images)
    parts = text.split(IMAGE_PLACEHOLDER, num_images)
    if len(parts) <= num_images:
        plural = "s" if num_images != 1 else ""
        raise ValueError(
            f"{num_images} image{plural} but {len(parts) - 1} {IMAGE_PLACEHOLDER} in the text: "
            f"write one {IMAGE_PLACEHOLDER} where each image belongs."
        )
    expanded = [parts[0]]
    for num_tokens, part in zip(tokens_of_images, parts[1:]):
        expanded.append(IMAGE_START + IMAGE_CONTEXT * num_tokens + IMAGE_END)
        expanded.append(part)
    return "".join(expanded)
