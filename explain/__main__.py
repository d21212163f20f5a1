"""Asks a question about images, and writes pictures of where the model looked.

    python -m explain --model nano --image examples/images/counting_1.png \\
        --question "How many shapes are in the image?" --out heat.png
    python -m explain --model nano --image examples/images/chart_3.png \\
        --question "Which bar is the tallest?" --passage "B 5" --out heat.png

Without --answer the model is asked, greedily. With several images each gets a picture of its own:
heat-1.png, heat-2.png and so on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image

import durable
from examples import command_line
from examples.chat import MAX_NEW_TOKENS, check_images, check_model, load
from explain.looking import LookSettings, image_processor_of, where_it_looked
from explain.occlusion import open_upright
from explain.picture import heat_over


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line, checked as far as they are without a model."""
    parser = argparse.ArgumentParser(
        prog="python -m explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="nano", help="a directory or a Hub id")
    parser.add_argument("--image", nargs="+", required=True, help="image files or URLs")
    parser.add_argument("--question", required=True, help="about all images")
    parser.add_argument("--answer", help="what a model wrote, with its thinking; else it is asked")
    parser.add_argument("--passage", help="words of the answer that are explained by themselves")
    parser.add_argument(
        "--cells",
        type=int,
        default=LookSettings.cells_per_side,
        help="along the longer side of an image; more are finer, and take longer",
    )
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    return parser.parse_args()


def paths_of_pictures(out: Path, count: int) -> list[Path]:
    """Where the picture of each image is written.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a name whose ending is that of no image format.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}.")
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {out}: expected the name of an image file, such as heat.png.")
    if count == 1:
        return [out]
    paths = []
    for number in range(1, count + 1):
        paths.append(out.with_name(f"{out.stem}-{number}{out.suffix}"))
    return paths


def answer_of(model: Any, tokenizer: Any, images: list[Image.Image], question: str) -> str:
    """What the model writes, greedily."""
    half_of_context = model.config.llm_config.max_position_embeddings // 2
    options = {"max_new_tokens": min(MAX_NEW_TOKENS, half_of_context), "do_sample": False}
    return model.chat(tokenizer, images, question, options)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format that its name ends in."""
    image_format = Image.registered_extensions()[path.suffix.lower()]
    with durable.writing(path) as file:
        picture.save(file, format=image_format)


def main() -> None:
    """Ask, look and write as the command line says."""
    arguments = parse_arguments()
    settings = LookSettings(arguments.cells)
    paths = paths_of_pictures(arguments.out, len(arguments.image))
    check_model(arguments.model)
    check_images(arguments.image)
    model, tokenizer, _ = load(arguments.model)
    image_processor = image_processor_of(model, tokenizer)
    images = []
    for source in arguments.image:
        images.append(open_upright(source, image_processor))
    question = arguments.question
    answer = arguments.answer or answer_of(model, tokenizer, images, question)
    print(answer)
    maps = where_it_looked(
        model, tokenizer, images, question, answer, arguments.passage, settings=settings
    )
    for image, weights, path in zip(images, maps, paths):
        write_picture(heat_over(image, weights), path)
        print(f"written: {path}")


if __name__ == "__main__":
    command_line.run(main)
