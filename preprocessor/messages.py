"""Chat messages: where their images are, and how a control token that a user typed stays text.

This file imports no sibling: before 5.9 transformers copies only the files that the processor
imports itself. The names of the tokens are those of conversation.py, which cannot be imported from
this folder, since transformers resolves relative imports of remote code within a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

IMAGE_PLACEHOLDER = "<image>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
THINK_END = "</think>"
# The mark behind the first character of a control token that is text. It is a private-use character
# and only recognised inside a control token, so that no other text changes.
MARK = "\ue0c5"
# The types of a content part that is an image, and the keys under which it has its image.
IMAGE_PARTS = ("image", "image_url")
IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
# Where servers put the thinking of an answer that they give apart.
REASONING_KEYS = ("reasoning", "reasoning_content")


def content_parts(message: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The content parts of a message; none where its content is a string."""
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def image_parts(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """All content parts that are images, in order."""
    parts = []
    for message in messages:
        parts += [part for part in content_parts(message) if part["type"] in IMAGE_PARTS]
    return parts


def images_of_messages(messages: Iterable[dict[str, Any]], must_have: bool) -> list:
    """The images of all content parts, in order, in any form that the image processor opens.

    Args:
        must_have: whether a part without an image is an error. A bare placeholder, whose image is
            passed separately, is enough to render a text.

    Raises:
        ValueError: a part whose image is missing, or in an unknown form.
    """
    parts = image_parts(messages)
    images = []
    for part in parts:
        image = _image_of_part(part)
        if image is not None:
            images.append(image)
    if must_have and len(images) != len(parts):
        raise ValueError(
            f"{len(parts)} image parts but {len(images)} images in the messages: give each image "
            f"part its image under one of {', '.join(IMAGE_KEYS)}."
        )
    return images


def _image_of_part(part: dict[str, Any]) -> Any:
    """The image of a content part, or None for a bare placeholder."""
    value = next((part[key] for key in IMAGE_KEYS if part.get(key) is not None), None)
    if not isinstance(value, dict):
        return value
    # A dict is an image of the OpenAI API, or one that `datasets` did not decode.
    for name in ("url", "bytes", "path"):
        if value.get(name) is not None:
            return value[name]
    raise ValueError(f"An image part has {sorted(value)}: expected a url, bytes or a path.")


class ControlTokenMarker:
    """Marks control tokens in texts, so that they are tokenized as the text that they look like.

    Args:
        control_tokens: the tokenizer's added tokens.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        self.tokens = sorted([*control_tokens, IMAGE_PLACEHOLDER], key=len, reverse=True)

    def split(self, text: str) -> list[str]:
        """The parts of a marked text, cut inside each marked token; the marks are left out."""
        first_characters = sorted({re.escape(token[0]) for token in self.tokens})
        rests = [re.escape(token[1:]) for token in self.tokens]
        before = "|".join(first_characters)
        after = "|".join(rests)
        return re.split(f"(?<={before}){MARK}(?={after})", text)

    def mark(self, text: str, keep_placeholders: bool) -> str:
        """Mark every control token in a text.

        Args:
            keep_placeholders: leave `<image>` to stand for an image.
        """
        tokens = self.tokens
        if keep_placeholders:
            tokens = [token for token in tokens if token != IMAGE_PLACEHOLDER]
        if not tokens:
            return text
        pattern = "|".join(re.escape(token) for token in tokens)
        return re.sub(pattern, lambda match: match.group()[0] + MARK + match.group()[1:], text)

    def mark_answer(self, text: str) -> str:
        """Mark every control token in an assistant's text but the first `</think>`.

        That one closes the thinking which the template has opened.
        """
        thinking, think_end, answer = text.partition(THINK_END)
        return self.mark(thinking, False) + think_end + self.mark(answer, False)

    def mark_messages(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copies of messages in which every control token that a user typed is marked.

        Where any message has image parts, these say where the images are, and every `<image>` that
        was typed is text.
        """
        messages = list(messages)
        has_image_parts = bool(image_parts(messages))
        return [self._mark_message(message, has_image_parts) for message in messages]

    def _mark_message(self, message: dict[str, Any], has_image_parts: bool) -> dict[str, Any]:
        is_assistant = message["role"] == "assistant"
        keep_placeholders = message["role"] == "user" and not has_image_parts
        # Where a server gave the thinking apart, `</think>` in the answer is a word.
        has_reasoning = any(message.get(key) for key in REASONING_KEYS)
        closes_thinking = is_assistant and not has_reasoning
        content = self._mark_content(message.get("content"), closes_thinking, keep_placeholders)
        marked = dict(message, content=content)
        for key in REASONING_KEYS:
            if isinstance(marked.get(key), str):
                marked[key] = self.mark(marked[key], False)
        return marked

    def _mark_content(self, content: Any, closes_thinking: bool, keep_placeholders: bool) -> Any:
        """Marked content of a message: None, a string, or content parts.

        Args:
            closes_thinking: whether the first `</think>` is to stay a control token.
        """
        if content is None:
            return None
        if isinstance(content, str):
            return self._mark_text(content, closes_thinking, keep_placeholders)
        marked = []
        for part in merge_text_parts(content):
            if part["type"] == "text":
                text = part["text"]
                part["text"] = self._mark_text(text, closes_thinking, keep_placeholders)
                closes_thinking = closes_thinking and THINK_END not in text
            marked.append(part)
        return marked

    def _mark_text(self, text: str, closes_thinking: bool, keep_placeholders: bool) -> str:
        if closes_thinking and THINK_END in text:
            return self.mark_answer(text)
        return self.mark(text, keep_placeholders)


def merge_text_parts(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of content parts in which texts that follow each other are one.

    The template makes one text of them, so a control token could be put together from several.
    Images are left out of the copies: they go to the image processor.
    """
    merged: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] != "text":
            merged.append({"type": part["type"]})
        elif merged and merged[-1]["type"] == "text":
            merged[-1]["text"] += part["text"]
        else:
            merged.append(dict(part))
    return merged
