"""Opens images as people have them: paths, URLs, base64, bytes, arrays, tensors, PIL images.

Photographs are turned upright, and images with a palette, transparency, 16 bits or several frames
become RGB. What cannot be read raises an error that names the file.
"""

from __future__ import annotations

import base64
import io
import struct
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .image_settings import IMAGE_FORMATS
from .url_loading import download

LONGEST_PATH = 1024  # characters; a longer text is base64
SHORTEST_BASE64 = 64  # characters; a shorter text is a path
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
PREMULTIPLIED_MODES = {"La": "LA", "RGBa": "RGBA"}
ALPHA_CHOICES = ("drop", "white")


def open_image(
    source: Any,
    apply_exif_orientation: bool = True,
    alpha: str = "drop",
    image_formats: Iterable[str] = IMAGE_FORMATS,
    allow_internal_urls: bool = False,
) -> Image.Image:
    """An RGB image from whatever a user has.

    Args:
        source: a PIL image, a path, an http(s), file: or data: URL, base64 text, bytes, an open
            file, an array (height, width, channels), a tensor (channels, height, width), or a dict
            of `datasets` with bytes or a path. Arrays and tensors are uint8, or floats in [0, 1].
        apply_exif_orientation: turn a photograph the way its camera was held. The model card's
            `load_image` does not.
        alpha: "drop" ignores transparency, as the model card does; "white" puts the image on white.
        image_formats: Pillow's names of the file formats that may be decoded. An image that is a
            PIL image already may be of any.
        allow_internal_urls: download from addresses that are not public, too.

    Returns:
        A PIL image of mode RGB; of an animation the first frame. A PIL image that is one already is
        returned itself.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: anything that cannot be read as an image, by name.
        TypeError: a source of another type.
    """
    if alpha not in ALPHA_CHOICES:
        raise ValueError(f"alpha={alpha!r} is unknown; expected 'drop' or 'white'.")
    name, found = _find(source, allow_internal_urls)
    try:
        image = found
        if not isinstance(found, Image.Image):
            image = _open_file(found, image_formats)
        return _first_frame(image, apply_exif_orientation, alpha)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: too many pixels to decode safely ({error}). Shrink it, or pass a PIL image "
            "that you opened."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name}: not an image of a format that is read; those are {', '.join(image_formats)} "
            "(the image processor's setting image_formats)."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # each decoder of Pillow raises what it likes on damaged bytes
        raise ValueError(
            f"{name}: the image is damaged or incomplete ({type(error).__name__}: {error})."
        ) from error


# -- where the image is ----------------------------------------------------------------------------


def _find(source: Any, allow_internal_urls: bool) -> tuple[str, Any]:
    """A name for messages, and a PIL image or what `_open_file` takes."""
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "")
        return name or f"image of {source.width} × {source.height} pixels", source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes", io.BytesIO(source)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"array of shape {tuple(source.shape)}", _from_array(source)
    if isinstance(source, Path):
        return _find_path(source)
    if isinstance(source, str):
        return _find_text(source, allow_internal_urls)
    if isinstance(source, dict):
        return _find(_source_of_dict(source), allow_internal_urls)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return str(getattr(source, "name", "open file")), _content(source)
    raise TypeError(
        "An image must be a PIL image, path, URL, base64 text, bytes, open file, array, tensor or "
        f"dict, not {type(source).__name__}."
    )


def _source_of_dict(source: dict[str, Any]) -> Any:
    """The image in a dict of `datasets`, or of the OpenAI API."""
    for name in ("url", "bytes", "path"):
        if source.get(name) is not None:
            return source[name]
    raise ValueError(f"An image is a dict of {sorted(source)}: expected a url, bytes or a path.")


def _content(file: Any) -> io.BytesIO:
    """All bytes of an open file, which is left at the position where it was."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    if not isinstance(content, bytes):
        raise ValueError(f"{file}: a file that is open as text; open it with mode 'rb'.")
    return io.BytesIO(content)


def _find_text(source: str, allow_internal_urls: bool) -> tuple[str, Any]:
    """As `_find`, of a URL, base64 text or a path."""
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return source, io.BytesIO(download(source, allow_internal_urls))
    if scheme.startswith("data:"):
        name = source[:40]
        return name, io.BytesIO(_decode(source.split(",", 1)[-1], name))
    if scheme.startswith("file://"):
        return _find_path(_path_of_url(source))
    # The letters of base64 are letters of paths, too.
    if len(source) > LONGEST_PATH or not _exists(source):
        decoded = _decode_if_base64(source)
        if decoded is not None:
            return f"base64 text {source[:16]}…", io.BytesIO(decoded)
    if not source.strip():
        raise ValueError(f"{source!r} is an empty path: expected the path of an image file.")
    return _find_path(Path(source))


def _path_of_url(url: str) -> Path:
    """The path in a file: URL, whose host may be left out or localhost."""
    rest = url[len("file://") :]
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise ValueError(f"{url}: a file of another host ({host}).")
    return Path(urllib.request.url2pathname(slash + path))


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # longer than a file name can be, or with a null character
        return False


def _find_path(path: Path) -> tuple[str, Path]:
    if not _exists(path):
        raise FileNotFoundError(f"{path}: no such image file.")
    if path.is_dir():
        raise ValueError(f"{path}: a directory, not an image file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty.")
    return str(path), path


def _decode(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii's own, or text that is not ASCII
        raise ValueError(f"{name}: not valid base64 ({error}).") from error


def _decode_if_base64(text: str) -> bytes | None:
    """The bytes of a base64 text, or None if it is none."""
    compact = "".join(text.split())
    if len(compact) < SHORTEST_BASE64 or len(compact) % 4:
        return None
    try:
        return base64.b64decode(compact, validate=True)
    except ValueError:  # binascii's own, or text that is not ASCII
        return None


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(array, torch.Tensor):
        if array.is_floating_point():
            array = array.float()  # numpy has no bfloat16
        if array.dim() == 3:
            array = array.permute(1, 2, 0)
        array = array.detach().cpu().numpy()
    if np.issubdtype(array.dtype, np.floating):
        array = _from_unit_interval(array)
    if array.dtype != np.uint8:
        raise ValueError(
            "An image array must hold uint8 values of 0 to 255 or floats of 0 to 1, not "
            f"{array.dtype}."
        )
    has_channels = array.ndim == 3
    if array.ndim not in (2, 3) or (has_channels and array.shape[2] not in (1, 2, 3, 4)):
        raise ValueError(
            f"array of shape {array.shape}: expected (height, width) or (height, width, channels) "
            "with 1 to 4 channels; a tensor has its channels first."
        )
    if has_channels and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(array)


def _from_unit_interval(array: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] as uint8 values of 0 to 255.

    Raises:
        ValueError: other values, such as those of normalised images.
    """
    low = array.min(initial=0)
    high = array.max(initial=0)
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"An image of floats must hold values of 0 to 1, and this one has {low:g} to {high:g}: "
            "pass uint8 values of 0 to 255, or divide by 255."
        )
    return np.round(array * 255).astype(np.uint8)


# -- from a file to RGB ----------------------------------------------------------------------------


def _open_file(file: Any, image_formats: Iterable[str]) -> Image.Image:
    Image.init()  # fills Image.OPEN; Image.open() fails on the name of a format that is not in it
    known = [name for name in image_formats if name in Image.OPEN]
    image = Image.open(file, formats=known)
    image.load()  # so that a truncated file fails here, where its name is known
    return image


def _first_frame(image: Image.Image, apply_exif_orientation: bool, alpha: str) -> Image.Image:
    """The first frame in RGB; the caller's image is left at the frame where it was."""
    frame = image.tell() if getattr(image, "is_animated", False) else 0
    if frame:
        image.seek(0)
    try:
        upright = _upright(image) if apply_exif_orientation else image
        rgb = _to_rgb(upright, alpha)
        return rgb.copy() if frame else rgb
    finally:
        if frame:
            image.seek(frame)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        # The EXIF block is damaged, so no orientation is known. Damaged pixels are still an error.
        image.load()
        return image


def _to_rgb(image: Image.Image, alpha: str) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES:
        image = _from_sixteen_bits(image)
    elif image.mode == "F":
        image = _from_floats(image)
    elif image.mode in PREMULTIPLIED_MODES:
        image = image.convert(PREMULTIPLIED_MODES[image.mode])
    has_alpha = "A" in image.mode or "transparency" in image.info
    if alpha == "white" and has_alpha:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    """Grey values in floats to 8 bits: those of 0 to 1 are scaled, those of 0 to 255 cut off.

    Raises:
        ValueError: other values.
    """
    values = np.asarray(image)
    low = values.min(initial=0)
    high = values.max(initial=0)
    if high <= 1:
        return Image.fromarray(_from_unit_interval(values))
    if not (low >= 0 and high <= 255):
        raise ValueError(f"floats of {low:g} to {high:g}, and 0 to 1 or 0 to 255 is expected")
    return Image.fromarray(values.astype(np.uint8))


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, by scaling.

    PIL's own conversion, which the model card uses, clips everything above 255 to white.
    """
    values = np.asarray(image).astype(np.int64)
    if values.max(initial=0) <= 255 and values.min(initial=0) >= 0:
        return Image.fromarray(values.astype(np.uint8))
    return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
