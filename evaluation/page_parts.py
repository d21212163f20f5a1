"""What pages of runs share: one HTML file each that needs no network.

A page is a template, whose script finds its content as JSON; pictures are small copies.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

SIDE = 480  # pixels of a picture on a page, at most
QUALITY = 80  # of its JPEG

Item = TypeVar("Item")


def filled(template: Path, content: Any) -> str:
    """A page with its content in the place of the word DATA in its script."""
    # In a script a text could otherwise end the script.
    written = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    page = template.read_text(encoding="utf-8")
    return page.replace("DATA</script>", written + "</script>", 1)


def evenly(items: list[Item], count: int) -> list[Item]:
    """So many of a list's items, at even distances, the first and the last among them."""
    if len(items) <= count:
        return items
    last = len(items) - 1
    return [items[round(place * last / (count - 1))] for place in range(count)]


def packed(content: Any) -> str:
    """Content as JSON, compressed, in base64."""
    return base64.b64encode(gzip.compress(json.dumps(content).encode(), mtime=0)).decode()


def small_copy(path: Path) -> str:
    """A picture, small enough for a page, as a data URI."""
    with Image.open(path) as image:
        copy = image.convert("RGBA")
    copy.thumbnail((SIDE, SIDE))
    ground = Image.new("RGB", copy.size, "white")
    ground.paste(copy, mask=copy)
    file = io.BytesIO()
    ground.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
