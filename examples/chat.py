"""Ask a checkpoint about images, thinking and answer printed as they come.

    python examples/chat.py                                    # the nano checkpoint, about a shipped image
    python examples/chat.py --model Skywork/Skywork-R1V-38B --image a.jpg b.jpg --question "What changed?"

`make chat` calls it with MODEL=, IMAGE= and QUESTION=.
"""

import argparse
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoTokenizer, GenerationConfig, TextStreamer

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "nano"
DEFAULT_IMAGE = ROOT / "examples" / "images" / "calculation_1.png"
DEFAULT_QUESTION = "What is the result of the calculation in the image?"


class PrintedAnswer(TextStreamer):
    """Prints the answer as it is generated, under headings for thinking and answer."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        print("Thinking:")

    def on_finalized_text(self, text, stream_end=False):
        text = text.replace("</think>", "\nFinal answer:")
        print(text, end="\n" if stream_end else "", flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(NANO), help="a directory or a Hub id")
    parser.add_argument(
        "--image", nargs="*", help="image files or URLs; none for a question about text"
    )
    parser.add_argument("--question")
    parser.add_argument(
        "--max-new-tokens", type=int, help="default: 8192, at most half of the context"
    )
    return parser.parse_args()


def is_nano(path):
    return Path(path).resolve() == NANO


def load(path):
    """(model, tokenizer, generation config) on the GPUs, split over them, or on the CPU."""
    on_gpu = torch.cuda.is_available()
    model = AutoModel.from_pretrained(
        path,
        torch_dtype=torch.bfloat16 if on_gpu else torch.float32 if is_nano(path) else "auto",
        device_map="split" if on_gpu else None,
        trust_remote_code=True,
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    try:
        generation_config = GenerationConfig.from_pretrained(path)
    except OSError:  # a checkpoint without the file
        generation_config = GenerationConfig(do_sample=False)
    return model, tokenizer, generation_config


def main():
    arguments = parse_arguments()
    path = arguments.model
    if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise FileNotFoundError(f"MODEL={path}: no such directory.")
    is_default = arguments.image is None and arguments.question is None
    images = [str(DEFAULT_IMAGE)] if is_default else arguments.image or []
    for image in images:
        if not image.startswith(("http://", "https://")) and not Path(image).is_file():
            raise FileNotFoundError(f"IMAGE={image}: no such image file.")
    question = arguments.question or (
        DEFAULT_QUESTION if is_default or is_nano(path) else "Describe this image."
    )
    try:
        model, tokenizer, generation_config = load(path)
    except OSError as error:
        raise OSError(f"MODEL={path} could not be loaded: {error}") from error
    half = model.config.llm_config.max_position_embeddings // 2
    generation_config.max_new_tokens = arguments.max_new_tokens or min(8192, half)
    print(f"Image:    {', '.join(images) or 'none'}\nQuestion: {question}\n")
    streamer = PrintedAnswer(tokenizer)
    options = {"streamer": streamer, **generation_config.to_diff_dict()}
    options.pop("transformers_version", None)
    model.chat(tokenizer, images or None, question, options)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
