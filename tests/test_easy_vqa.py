"""The data of the page and its counts, on a stand-in for the package, which is no test package."""

import json
import sys
import types

import pytest
from PIL import Image

from examples.easy_vqa import __main__ as easy_vqa
from examples.easy_vqa import kinds

NUM_TRAIN = 250
NUM_TEST = 40


def stand_in(folder):
    """A module with easy-vqa's functions: three questions about each picture."""

    def questions(count):
        rows = []
        for picture in range(count):
            rows += [
                ("what color is the shape?", "teal", picture),
                ("what shape is in the image?", "circle", picture),
                ("is there a red shape?", "no", picture),
                *[("is there a circle?", "yes", picture)] * 6,
            ]
        return tuple(list(column) for column in zip(*rows))

    def paths(count):
        found = {}
        for number in range(count):
            found[number] = str(folder / f"{number}.png")
            Image.new("RGB", (64, 64), (number, 0, 0)).save(found[number])
        return found

    module = types.ModuleType("easy_vqa")
    module.get_train_questions = lambda: questions(NUM_TRAIN)
    module.get_test_questions = lambda: questions(NUM_TEST)
    module.get_train_image_paths = lambda: paths(NUM_TRAIN)
    module.get_test_image_paths = lambda: paths(NUM_TEST)
    return module


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_data(tmp_path, monkeypatch):
    """No picture is in two of them; blank.jsonl asks what test.jsonl does."""
    (tmp_path / "source").mkdir()
    monkeypatch.setitem(sys.modules, "easy_vqa", stand_in(tmp_path / "source"))
    out = tmp_path / "data"
    assert easy_vqa.main([str(out)]) == 0
    train, validation, test, blank = (
        read(out / f"{name}.jsonl") for name in ("train", "validation", "test", "blank")
    )
    assert len(train) == NUM_TRAIN - easy_vqa.VALIDATION_PICTURES
    assert len(validation) == easy_vqa.VALIDATION_QUESTIONS
    assert len(test) == len(blank) == easy_vqa.TEST_QUESTIONS
    assert not {row["image"] for row in train} & {row["image"] for row in validation}
    assert all(len(row["conversations"]) == 2 * 9 for row in train)
    for row in train:
        questions = [turn["value"] for turn in row["conversations"][::2]]
        assert [question.count("<image>") for question in questions] == [1] + [0] * 8
    assert [row["conversations"] for row in test] == [row["conversations"] for row in blank]
    assert {row["image"] for row in blank} == {"blank.png"}
    assert all((out / row["image"]).is_file() for row in [*train, *validation, *test, *blank])


def test_without_the_package_the_error_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    assert easy_vqa.main([str(tmp_path / "data")]) == 1
    assert "pip install easy-vqa" in capsys.readouterr().err


@pytest.mark.parametrize("answer, kind", [
    ("rectangle", "shapes"), ("teal", "colours"), ("no", "yes or no"),
])  # fmt: skip
def test_kinds(answer, kind):
    assert kinds.kind_of(answer) == kind


def test_counts(tmp_path, capsys):
    answers = [("circle", True), ("teal", False), ("yes", True), ("no", False)]
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "".join(json.dumps({"expected": a, "right": right}) + "\n" for a, right in answers)
    )
    assert kinds.main([str(path)]) == 0
    printed = capsys.readouterr().out.strip()
    assert "shapes 1 of 1 (100 %), colours 0 of 1 (0 %)" in printed
    assert printed.endswith("yes or no 1 of 2 (50 %), all 2 of 4 (50 %)")
