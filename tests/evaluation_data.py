"""Data sets with the columns of the real ones and made-up questions, as `--data` takes them.

Each question has a mark such as Q17 in its text, by which `tests/fake_endpoint.py` knows it.
"""

import io
import json
from pathlib import Path
from typing import NamedTuple

import datasets
from PIL import Image

from evaluation.scope import BENCHMARK_REGISTRY

GPQA_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


class Expected(NamedTuple):
    """What a question of the data is answered with.

    Attributes:
        right: the text of a final answer that is right.
        wrong: of one that is wrong.
    """

    right: str
    wrong: str


def picture(number):
    """PNG bytes of a picture that no other number has."""
    file = io.BytesIO()
    Image.new("RGB", (40 + number, 30), (number * 7 % 256, 90, 200)).save(file, "PNG")
    return file.getvalue()


def image(number):
    return {"bytes": picture(number), "path": f"{number}.png"}


def write_mmmu(folder, first):
    """A question of each of the 30 subjects, one parquet file each, as on the Hub."""
    expected = {}
    subjects = BENCHMARK_REGISTRY["mmmu"].subset_list
    configs = []
    for number, subject in enumerate(subjects, start=first):
        is_open = number % 5 == 0
        row = {
            "id": f"validation_{subject}_1",
            "question": f"Q{number}: what does <image 1> show, unlike <image 2>?",
            "options": "[]" if is_open else "['a cat', \"a dog's ear\", '<image 2>', '12 cm']",
            "explanation": "",
            "img_type": "['Photographs']",
            "answer": "['24/7', '3.429']" if is_open else "B",
            "topic_difficulty": "Easy",
            "question_type": "open" if is_open else "multiple-choice",
            "subfield": "Made up",
            **{f"image_{place}": None for place in range(1, 8)},
            "image_1": image(number),
            "image_2": image(number + 100),
        }
        columns = datasets.Features(
            {
                name: datasets.Image() if name.startswith("image_") else datasets.Value("string")
                for name in row
            }
        )
        path = folder / subject / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        datasets.Dataset.from_list([row], features=columns).to_parquet(path)
        configs.append((subject, "validation", f"{subject}/validation-*"))
        expected[f"Q{number}"] = Expected("3.429", "3.4") if is_open else Expected("B", "C")
    write_card(folder, configs)
    return expected


def write_math_vista(folder, first):
    """The five types of answers, with hints and units as in the real `query`."""
    hint = "Hint: Please answer the question and provide the final value at the end.\nQuestion: "
    rows, expected = [], {}
    types = [
        # question_type, answer_type, precision, unit, choices, answer, right, wrong
        ("multi_choice", "text", None, None, ["10", "12", "14"], "12", "B", "A or B"),
        ("free_form", "integer", None, "cm", None, "7", "7 cm", "7 m"),
        ("free_form", "float", 1.0, None, None, "1.2", "1.23", "1.26"),
        ("free_form", "float", 2.0, "$", None, "0.50", "\\$0.5", "0.55"),
        ("free_form", "list", None, None, None, "[1, 2, 3]", "1, 2, 3", "[1, 2]"),
    ]
    for number, (kind, answer_type, precision, unit, choices, answer, right, wrong) in enumerate(
        types, start=first
    ):
        text = f"Q{number}: how much is it?"
        query = hint + text + (f" (Unit: {unit})" if unit else "")
        if choices:
            query += "\nChoices:\n(A) 10\n(B) 12\n(C) 14"
        rows.append(
            {
                "pid": str(number),
                "question": text,
                "image": f"images/{number}.jpg",
                "decoded_image": image(number),
                "choices": choices,
                "unit": unit,
                "precision": precision,
                "answer": answer,
                "question_type": kind,
                "answer_type": answer_type,
                "metadata": {"category": "math-targeted-vqa", "task": "figure question answering"},
                "query": query,
            }
        )
        expected[f"Q{number}"] = Expected(right, wrong)
    table = datasets.Dataset.from_list(rows).cast_column("decoded_image", datasets.Image())
    path = folder / "data" / "testmini-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    table.to_parquet(path)
    write_card(folder, [("default", "testmini", "data/testmini-*")])
    return expected


def write_math_500(folder, first):
    """A JSONL file, as on the Hub."""
    answers = [
        ("\\frac{1}{2}", "\\dfrac12", "2"),
        ("[0, 1)", "[0,1)", "(0,1)"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", "(3, \\pi)"),
        ("x^2+2x+1", "(x+1)^2", "(x-1)^2"),
        ("1,000", "1000", "100"),
    ]
    rows, expected = [], {}
    for number, (gold, right, wrong) in enumerate(answers, start=first):
        rows.append(
            {
                "problem": f"Q{number}: compute it.",
                "solution": f"It is $\\boxed{{{gold}}}$.",
                "answer": gold,
                "subject": "Algebra",
                "level": number % 5 + 1,
                "unique_id": f"test/algebra/{number}.json",
            }
        )
        expected[f"Q{number}"] = Expected(right, wrong)
    write_lines(folder / "test.jsonl", rows)
    return expected


def write_aime24(folder, first):
    """Answers in the box of a solution, some with leading zeros."""
    answers = [
        ("204", "204", "205"),
        ("025", "25", "52"),
        ("0", "000", "none"),
        ("73", "73.0", "7.3"),
        ("9", "9", ""),
    ]
    rows, expected = [], {}
    for number, (gold, right, wrong) in enumerate(answers, start=first):
        rows.append(
            {
                "id": number,
                "problem": f"Q{number}: find the remainder.",
                "solution": f"\\boxed{{{gold}}}",
                "url": "https://example.org",
            }
        )
        expected[f"Q{number}"] = Expected(right, wrong)
    write_lines(folder / "test.jsonl", rows)
    return expected


def write_gpqa_diamond(folder, first):
    """A CSV file with the four answers in columns; which letter is right is not in the data."""
    rows, expected = [], {}
    for number in range(first, first + 5):
        rows.append(
            {
                "Record ID": f"rec{number}",
                "Question": f"Q{number}: which one is it?\n",
                "Correct Answer": "the right one ",
                **{column: f"wrong {column[-1]}" for column in GPQA_WRONG},
                "High-level domain": "Physics",
            }
        )
        expected[f"Q{number}"] = Expected("the right one", "wrong 2")
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_csv(folder / "gpqa_diamond.csv")
    write_card(folder, [("gpqa_diamond", "train", "gpqa_diamond.csv")])
    return expected


def write_lines(path, rows):
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_card(folder, configs):
    """The head of a README by which a data set of the Hub names its files."""
    lines = ["---", "configs:"]
    for name, split, files in configs:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}", f"    path: {files}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


WRITERS = {
    "mmmu": write_mmmu,
    "math_vista": write_math_vista,
    "math_500": write_math_500,
    "aime24": write_aime24,
    "gpqa_diamond": write_gpqa_diamond,
}


def write_all(folder: Path) -> dict[str, dict[str, Expected]]:
    """All five data sets; of each, by the mark of a question, what it is answered with."""
    first = 1
    expected = {}
    for name, write in WRITERS.items():
        expected[name] = write(folder / name, first)
        first += len(expected[name])
    return expected
