"""Chat messages as people write them, for the chat template and the image processor.

The template marks control tokens that somebody typed; `split_at_marks` cuts a rendered text there.

This file imports no sibling: before 5.9 transformers copies only the files that the processor
imports itself. The names of the tokens are those of conversation.py, which cannot be imported from
this folder, since transformers resolves relative imports of remote code within a folder.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

IMAGE_PLACEHOLDER = "<image>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
# The mark that the chat template puts behind the first character of a control token that is text.
# It is a private-use character and only recognised inside a control token, so that no other text
# changes.
MARK = "\ue0c5"
# The types of a content part that is a text, and those of one that is an image: of transformers, of
# OpenAI's two interfaces, and of llama.cpp's and Qwen's examples.
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image", "image_pil", "Image")
# The keys under which an image part has its image. A part without a type is known by its keys.
IMAGE_KEYS = ("image", "url", "path", "base64", "image_url", "image_pil", "Image")
VIDEO_TYPES = ("video", "video_url", "input_video")
VIDEO_KEYS = ("video", "url", "path", "video_url")
# An image that is a frame of a video is a dict with it under this key, and becomes a single tile.
# No class: transformers loads image processor and processor apart, each with its own classes.
FRAME_KEY = "frame"
NO_FURTHER_FILES = {"protocol_whitelist": "none"}  # a playlist could name others
NUM_FRAMES = 8  # of a video file, if nobody says how many


def split_at_marks(text: str, control_tokens: Iterable[str]) -> list[str]:
    """The parts of a text, cut inside each marked control token; the marks are left out.

    Args:
        control_tokens: the tokenizer's added tokens; `<image>` counts besides.
    """
    if MARK not in text:  # as in nearly every text
        return [text]
    tokens = [*control_tokens, IMAGE_PLACEHOLDER]
    before = "|".join(sorted({re.escape(token[0]) for token in tokens}))
    after = "|".join(re.escape(token[1:]) for token in tokens)
    return re.split(f"(?<={before}){MARK}(?={after})", text)


def flatten_images(images: Any) -> list:
    """One list of images from an image, a list, or a list of lists.

    None stands for a sample without images, and an array or a tensor with four dimensions for as
    many images as its first has.
    """
    if images is None:
        return []
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    if not isinstance(images, (list, tuple)):
        return [images]
    return [image for entry in images for image in flatten_images(entry)]


def read_messages(
    messages: Iterable[dict[str, Any]], must_have_images: bool, num_frames: int | None = None
) -> tuple[list[dict[str, Any]], list]:
    """Messages for the chat template, and the images of all their content parts, in order.

    Args:
        messages: `{"role", "content"}` and what else a message has; or objects with these fields,
            as clients of an API have them (dataclasses, pydantic models).
        must_have_images: whether an image part without an image is an error. A bare placeholder,
            whose image is passed separately, is enough to render a text.
        num_frames: number of frames that are taken from each video; None is `NUM_FRAMES` of a file,
            and all of a list of frames.

    Returns:
        Copies of the messages, whose parts are `{"type": "text", "text"}` or `{"type": "image"}`;
        and the images, in any form that the image processor opens. A video is its frames, each
        behind a text, "Frame1: " and so on, as users of the InternVL family write them.

    Raises:
        ValueError: a message without a role, content or a part of an unknown kind, or a part
            without its image.
        ImportError: a video file without PyAV.
    """
    plain = []
    images = []
    for message in map(_as_dict, messages):
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError(f"{_shown(message)} is no message: expected a dict with a role.")
        content = message.get("content")
        if content is None or isinstance(content, str):
            plain.append(dict(message))
            continue
        if isinstance(content, dict) or not isinstance(content, Iterable):
            raise ValueError(
                f"The content of a message is {_shown(content)}: expected a string or a list of "
                "parts."
            )
        parts = []
        for part in map(_as_dict, content):
            if _is_video(part):
                frames = frames_of_video(part, num_frames)
                for number, frame in enumerate(frames, 1):
                    parts += [{"type": "text", "text": f"Frame{number}: "}, {"type": "image"}]
                    images.append({FRAME_KEY: frame})
                continue
            plain_part, image = _read_part(part, must_have_images)
            parts.append(plain_part)
            images += [] if image is None else [image]
        plain.append({**message, "content": parts})
    return plain, images


def _as_dict(value: Any) -> Any:
    """A message or content part that is an object as a dict, without its fields of None."""
    if isinstance(value, (dict, str)):
        return value
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: field for name, field in fields.items() if field is not None}
    to_dict = getattr(value, "model_dump", None)
    return to_dict(exclude_none=True) if callable(to_dict) else value


def _is_video(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    return kind in VIDEO_TYPES or (kind is None and "video" in part)


def frames_of_video(part: dict[str, Any], num_frames: int | None) -> list:
    """The frames of a video part: all or some of a list, or some of a file.

    Raises:
        ValueError: no video, one without frames, or a number that is none.
        ImportError: a file without PyAV.
    """
    if num_frames is not None and (not isinstance(num_frames, int) or num_frames < 1):
        raise ValueError(f"num_frames={num_frames!r}: expected a number of frames, at least 1.")
    video: Any = _first_value(part, VIDEO_KEYS)
    if isinstance(video, dict):
        video = video.get("url") or video.get("path")
    if isinstance(video, (list, tuple)) or getattr(video, "ndim", 0) == 4:
        frames = list(video)
        numbers = _evenly_spaced(len(frames), num_frames)
        chosen = [frames[number] for number in numbers]
    elif isinstance(video, (str, os.PathLike)):
        chosen = _frames_of_file(str(video).removeprefix("file://"), num_frames or NUM_FRAMES)
    else:
        raise ValueError(
            f"The part {_shown(part)} has no video: give it a list of frames or the path of a file "
            f"under one of {', '.join(VIDEO_KEYS)}."
        )
    if not chosen:
        raise ValueError(f"The video of {_shown(part)} has no frames.")
    return chosen


def _evenly_spaced(total: int, num_frames: int | None) -> list[int]:
    """The numbers of some of `total` frames, in the middle of as many equal pieces; None is all."""
    if num_frames is None or num_frames >= total:
        return list(range(total))
    return [int((index + 0.5) * total / num_frames) for index in range(num_frames)]


def _frames_of_file(path: str, num_frames: int) -> list:
    """Some frames of a video file, as PIL images; the others are decoded and not kept.

    Only files of this machine: a URL would be opened by FFmpeg, without the limits that downloads
    of images have.
    """
    try:
        import av  # pyright: ignore[reportMissingImports]  # an optional package
    except ImportError as error:
        raise ImportError(
            f"{path}: a video file needs PyAV (pip install av); or pass a list of frames."
        ) from error
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such video file; a video of an URL has to be downloaded.")

    def decoded() -> Iterator[Any]:
        with open(path, "rb") as file, av.open(file, options=NO_FURTHER_FILES) as container:
            yield from container.decode(video=0)

    try:
        total = sum(1 for _ in decoded())
        numbers = set(_evenly_spaced(total, num_frames))
        return [frame.to_image() for number, frame in enumerate(decoded()) if number in numbers]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: the video cannot be read ({error}).") from error


def _read_part(part: Any, must_have_image: bool) -> tuple[dict[str, Any], Any]:
    """A content part for the template, and its image, which is None for a text or a placeholder."""
    if isinstance(part, str):
        return {"type": "text", "text": part}, None
    if not isinstance(part, dict):
        raise ValueError(_unknown_part(part))
    kind = part.get("type")
    if kind in TEXT_TYPES or (kind is None and "text" in part):
        if not isinstance(part.get("text"), str):
            raise ValueError(f"The part {_shown(part)} is a text: expected a string under 'text'.")
        return {"type": "text", "text": part["text"]}, None
    if kind in IMAGE_TYPES or (kind is None and any(key in part for key in IMAGE_KEYS)):
        # a dict of the OpenAI API or of `datasets` is opened as it is
        image = _as_dict(_first_value(part, IMAGE_KEYS))
        if image is None and must_have_image:
            raise ValueError(
                f"The part {_shown(part)} has no image: give it one under one of "
                f"{', '.join(IMAGE_KEYS)}."
            )
        return {"type": "image"}, image
    raise ValueError(_unknown_part(part))


def _first_value(part: dict[str, Any], keys: Iterable[str]) -> Any:
    """What a content part has under the first of some keys that it has, or None."""
    return next((part[key] for key in keys if part.get(key) is not None), None)


def _unknown_part(part: Any) -> str:
    return (
        f"{_shown(part)} is a content part of an unknown kind: expected a text (type "
        f"{', '.join(TEXT_TYPES)}, under 'text'), an image (type {', '.join(IMAGE_TYPES)}, under "
        f"one of {', '.join(IMAGE_KEYS)}) or a video (type {', '.join(VIDEO_TYPES)})."
    )


def _shown(value: Any) -> str:
    """A value as an error message shows it, with its long texts cut short."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
