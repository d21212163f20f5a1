"""Chromium, driven by Playwright, on the page of `make demo`; tests and benchmarks use it.

apt-get install chromium
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # a camera that shows a test picture
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def executable() -> str | None:
    """The path of the browser, or None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def launch(playwright: Any) -> Any:
    """A browser of Playwright's.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    path = executable()
    if path is None:
        raise FileNotFoundError("there is no chromium: apt-get install chromium")
    return playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))


def open_page(page: Any, address: str) -> None:
    """Let a page of Playwright's show an address, until it is ready to be used."""
    page.goto(address)
    page.wait_for_selector("body[data-ready=true] #question textarea")


def ask(page: Any, question: str, pictures: Sequence[str | Path] = ()) -> None:
    """Put a question and pictures into the box; nothing is sent yet."""
    if pictures:
        page.set_input_files("#question input[type=file]", [str(path) for path in pictures])
        last = page.locator("#question .thumbnail-wrapper").nth(len(pictures) - 1)
        last.wait_for()
    page.fill("#question textarea", question)
