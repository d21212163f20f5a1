"""The page: what is on it, and which events call which of the handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from demo.backend import Backend, LooksInside
from demo.handlers import Handlers
from demo.pictures import Limits
from demo.settings import MOST_NEW_TOKENS

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "examples" / "images"
STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
TITLE = "Skywork-R1V"
MOST_WAITING = 64  # questions of all visitors
SECONDS_OF_HOUR = 3_600
SECONDS_OF_WEEK = 604_800

LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
EXAMPLES = (
    ("What is the result of the calculation in the image?", ["calculation_1.png"]),
    ("How many shapes are in the image?", ["counting_1.png"]),
    ("Which image shows more shapes, the first or the second?", ["pair_1a.png", "pair_1b.png"]),
    ("Which bar is the tallest?", ["chart_1.png"]),
)
# Gradio's own fonts come from Google; these are on every machine.
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(  # Gradio's own greys are too pale to read (WCAG 2, 1.4.3)
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
)
DOWNLOAD = """(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "conversation.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""


def build(backend: Backend, limits: Limits) -> tuple[gr.Blocks, Handlers]:
    """The page for a model, and its handlers.

    Args:
        backend: that answers.
        limits: on what visitors send.
    """
    handlers = Handlers(backend, limits)
    with gr.Blocks(
        title=TITLE,
        analytics_enabled=False,
        delete_cache=(SECONDS_OF_HOUR, SECONDS_OF_WEEK),
    ) as blocks:
        gr.Markdown(f"# {TITLE}\nQuestions about pictures, answered by **{backend.name}**.")
        parts = _Parts(backend, limits)
        _connect(parts, handlers)
        blocks.unload(handlers.leave)
    blocks.queue(max_size=MOST_WAITING)
    return blocks, handlers


class _Parts:
    """The components of the page."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.turns = gr.State(())
        self.chatbot = gr.Chatbot(
            label="Conversation",
            elem_id="conversation",
            height="60vh",
            min_height=320,
            latex_delimiters=LATEX,  # pyright: ignore[reportArgumentType]
            buttons=["copy"],
            allow_tags=False,
            allow_file_downloads=False,
            placeholder="Ask about a picture: drop it below, paste it, or take an example.",
            examples=_examples(),
        )
        self.notice = gr.HTML(elem_id="notice", padding=False)
        self.box = gr.MultimodalTextbox(
            label="Question",
            show_label=False,
            elem_id="question",
            placeholder="Your question; drop or paste pictures here",
            file_types=["image"],
            file_count="multiple",
            max_plain_text_length=limits.characters_of_question,
            autofocus=True,
        )
        with gr.Row(elem_id="buttons"):
            self.edit = gr.Button("Edit the last question", size="sm")
            self.anew = gr.Button("New conversation", size="sm")
            self.download = gr.Button("Download as JSON", size="sm")
            self.saw = gr.Button("What the model saw", size="sm")
            self.looked: gr.Button | None = None
            if isinstance(backend, LooksInside):
                self.looked = gr.Button("Where it looked", size="sm")
        self.panel = gr.HTML(elem_id="panel", padding=False)
        self.file = gr.Textbox(visible="hidden", label="The file", elem_id="file")
        with gr.Accordion("Camera", open=False):
            self.photo = gr.Image(
                sources=["webcam"], type="filepath", label="Photo", elem_id="camera"
            )
            self.add_photo = gr.Button("Add the photo to the question", size="sm")
        with gr.Accordion("Settings", open=False):
            self.controls = _controls(backend)


def _examples() -> list[Any]:
    """The examples that ship, as the chatbot shows them while it is empty."""
    examples = []
    for question, names in EXAMPLES:
        files = []
        for name in names:
            files.append(str(IMAGES / name))
        examples.append({"text": question, "files": files})
    return examples


def _controls(backend: Backend) -> list[Any]:
    """The controls of the settings, in the order of the fields of `Settings`."""
    first = backend.defaults
    longest = min(MOST_NEW_TOKENS, backend.context or MOST_NEW_TOKENS)
    return [
        gr.Checkbox(
            first.thinks, label="Think before answering", interactive=backend.thinks
        ),
        gr.Number(
            first.thinking_budget,
            label="Thinking budget",
            info="Tokens after which the thinking is closed; 0 for as many as it takes.",
            precision=0,
            minimum=0,
            maximum=longest,
        ),
        gr.Slider(
            0, 2, first.temperature, step=0.05, label="Temperature",
            info="0 takes the likeliest token each time.",
        ),
        gr.Slider(
            0.05, 1, first.top_p, step=0.01, label="Top-p",
            info="Share of the probability that tokens are drawn from.",
        ),
        gr.Slider(
            1, 2, first.repetition_penalty, step=0.01, label="Repetition penalty",
            info="1 does nothing.",
        ),
        gr.Number(
            first.max_new_tokens,
            label="Longest answer",
            info="Tokens of thinking and answer together.",
            precision=0,
            minimum=1,
            maximum=longest,
        ),
        gr.Textbox(
            first.system_message, label="System message", lines=2, info="Empty: the model's own."
        ),
    ]  # fmt: skip


def _connect(parts: _Parts, handlers: Handlers) -> None:
    """Let events call handlers. None of them is a public interface."""
    shown = [parts.turns, parts.chatbot, parts.box]
    noted = [*shown, parts.notice]
    controls = parts.controls
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    at_once: dict[str, Any] = {**private, "queue": False}
    one_by_one: dict[str, Any] = {
        **private,
        "concurrency_limit": handlers.backend.parallel,
        "concurrency_id": "answers",
    }

    def ask_again(turns: Any, event: gr.RetryData, request: gr.Request, *values: Any) -> Any:
        index = event.index
        if isinstance(index, (list, tuple)):
            index = index[0]
        return handlers.ask_again(turns, request, index, *values)

    accepted = (
        parts.box.submit(handlers.accept, [parts.box, parts.turns, *controls], noted, **at_once),
        parts.chatbot.retry(ask_again, [parts.turns, *controls], noted, **at_once),
    )
    for event in accepted:
        event.success(handlers.answer, [parts.turns], shown, **one_by_one)
    parts.chatbot.example_select(_example, None, [parts.box], **at_once)
    parts.box.stop(handlers.stop, [parts.turns], shown, **at_once)
    parts.edit.click(handlers.edit, [parts.box, parts.turns], noted, **at_once)
    for event in (parts.anew.click, parts.chatbot.clear):
        event(handlers.begin_anew, None, [*shown, parts.panel, parts.notice], **at_once)
    parts.add_photo.click(
        handlers.add_photo,
        [parts.box, parts.photo],
        [parts.box, parts.photo, parts.notice],
        **at_once,
    )
    parts.download.click(handlers.as_json, [parts.turns], [parts.file], **at_once).then(
        None, [parts.file], None, js=DOWNLOAD, api_visibility="private"
    )
    panel = [parts.panel, parts.notice]
    parts.saw.click(handlers.what_it_saw, [parts.turns], panel, **at_once)
    if parts.looked is not None:
        parts.looked.click(handlers.where_it_looked, [parts.turns], panel, **one_by_one)


def _example(event: gr.SelectData) -> dict[str, Any]:
    """Put an example into the box for questions. What a browser says of its files is not read."""
    return _examples()[int(event.index)]
