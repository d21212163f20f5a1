"""Fine-tunes a checkpoint on a JSONL of images and answers, and shows what it said before and says after.

    python -m examples.finetune                                  # minutes on a laptop
    python -m examples.finetune --config my_recipe.yaml --test my_test.jsonl

Trains by the recipe (`training.sft`), then asks the test questions of the checkpoint before, of the fine-tuned
repository (LoRA merged) and, if the recipe saved one, of the adapter on the old checkpoint. Prints how many are right
and writes a picture of a few of them, before_after.png, beside the fine-tuned model.
"""

import argparse
import json
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import AutoModel, AutoTokenizer

from evaluation.nano import boxed
from tasks.drawing import font_paths, load_font
from training import sft
from training.data import json_lines

HERE = Path(__file__).resolve().parent
OPTIONS = {"max_new_tokens": 160, "do_sample": False}


def read_test(path):
    """(image paths, question, right answer) of each line.

    Raises:
        ValueError: an answer without a box, which could not be compared.
    """
    tests = []
    for row in json_lines([path]):
        sample = json.loads(row["line"])
        question, answer = (message["value"] for message in sample["conversations"][:2])
        if boxed(answer) is None:
            raise ValueError(
                f"{path}, line {row['number']}: no \\boxed{{…}} in the answer {answer[-40:]!r}."
            )
        tests.append((path.parent / sample["image"], question, boxed(answer)))
    return tests


def ask(model, tokenizer, tests, batch_size=20):
    """What the model answers to each test, thinking included."""
    answers = []
    for start in range(0, len(tests), batch_size):
        batch = tests[start : start + batch_size]
        images, questions = [image for image, _, _ in batch], [question for _, question, _ in batch]
        answers += model.batch_chat(tokenizer, images, questions, OPTIONS)
    return answers


def load(path):
    model = AutoModel.from_pretrained(
        path, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    return model, AutoTokenizer.from_pretrained(path, trust_remote_code=True)


def draw_comparison(tests, before, after, path, shown=6):
    """Pictures with the answers before and after; those first that changed."""
    order = sorted(
        range(len(tests)), key=lambda index: boxed(before[index]) == boxed(after[index])
    )[:shown]
    font = load_font(font_paths()[0], 13)
    sheet = Image.new("RGB", (820, 190 * len(order)), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, index in enumerate(order):
        image, _, right = tests[index]
        picture = Image.open(image).convert("RGB")
        picture.thumbnail((180, 180))
        sheet.paste(picture, (5, 190 * row + 5))
        lines = [f"right: {right}"]
        for name, answers in (("before", before), ("after", after)):
            said = " ".join(answers[index].split())
            lines += textwrap.wrap(f"{name}: {said}", 84)
        canvas.multiline_text(
            (200, 190 * row + 12), "\n".join(lines), fill="black", font=font, spacing=5
        )
    sheet.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", default=str(HERE / "recipe.yaml"), help="recipe of training.sft"
    )
    parser.add_argument(
        "--test", type=Path, default=HERE / "test.jsonl", help="JSONL with boxed answers"
    )
    arguments, overrides = parser.parse_known_args()
    recipe, config = sft.parse(["--config", arguments.config, *overrides])
    if "model" not in recipe.save:
        parser.error(
            f"save: {recipe.save}; the fine-tuned repository (model) is asked afterwards, so it has to be saved."
        )
    tests = read_test(arguments.test)

    def right(answers):
        return sum(boxed(said) == answer for said, (_, _, answer) in zip(answers, tests))

    model, tokenizer = load(recipe.model)
    before = ask(model, tokenizer, tests)
    print(f"before: {right(before)} of {len(tests)} right")
    summary = sft.train(recipe, config)
    folder = Path(config.output_dir)
    print(
        f"trained {summary['trained_parameters']:,} parameters, {summary['steps']} steps, {summary['seconds']} s"
    )
    after = ask(*load(folder / "model"), tests)
    print(f"after: {right(after)} of {len(tests)} right ({folder / 'model'})")
    if (folder / "adapter").is_dir():
        from peft import PeftModel

        with_adapter = PeftModel.from_pretrained(model, folder / "adapter").eval()
        scored = right(ask(with_adapter.base_model.model, tokenizer, tests))
        print(f"adapter on {recipe.model}: {scored} of {len(tests)} right")
    draw_comparison(tests, before, after, folder / "before_after.png")
    print(f"pictures with both answers: {folder / 'before_after.png'}")


if __name__ == "__main__":
    main()
