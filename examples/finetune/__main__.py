"""Fine-tunes a checkpoint on images and answers, and shows what it said before and says after.

    python -m examples.finetune                                  # minutes on a laptop
    python -m examples.finetune --config my_recipe.yaml --test my_test.jsonl

Trains by the recipe (`training.sft`), then asks the test questions of the checkpoint before, of
the fine-tuned repository (LoRA merged) and, if the recipe saved one, of the adapter on the old
checkpoint. Prints how many are right and writes a picture of a few of them, before_after.png,
beside the fine-tuned model.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from transformers import AutoModel, AutoTokenizer

from answers.extraction import find, last_box
from answers.judging import Judge, Question
from tasks.drawing import font_paths, load_font
from training import sft
from training.rows import json_lines

HERE = Path(__file__).resolve().parent
OPTIONS = {"max_new_tokens": 160, "do_sample": False}
# The sheet of pictures with answers, in pixels.
ROW_HEIGHT = 190
PICTURE_SIDE = 180
TEXT_LEFT = 200
SHEET_WIDTH = 820
FONT_SIZE = 13
CHARACTERS_PER_LINE = 84


class TestQuestion(NamedTuple):
    """A line of the test set.

    Attributes:
        image: its path.
        question: with the placeholder of the image.
        answer: what the box of the right answer holds.
    """

    image: Path
    question: str
    answer: str


def read_test(path: Path) -> list[TestQuestion]:
    """The questions of a test set.

    Args:
        path: a JSONL as for training; images are relative to its folder.

    Raises:
        ValueError: an answer without a box, which could not be compared.
    """
    questions = []
    for row in json_lines([path]):
        sample = json.loads(row["line"])
        asked, answered = sample["conversations"][:2]
        answer = last_box(answered["value"])
        if answer is None:
            raise ValueError(
                f"{path}, line {row['number']}: no \\boxed{{…}} in the answer "
                f"{answered['value'][-40:]!r}."
            )
        questions.append(TestQuestion(path.parent / sample["image"], asked["value"], answer))
    return questions


def ask(model: Any, tokenizer: Any, test: list[TestQuestion], batch_size: int = 20) -> list[str]:
    """What the model answers to each question, thinking included."""
    answers = []
    for start in range(0, len(test), batch_size):
        batch = test[start : start + batch_size]
        images = [question.image for question in batch]
        questions = [question.question for question in batch]
        answers += model.batch_chat(tokenizer, images, questions, OPTIONS)
    return answers


def count_right(test: list[TestQuestion], answers: list[str]) -> int:
    """How many final answers are the right ones."""
    judge = Judge()  # of texts, for which it needs no process
    right = 0
    for question, said in zip(test, answers):
        expected = Question("text", question.answer)
        right += judge.judge(expected, said, thinking_opened=True).is_right
    return right


def load(path: str | Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a repository, in float32."""
    model = AutoModel.from_pretrained(path, torch_dtype=torch.float32, trust_remote_code=True)
    return model.eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=True)


def draw_comparison(
    test: list[TestQuestion], before: list[str], after: list[str], path: Path, shown: int = 6
) -> None:
    """Write pictures with the answers before and after; those first whose answer changed.

    Args:
        path: of the picture.
        shown: how many questions it shows.
    """

    def is_unchanged(index: int) -> bool:
        """Whether a question has the same answer before and after."""
        return find(before[index], True).answer == find(after[index], True).answer

    chosen = sorted(range(len(test)), key=is_unchanged)[:shown]
    font = load_font(font_paths()[0], FONT_SIZE)
    sheet = Image.new("RGB", (SHEET_WIDTH, ROW_HEIGHT * len(chosen)), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, index in enumerate(chosen):
        top = ROW_HEIGHT * row
        picture = Image.open(test[index].image).convert("RGB")
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        sheet.paste(picture, (5, top + 5))
        lines = [f"right: {test[index].answer}"]
        lines += wrapped("before", before[index])
        lines += wrapped("after", after[index])
        text = "\n".join(lines)
        canvas.multiline_text((TEXT_LEFT, top + 12), text, fill="black", font=font, spacing=5)
    sheet.save(path)


def wrapped(heading: str, answer: str) -> Iterable[str]:
    """An answer in lines that fit the sheet."""
    return textwrap.wrap(f"{heading}: {' '.join(answer.split())}", CHARACTERS_PER_LINE)


def print_score_of_adapter(
    model: Any, tokenizer: Any, test: list[TestQuestion], adapter: Path, name: str
) -> None:
    """Ask the old checkpoint with the adapter on it, and print how many answers are right.

    Args:
        model: the old checkpoint.
        adapter: the directory of the adapter.
        name: of the old checkpoint.
    """
    from peft import PeftModel

    with_adapter = PeftModel.from_pretrained(model, adapter).eval()
    answers = ask(with_adapter.base_model.model, tokenizer, test)
    print(f"adapter on {name}: {count_right(test, answers)} of {len(test)} right")


def parse_arguments() -> tuple[Path, Any, Any]:
    """The test set, and the recipe with its trainer's config, that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", default=str(HERE / "recipe.yaml"), help="the recipe of training.sft"
    )
    parser.add_argument(
        "--test", type=Path, default=HERE / "test.jsonl", help="a JSONL with boxed answers"
    )
    arguments, overrides = parser.parse_known_args()
    recipe, config = sft.parse(["--config", arguments.config, *overrides])
    if "model" not in recipe.save:
        parser.error(
            f"save: {recipe.save}; the fine-tuned repository (model) is asked afterwards, so it "
            "has to be saved."
        )
    return arguments.test, recipe, config


def main() -> None:
    """Ask, train, and ask again."""
    test_path, recipe, config = parse_arguments()
    test = read_test(test_path)
    model, tokenizer = load(recipe.model)
    before = ask(model, tokenizer, test)
    print(f"before: {count_right(test, before)} of {len(test)} right")
    summary = sft.train(recipe, config)
    print(
        f"trained {summary['trained_parameters']:,} parameters, {summary['steps']} steps, "
        f"{summary['seconds']} s"
    )
    folder = Path(config.output_dir)
    after = ask(*load(folder / "model"), test)
    print(f"after: {count_right(test, after)} of {len(test)} right ({folder / 'model'})")
    if (folder / "adapter").is_dir():
        print_score_of_adapter(model, tokenizer, test, folder / "adapter", recipe.model)
    draw_comparison(test, before, after, folder / "before_after.png")
    print(f"pictures with both answers: {folder / 'before_after.png'}")


if __name__ == "__main__":
    main()
