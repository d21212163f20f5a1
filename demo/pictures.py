"""The pictures that visitors upload: bounded, and opened as the model opens images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from preprocessor.image_loading import open_image
from preprocessor.image_settings import IMAGE_FORMATS

KEPT_PICTURES = 8  # opened pictures in memory, up to 150 MB each; later turns need not decode them


@dataclasses.dataclass(frozen=True)
class Limits:
    """What visitors may send.

    Attributes:
        bytes_of_picture: of one file.
        pixels_of_picture: width × height.
        pictures_of_question: that come with one question.
        pictures_of_conversation: of all its questions together.
        characters_of_question: of its text.
        bytes_of_all: that the uploads of all visitors take on the disk.
    """

    bytes_of_picture: int = 20 * 2**20
    pixels_of_picture: int = 50_000_000
    pictures_of_question: int = 8
    pictures_of_conversation: int = 24
    characters_of_question: int = 100_000
    bytes_of_all: int = 2 * 2**30


def check_question(text: str, pictures: Sequence[str], num_earlier: int, limits: Limits) -> None:
    """Check a question before anything is done with it. Of pictures only the headers are read.

    Args:
        text: of the question.
        pictures: paths of its pictures.
        num_earlier: number of pictures in the conversation before.

    Raises:
        ValueError: it is empty, or exceeds a limit; the text is a sentence for the page.
    """
    if not text.strip() and not pictures:
        raise ValueError("There is nothing to ask yet: write a question, or add a picture.")
    if len(text) > limits.characters_of_question:
        raise ValueError(
            f"The question has {len(text):,} characters: shorten it to "
            f"{limits.characters_of_question:,}."
        )
    if len(pictures) > limits.pictures_of_question:
        raise ValueError(
            f"The question has {len(pictures)} pictures: at most {limits.pictures_of_question} can "
            "come with one."
        )
    total = num_earlier + len(pictures)
    if total > limits.pictures_of_conversation:
        raise ValueError(
            f"The conversation would have {total} pictures, and at most "
            f"{limits.pictures_of_conversation} are possible: begin a new one."
        )
    for path in pictures:
        _check_picture(Path(path), limits)


def _check_picture(path: Path, limits: Limits) -> None:
    size = path.stat().st_size
    if size > limits.bytes_of_picture:
        raise ValueError(
            f"{path.name} has {size / 2**20:.1f} MiB: pictures may have "
            f"{limits.bytes_of_picture / 2**20:.0f}. Make it smaller."
        )
    width, height = _size_in_header(path)
    if width * height > limits.pixels_of_picture:
        raise ValueError(
            f"{path.name} has {width} × {height} pixels: pictures may have "
            f"{limits.pixels_of_picture:,}. Make it smaller."
        )


def _size_in_header(path: Path) -> tuple[int, int]:
    """Width and height in pixels, without decoding the picture."""
    Image.init()  # fills Image.OPEN
    known = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        with Image.open(path, formats=known) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path.name} has too many pixels. Make it smaller.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path.name} is no picture that can be read: take a PNG, JPEG or WebP file."
        ) from error


@functools.lru_cache(maxsize=KEPT_PICTURES)
def open_picture(path: str) -> Image.Image:
    """A picture as the model gets it, RGB and upright.

    Raises:
        ValueError: it is damaged. The text names the file as the visitor knows it, without the
            folder it lies in here.
    """
    try:
        return open_image(path)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace(path, Path(path).name)) from error
