"""Time from a click on the page (`make demo`) to the first text, beside `chat_stream()` alone.

    python -m benchmarks.page --rounds 20
    python -m benchmarks.page --screenshot docs/demo_page.png    # a picture of the page instead

Both ask the nano checkpoint the same question about the same picture, alternating, in one process
with the page's server; the browser is Chromium. Prints the medians and, as the last line, JSON;
`--output` keeps that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import transformers
from playwright.sync_api import Page, sync_playwright

import durable
from benchmarks import browser
from benchmarks.report import machine
from demo import pictures, server
from demo.local import LocalModel

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "examples" / "images" / "counting_1.png"
QUESTION = "How many shapes are in the image?"
READY = "#question .submit-button"  # while nothing is being written
VIEWPORT = {"width": 900, "height": 1000}
# Resolves to the milliseconds between the click and the first text of the model on the page.
FIRST_TEXT = """() => new Promise((resolve) => {
    const isThere = () => document.querySelector("#conversation [data-testid=bot]");
    const begun = performance.now();
    const observer = new MutationObserver(() => {
        if (!isThere()) return;
        observer.disconnect();
        resolve(performance.now() - begun);
    });
    observer.observe(document.querySelector("#conversation"), {childList: true, subtree: true});
    document.querySelector("#question button.submit-button").click();
})"""


def main() -> None:
    """Measure, print and keep the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", help="file for the record")
    parser.add_argument("--screenshot", help="file for a picture of the page; nothing is measured")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: expected at least 1")
    local = LocalModel.load(str(ROOT / "nano"))
    if arguments.screenshot:
        take_picture(local, arguments.screenshot)
        return
    alone, on_page = measure(local, arguments.rounds)
    record = {
        **machine("cpu"),
        "rounds": arguments.rounds,
        "chat_stream_ms": round(statistics.median(alone), 1),
        "page_ms": round(statistics.median(on_page), 1),
        "more_ms": round(statistics.median(on_page) - statistics.median(alone), 1),
        "chat_stream_all_ms": [round(value, 1) for value in alone],
        "page_all_ms": [round(value, 1) for value in on_page],
    }
    print(f"chat_stream() alone: {record['chat_stream_ms']} ms to the first text (median)")
    print(f"the page:            {record['page_ms']} ms from the click")
    if arguments.output:
        durable.write_json(Path(arguments.output), record)
    print(json.dumps(record))


def measure(local: LocalModel, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first text, by (`chat_stream()` alone, the page), alternating."""
    alone, on_page = [], []
    with server.running(local) as served, sync_playwright() as playwright:
        chromium = browser.launch(playwright)
        page = chromium.new_page()
        browser.open_page(page, served.address)
        for number in range(rounds + 1):
            first = first_piece(local)
            shown = first_text(page)
            if number:  # the first round warms both up
                alone.append(first)
                on_page.append(shown)
        chromium.close()
    return alone, on_page


def take_picture(local: LocalModel, path: str) -> None:
    """A picture of the page with a question about a shipped image, its answer and what was seen."""
    with server.running(local) as served, sync_playwright() as playwright:
        chromium = browser.launch(playwright)
        page = chromium.new_page(viewport=VIEWPORT)
        browser.open_page(page, served.address)
        browser.ask(page, QUESTION, [PICTURE])
        page.keyboard.press("Enter")
        page.wait_for_selector("#conversation .title .duration")
        page.wait_for_selector(READY)
        page.get_by_role("button", name="What the model saw").click()
        page.wait_for_selector("#panel meter")
        page.wait_for_timeout(1000)  # for what moves
        page.screenshot(path=path, full_page=True)
        chromium.close()


def first_piece(local: LocalModel) -> float:
    """Milliseconds until `chat_stream()` gives its first piece."""
    options: dict[str, Any] = {"max_new_tokens": 256, "do_sample": False}
    begun = time.perf_counter()
    with local.model.chat_stream(local.tokenizer, str(PICTURE), QUESTION, options) as stream:
        next(stream)
        first = time.perf_counter() - begun
        for _ in stream:
            pass
    return first * 1000


def first_text(page: Page) -> float:
    """Milliseconds from a click on the page to the first text of the model."""
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_function("!document.querySelector('#conversation [data-testid=bot]')")
    browser.ask(page, QUESTION, [PICTURE])
    pictures.open_picture.cache_clear()  # `chat_stream()` has to open it as well
    milliseconds = page.evaluate(FIRST_TEXT)
    page.wait_for_selector(READY)
    return milliseconds


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sys.exit(main())
