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
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import transformers
from packaging import version
from transformers import GenerationConfig
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

# Only files that import no further sibling: before 5.9 transformers copies the files that this one
# imports itself.
from .image_settings import CALL_SETTINGS, IMAGE_KEYWORDS, check_fixed
from .messages import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    flatten_images,
    read_messages,
    split_at_marks,
)

logger = logging.get_logger(__name__)

# The side in pixels of the square of an image that becomes one token: the vision encoders of this
# family have patches of 14 pixels, and pixel shuffle makes one token of 2 × 2 of them.
PIXELS_PER_TOKEN = 28
# Keywords that transformers' callers pass with the value that describes what is done here anyway,
# and what to say where it is another.
FIXED_KEYWORDS = {
    "return_token_type_ids": (False, "this model has no token types"),
    "return_overflowing_tokens": (False, "rows are never split"),
    "sanitize_control_tokens": (True, "control tokens in messages are always read as text"),
}
DEFAULT_GENERATION = GenerationConfig()
# (start, stop) in the characters of a rendered text, of what the model is to write.
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The keywords of a call that are about its texts; see `SkyworkChatProcessor.__call__`."""

    padding: bool | str = False
    padding_side: str | None = None
    truncation: bool = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = True
    return_attention_mask: bool = True
    return_mm_token_type_ids: bool = False

    def updated(self, given: dict[str, Any] | None) -> TextSettings:
        """A copy with those settings that are in a dict, such as transformers' `text_kwargs`.

        Raises:
            ValueError: a setting that has been given before.
        """
        new = {name: value for name, value in (given or {}).items() if name in TEXT_KEYWORDS}
        default = TextSettings()
        for name, value in new.items():
            if getattr(self, name) != getattr(default, name):
                raise _given_twice(name, getattr(self, name), value)
        return dataclasses.replace(self, **new)


TEXT_KEYWORDS = tuple(field.name for field in dataclasses.fields(TextSettings))


@dataclasses.dataclass
class EncodedText:
    """The tokens of a text.

    Attributes:
        ids: token ids.
        in_span: for each token 1 if it has a character of a span, or 0; empty without spans.
    """

    ids: list[int] = dataclasses.field(default_factory=list)
    in_span: list[int] = dataclasses.field(default_factory=list)


class SkyworkChatProcessor(ProcessorMixin):
    """Image processor and tokenizer in one, with the chat template.

    Args:
        image_processor: `SkyworkImageProcessor`.
        tokenizer: the checkpoint's tokenizer.
        chat_template: in place of the tokenizer's.
        num_image_token: number of tokens of a tile (`config.num_image_token`); by default as many
            as the image processor's tile has squares of `PIXELS_PER_TOKEN` pixels.
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
        num_image_token: int | None = None,
        **kwargs: Any,
    ) -> None:
        side = getattr(image_processor, "size", 448)
        self.num_image_token = num_image_token or (side // PIXELS_PER_TOKEN) ** 2
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

    @property
    def image_seq_length(self) -> int:
        """`num_image_token` under the name that trainers and servers look for."""
        return self.num_image_token

    def image_token_boxes(self, width: int, height: int, **kwargs: Any) -> Any:
        """Where in an image each of its image tokens lies: for maps of attention or of features.

        Args:
            width, height: of the image, in pixels.
            kwargs: settings of the image processor, as in a call.

        Returns:
            float64 (tokens, 4), in pixels; see `SkyworkImageProcessor.token_boxes`.
        """
        tokens_per_side = math.isqrt(self.num_image_token)
        return self.image_processor.token_boxes(width, height, tokens_per_side, **kwargs)

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """As the tokenizer's."""
        return self.tokenizer.convert_tokens_to_ids(tokens)

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
        return_mm_token_type_ids: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs of texts with images.

        Args:
            images: an image, a list of images, or a list with a list (or None) for each text.
            text: a text or a list of texts; each `<image>` stands for one image of that text, up to
                their number. Further ones are words, of which a warning tells.
            padding: True or "longest" pads to the longest row, "max_length" to `max_length`.
            padding_side: "left" or "right"; by default the tokenizer's (left).
            truncation: cut texts at `max_length`, except that image tokens are never cut.
            max_length: in tokens.
            add_special_tokens: put the begin-of-sentence token in front where it is not there.
            return_tensors: "pt", "np" or None (lists of ids; pixel_values are always tensors).
            images_kwargs, text_kwargs: more settings, as transformers' processors take them.
            pad_to_multiple_of: round the length up to a multiple of this.
            return_mm_token_type_ids: add mm_token_type_ids, 1 for a token of an image.
            kwargs: go to the image processor.

        Returns:
            Input_ids, attention_mask, each (texts, length), pixel_values (tiles, 3, side, side).

        Raises:
            ValueError: fewer `<image>` than images, no text, a cut image, or a keyword given twice.
            TypeError: a keyword that is known neither here nor to the image processor.
        """
        settings = TextSettings(
            padding,
            padding_side,
            truncation,
            max_length,
            pad_to_multiple_of,
            add_special_tokens,
            return_attention_mask,
            return_mm_token_type_ids,
        )
        nested = _merged(kwargs.pop("common_kwargs", None), text_kwargs)
        return_tensors = nested.pop("return_tensors", return_tensors)
        settings = settings.updated(nested)
        if text is None:
            raise ValueError("No text was given; for images alone call processor.image_processor.")
        texts = [text] if isinstance(text, str) else list(text)
        image_keywords = _image_keywords(_merged(kwargs, images_kwargs, _not_of_text(nested)))
        data = self._make_inputs(texts, images, settings, image_keywords)
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
        return_assistant_tokens_mask: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Render messages, and with `tokenize` make model inputs of them.

        Args:
            conversation: a list of messages `{"role", "content"}`, or a list of such lists.
                `content` is a string, or parts `{"type": "text", "text"}` and `{"type": "image",
                …}` with the image under "image", "url", "path", "base64" or "image_url". A part of
                type "video" has a list of frames, or a file; `num_frames` of each are taken.
            return_assistant_tokens_mask: add assistant_masks, 1 for a token that the assistant
                wrote, the end of its turn included. It needs a fast tokenizer and a template with
                `{% generation %}` markers.
            kwargs: keywords of `__call__`, also in a dict `processor_kwargs`, and variables of the
                template (`enable_thinking`).

        Returns:
            Without `tokenize` a text, in which control tokens that somebody typed are marked (see
            `split_at_marks`); with `return_dict` model inputs; else their input_ids.

        Raises:
            ValueError: messages that cannot be read, or a mask without model inputs.
            TypeError: a name in `processor_kwargs` that is no keyword of `__call__`.
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if is_batch else [conversation]
        template = self.tokenizer.get_chat_template(chat_template or self.chat_template, tools)
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask needs tokenize=True, return_dict=True.")
        call_keywords, variables = _split_keywords(kwargs, template)
        num_frames = call_keywords.pop("num_frames", None)
        read = [read_messages(messages, tokenize, num_frames) for messages in conversations]
        plain, images = zip(*read)
        variables.update(
            chat_template=template,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        texts, spans_of_texts = self._render(plain, variables, return_assistant_tokens_mask)
        if not tokenize:
            return texts if is_batch else texts[0]
        return_tensors = call_keywords.pop("return_tensors", None) or return_tensors
        settings, image_keywords = _settings_of_call(call_keywords)
        data = self._make_inputs(texts, images, settings, image_keywords, spans_of_texts)
        inputs = BatchFeature(data=data, tensor_type=return_tensors)
        if return_dict:
            return inputs
        is_list = return_tensors is None and not is_batch
        return inputs["input_ids"][0] if is_list else inputs["input_ids"]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """As the tokenizer's."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """As the tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)

    def _render(
        self, conversations: Sequence[list], variables: dict[str, Any], with_spans: bool
    ) -> tuple[list[str], list[list[Span]] | None]:
        """The text of each conversation, and what in it is inside `{% generation %}`, or None."""
        # Also those that were added to the tokenizer since the template was written.
        variables = {**variables, "control_tokens": list(self.tokenizer.get_added_vocab())}
        if with_spans:
            return _render_with_spans(list(conversations), variables)
        texts = [
            self.tokenizer.apply_chat_template(messages, tokenize=False, **variables)
            for messages in conversations
        ]
        return texts, None

    def _make_inputs(
        self,
        texts: list[str],
        images: Any,
        settings: TextSettings,
        image_keywords: dict[str, Any],
        spans_of_texts: list[list[Span]] | None = None,
    ) -> dict[str, Any]:
        """What `__call__` returns, as lists and tensors.

        Args:
            spans_of_texts: what of each text is marked in assistant_masks; None for no masks.
        """
        images_of_texts = self._images_of_texts(images, texts)
        data, num_patches = self._tile_images(images_of_texts, image_keywords)
        rows = self._encode_texts(texts, images_of_texts, num_patches, settings, spans_of_texts)
        columns = self._pad(rows, settings)
        data["input_ids"] = columns["ids"]
        if settings.return_attention_mask:
            data["attention_mask"] = columns["attention_mask"]
        if spans_of_texts is not None:
            data["assistant_masks"] = columns["in_span"]
        if settings.return_mm_token_type_ids:
            data["mm_token_type_ids"] = columns["is_image"]
        return data

    def _tile_images(
        self, images_of_texts: list[list], keywords: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        """A dict with the pixel values, if there are images, and the tiles of each image."""
        if not any(images_of_texts):
            return {}, []
        features = self.image_processor(images_of_texts, **keywords)
        return {"pixel_values": features["pixel_values"]}, features["num_patches"].tolist()

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
        spans_of_texts: Sequence[list[Span]] | None,
    ) -> list[EncodedText]:
        """The tokens of each text, with the image tokens of its images.

        Args:
            num_patches: number of tiles of each image, over all texts.
        """
        remaining = iter(num_patches)
        rows = []
        for index, (text, images) in enumerate(zip(texts, images_of_texts)):
            tokens_of_images = [next(remaining) * self.num_image_token for _ in images]
            _warn_of_words(text.count(IMAGE_PLACEHOLDER), len(images))
            expanded = _expand_placeholders(text, tokens_of_images)
            spans = None
            if spans_of_texts is not None:
                spans = [
                    (
                        _expanded_position(text, start, tokens_of_images),
                        _expanded_position(text, stop, tokens_of_images),
                    )
                    for start, stop in spans_of_texts[index]
                ]
            row = self._encode(expanded, settings.add_special_tokens, spans)
            if settings.truncation:
                row = self._truncate(row, settings.max_length)
            rows.append(row)
        return rows

    def _encode(
        self, text: str, add_special_tokens: bool, spans: list[Span] | None = None
    ) -> EncodedText:
        """The tokens of a text in which control tokens may be marked as text."""
        begin = self.tokenizer.bos_token
        row = EncodedText()
        if begin and add_special_tokens and not text.startswith(begin):
            row.ids.append(self.tokenizer.convert_tokens_to_ids(begin))
            row.in_span.append(0)
        position = 0
        for part in split_at_marks(text, self.tokenizer.get_added_vocab()):
            encoded = self.tokenizer(
                part, add_special_tokens=False, return_offsets_mapping=spans is not None
            )
            row.ids += encoded["input_ids"]
            for start, stop in encoded.get("offset_mapping", ()):
                row.in_span.append(_overlaps(position + start, position + stop, spans or []))
            position += len(part) + 1  # and the mark behind it
        return row

    def _truncate(self, row: EncodedText, max_length: int | None) -> EncodedText:
        if max_length is None or len(row.ids) <= max_length:
            return row
        if self.image_token_id in row.ids[max_length:]:
            raise ValueError(
                f"max_length={max_length} would cut through an image of a text of {len(row.ids)} "
                "tokens: raise it, or use fewer tiles (max_dynamic_patch)."
            )
        return EncodedText(row.ids[:max_length], row.in_span[:max_length])

    def _pad(self, rows: list[EncodedText], settings: TextSettings) -> dict[str, list[list[int]]]:
        """The columns of all rows, of one length if padding is asked for.

        Returns:
            Lists with a list for each row: `ids`, `attention_mask` (1 for a token, 0 for padding),
            `in_span` (of the rows) and `is_image` (1 for a token of an image).
        """
        length = self._padded_length([row.ids for row in rows], settings)
        on_left = (settings.padding_side or self.tokenizer.padding_side) == "left"

        def padded(values: list[int], filler: int) -> list[int]:
            padding = [filler] * max(0, length - len(values))
            return padding + values if on_left else values + padding

        pad_id = self.tokenizer.pad_token_id
        columns: dict[str, list[list[int]]] = {
            "ids": [padded(row.ids, pad_id) for row in rows],
            "attention_mask": [padded([1] * len(row.ids), 0) for row in rows],
            "in_span": [padded(row.in_span, 0) for row in rows],
        }
        columns["is_image"] = [
            [int(token == self.image_token_id) for token in ids] for ids in columns["ids"]
        ]
        return columns

    def _padded_length(self, rows: list[list[int]], settings: TextSettings) -> int:
        """The length that rows are padded to; 0 for no padding."""
        length = 0
        if settings.padding is True or settings.padding == "longest":
            length = max(len(row) for row in rows)
        elif settings.padding == "max_length":
            length = settings.max_length or self.tokenizer.model_max_length
        multiple = settings.pad_to_multiple_of
        return -(-length // multiple) * multiple if multiple else length


def _split_keywords(
    keywords: dict[str, Any], template: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of `apply_chat_template` that belong to `__call__`, and variables of a template.

    A warning tells of one that is neither, unless it is a setting of the generation: pipelines pass
    those to the template as well.
    """
    known = (*TEXT_KEYWORDS, *IMAGE_KEYWORDS, *FIXED_KEYWORDS)
    variables_of_template = _variables_of(template)
    of_call = {}
    variables = {}
    for name, value in keywords.items():
        if name in ("processor_kwargs", "images_kwargs"):
            of_call = _merged(of_call, value)
        elif name in ("text_kwargs", "num_frames") or name in known:
            of_call = _merged(of_call, {name: value})
        elif name in variables_of_template:
            variables[name] = value
        elif value is not None and not hasattr(DEFAULT_GENERATION, name):
            logger.warning(
                f"{name}={value!r} has no effect: it is no variable of the chat template (as "
                "enable_thinking is) and no keyword of the processor (those are "
                f"{', '.join((*TEXT_KEYWORDS, *CALL_SETTINGS))})."
            )
    return of_call, variables


@functools.lru_cache(maxsize=8)
def _variables_of(template: str) -> frozenset[str]:
    """The names that a chat template takes from its caller."""
    import jinja2.ext
    import jinja2.meta  # where templates are rendered, it is installed
    import jinja2.nodes

    # The tags of what the assistant writes are those of an extension of transformers.
    plain = re.sub(r"\{%-? *(end)?generation *-?%\}", "", template)
    parsed = jinja2.Environment(extensions=[jinja2.ext.loopcontrols]).parse(plain)
    names = parsed.find_all(jinja2.nodes.Name)
    set_inside = {name.name for name in names if name.ctx == "store"}
    return frozenset(jinja2.meta.find_undeclared_variables(parsed) - set_inside)


def _settings_of_call(keywords: dict[str, Any]) -> tuple[TextSettings, dict[str, Any]]:
    """The settings of texts that a template has rendered, and the keywords for the images."""
    settings = TextSettings().updated(keywords.get("text_kwargs")).updated(keywords)
    # The template has written the special tokens, whatever TRL asks for.
    settings = dataclasses.replace(settings, add_special_tokens=False)
    nested = keywords.get("text_kwargs") or {}
    flat = {name: value for name, value in keywords.items() if name != "text_kwargs"}
    return settings, _image_keywords(_merged(_not_of_text(flat), _not_of_text(nested)))


def _not_of_text(keywords: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if name not in TEXT_KEYWORDS}


def _merged(*keywords: dict[str, Any] | None) -> dict[str, Any]:
    """All keywords of several dicts, some of which may be None.

    Raises:
        ValueError: a keyword that is in two of them.
    """
    merged: dict[str, Any] = {}
    for some in keywords:
        for name, value in (some or {}).items():
            if name in merged:
                raise _given_twice(name, merged[name], value)
            merged[name] = value
    return merged


def _given_twice(name: str, first: Any, second: Any) -> ValueError:
    return ValueError(f"{name} is given twice, as {first!r} and {second!r}: give it once.")


def _image_keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Those keywords of `__call__` that go to the image processor, which checks their values.

    Raises:
        TypeError: a keyword that is known neither here nor to the image processor.
        ValueError: a keyword that asks for what is not done here.
    """
    of_images = {}
    for name, value in keywords.items():
        if name in FIXED_KEYWORDS:
            check_fixed(name, value, FIXED_KEYWORDS)
        elif name in IMAGE_KEYWORDS or value is None:
            of_images[name] = value
        else:
            raise TypeError(
                f"{name}={value!r} is no keyword of this processor; expected "
                f"{', '.join(TEXT_KEYWORDS)} for texts, or {', '.join(CALL_SETTINGS)} for images."
            )
    return of_images


def _render_with_spans(
    conversations: list[list], variables: dict[str, Any]
) -> tuple[list[str], list[list[Span]]]:
    """The text of each conversation, and what in it is inside `{% generation %}`."""
    # transformers has it since 4.52, and processors of remote code need 4.53.
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations, return_assistant_tokens_mask=True, **variables
    )
    return rendered


def _overlaps(start: int, stop: int, spans: list[Span]) -> int:
    """1 if the characters from start to stop have one of a span, or 0."""
    return int(any(start < high and low < stop for low, high in spans))


def _warn_of_words(num_placeholders: int, num_images: int) -> None:
    if num_placeholders > num_images:
        logger.warning(
            f"A text has {num_placeholders} {IMAGE_PLACEHOLDER} and {num_images} images: each "
            f"{IMAGE_PLACEHOLDER} without an image is read as a word."
        )


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


def _expanded_position(text: str, position: int, tokens_of_images: Sequence[int]) -> int:
    """Where a position of a text is after `_expand_placeholders`."""
    before = text[:position]
    num_images = min(before.count(IMAGE_PLACEHOLDER), len(tokens_of_images))
    return len(_expand_placeholders(before, tokens_of_images[:num_images]))
