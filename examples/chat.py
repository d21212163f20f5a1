"""Ask a checkpoint about images, thinking and answer printed as they come.

    python examples/chat.py                                    # nano, about a shipped image
    python examples/chat.py --model . --image a.jpg b.jpg \\
        --question "What changed?"

Without a question a conversation begins, if input and output are a terminal's
(examples/terminal.py); anywhere else one question is asked. `make chat` calls it with MODEL=,
IMAGE= and QUESTION=.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, GenerationConfig, TextStreamer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the file can be run from any folder

from examples import command_line  # noqa: E402
from examples.dialogue import Dialogue  # noqa: E402
from examples.terminal import Terminal  # noqa: E402

NANO = ROOT / "nano"
DEFAULT_IMAGE = ROOT / "examples" / "images" / "calculation_1.png"
DEFAULT_QUESTION = "What is the result of the calculation in the image?"
QUESTION_FOR_OTHER_MODELS = "Describe this image."
MAX_NEW_TOKENS = 8192


class PrintedAnswer(TextStreamer):
    """Prints the answer as it is generated, under headings for thinking and answer."""

    def __init__(self, tokenizer: Any, thinks: bool) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        print("Thinking:" if thinks else "Answer:")

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print the next part of the answer."""
        text = text.replace("</think>", "\nFinal answer:")
        print(text, end="\n" if stream_end else "", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(NANO), help="a directory or a Hub id")
    parser.add_argument(
        "--image", nargs="*", help="image files or URLs; none for a question about text"
    )
    parser.add_argument("--question", help="what is asked; by default about the shipped image")
    parser.add_argument(
        "--max-new-tokens", type=int, help="default: 8192, at most half of the context"
    )
    return parser.parse_args()


def is_nano(path: str) -> bool:
    """Whether a path is that of the nano checkpoint."""
    return Path(path).resolve() == NANO


def check_model(path: str) -> None:
    """Check that a model is a directory, or can be a Hub id.

    Raises:
        FileNotFoundError: it looks like a directory that does not exist.
    """
    could_be_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if not Path(path).is_dir() and not could_be_hub_id:
        raise FileNotFoundError(f"MODEL={path}: no such directory.")


def check_images(images: list[str]) -> None:
    """Check that images that are no URLs are files.

    Raises:
        FileNotFoundError: one is not.
    """
    for image in images:
        is_url = image.startswith(("http://", "https://"))
        if not is_url and not Path(image).is_file():
            raise FileNotFoundError(f"IMAGE={image}: no such image file.")


def images_and_question(arguments: argparse.Namespace) -> tuple[list[str], str]:
    """What is asked about what; the shipped image where the command line names neither."""
    if arguments.image is None and arguments.question is None:
        return [str(DEFAULT_IMAGE)], DEFAULT_QUESTION
    question = arguments.question
    if not question:
        question = DEFAULT_QUESTION if is_nano(arguments.model) else QUESTION_FOR_OTHER_MODELS
    return arguments.image or [], question


def load(path: str) -> tuple[Any, Any, GenerationConfig]:
    """(model, tokenizer, generation config) on the GPUs, split over them, or on the CPU.

    Raises:
        OSError: there is no such model, with its path.
    """
    dtype: Any = "auto"
    device_map = None
    if torch.cuda.is_available():
        dtype = torch.bfloat16
        device_map = "split"
    elif is_nano(path):
        dtype = torch.float32
    try:
        model = AutoModel.from_pretrained(
            path, torch_dtype=dtype, device_map=device_map, trust_remote_code=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    except OSError as error:
        raise OSError(f"MODEL={path} could not be loaded: {error}") from error
    try:
        generation_config = GenerationConfig.from_pretrained(path)
    except OSError:  # a checkpoint without the file
        generation_config = GenerationConfig(do_sample=False)
    return model.eval(), tokenizer, generation_config


def options_of(model: Any, config: GenerationConfig, length: int | None) -> dict[str, Any]:
    """A checkpoint's settings as keywords of `generate`.

    Args:
        length: of the longest answer, in tokens; None is `MAX_NEW_TOKENS`, or half of the context.
    """
    half_of_context = model.config.llm_config.max_position_embeddings // 2
    options = config.to_diff_dict()
    options.pop("transformers_version", None)
    options["max_new_tokens"] = length or min(MAX_NEW_TOKENS, half_of_context)
    return options


def shown_path(path: str) -> str:
    """A path or URL as it is shown: relative where it lies below the working directory."""
    if os.path.isabs(path) and Path(path).is_relative_to(Path.cwd()):
        return os.path.relpath(path)
    return path


def ask_once(
    model: Any, tokenizer: Any, images: list[str], question: str, options: dict[str, Any]
) -> None:
    """Ask a question, and print thinking and answer."""
    shown = ", ".join(map(shown_path, images)) or "none"
    print(f"Image:    {shown}\nQuestion: {question}\n")
    streamer = PrintedAnswer(tokenizer, model.conv_template.opens_thinking)
    model.chat(tokenizer, images or None, question, {"streamer": streamer, **options})


def converse(arguments: argparse.Namespace, dialogue: Dialogue) -> None:
    """A conversation in the terminal; where no image is given it begins with an example."""
    print(f"A conversation with {arguments.model}. /help lists the commands, Ctrl-D ends it.\n")
    terminal = Terminal(dialogue)
    if arguments.image:
        dialogue.add_images(arguments.image)
        print(f"With your first question: {', '.join(arguments.image)}")
    else:
        print(f"An example:\nImage:    {shown_path(str(DEFAULT_IMAGE))}")
        print(f"Question: {DEFAULT_QUESTION}\n")
        dialogue.add_images([str(DEFAULT_IMAGE)])
        terminal.ask(DEFAULT_QUESTION)
        dialogue.start_anew()
        print("\nNow yours: /image PATH shows an image with the next question.")
    if is_nano(arguments.model):
        print("The nano checkpoint was taught single questions: begin each with /new.")
    terminal.run()


def main() -> None:
    """Ask a checkpoint as the command line says, or hold a conversation."""
    arguments = parse_arguments()
    check_model(arguments.model)
    images, question = images_and_question(arguments)
    check_images(images)
    model, tokenizer, generation_config = load(arguments.model)
    options = options_of(model, generation_config, arguments.max_new_tokens)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if arguments.question is None and is_terminal:
        converse(arguments, Dialogue(model, tokenizer, options))
    else:
        ask_once(model, tokenizer, images, question, options)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        # a console of Windows has no letters of other languages
        stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    command_line.run(main)
