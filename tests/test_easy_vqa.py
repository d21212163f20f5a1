"""Teaching a checkpoint easy-VQA: its data, recipes, rates and table."""

import collections
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from examples.easy_vqa import __main__ as command
from examples.easy_vqa import data, rates, recipes
from examples.easy_vqa.questions import (
    COLOURS,
    FAMILIES,
    SHAPES,
    Question,
    family_of,
    thinking_of,
    told_by,
)
from tests.checkpoints import NANO
from training import score, sft
from training.optimizer import RATE_OF_PART

FILES = ("train", "dev", "test", "blank")


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("easy_vqa", reason="pip install easy-vqa")


@pytest.fixture(scope="module")
def folder(package, tmp_path_factory):
    """A small data set: 24 questions to train on, 6 to choose by, 12 held out."""
    path = tmp_path_factory.mktemp("easy_vqa")
    arguments = ["data", str(path), "--train", "24", "--dev", "6", "--test", "12"]
    assert command.main(arguments) == 0
    return path


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def asked_in(row):
    """(question, answer, number of the picture) of a line, as the package has them."""
    question, answer = [turn["value"] for turn in row["conversations"]]
    box = answer.rpartition("\\boxed{")[2].removesuffix("}")
    return question.removeprefix("<image>\n"), box, int(Path(row["image"]).stem)


# -- questions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, answer, told, reason", [
    ("what shape is present?", "circle", {"circle"}, "the answer is a shape"),
    ("what color is the circle?", "red", {"circle", "red"}, "the question names the shape"),
    ("what is the red shape?", "circle", {"circle", "red"}, "the question names the colour"),
    ("is there a blue shape?", "yes", {"blue"}, "yes: what it names is there"),
    ("is there a blue shape?", "no", set(), "no: that does not say which colour it is"),
    ("is there not a circle?", "no", {"circle"}, "twice no"),
    ("is no circle present?", "yes", set(), "yes, it is not there"),
    ("does the image not contain a teal shape?", "no", {"teal"}, "twice no"),
])  # fmt: skip
def test_what_a_question_tells(text, answer, told, reason):
    assert told_by(Question(text, answer, 0)) == told, reason


@pytest.mark.parametrize("text, answer, facts, thinking", [
    ("what shape is present?", "circle", {"circle", "red"}, "I see red circle. The circle is red."),
    ("what shape is present?", "circle", {"circle"}, "I see circle."),
    ("what color is the shape?", "red", {"red"}, "I see red shape. It is red."),
    ("is no blue shape present?", "yes", {"circle", "red"},
     "I see red circle. There is no blue shape."),
    ("is there not a circle?", "no", {"circle"}, "I see circle. There is a circle."),
    ("is there a circle?", "no", set(), "There is no circle."),
])  # fmt: skip
def test_the_thinking_says_what_is_known(text, answer, facts, thinking):
    assert thinking_of(Question(text, answer, 0), facts) == thinking


def test_an_unknown_answer_is_named():
    with pytest.raises(ValueError, match="answer 'purple'"):
        family_of("purple")


# -- data ------------------------------------------------------------------------------------------


def test_lines_are_the_packages_own(folder, package):
    """Each question stands in the split it is from, with its answer and its very picture."""
    splits = {
        "train": (package.get_train_questions(), package.get_train_image_paths()),
        "test": (package.get_test_questions(), package.get_test_image_paths()),
    }
    for name, split in [("train", "train"), ("dev", "train"), ("test", "test")]:
        questions, pictures = splits[split]
        known = set(zip(*questions))
        for row in rows_of(folder, name):
            assert asked_in(row) in known
            ours = (folder / row["image"]).read_bytes()
            assert ours == Path(pictures[asked_in(row)[2]]).read_bytes()


def test_a_third_is_of_each_family(folder, package):
    for name, count in [("train", 24), ("dev", 6), ("test", 12), ("blank", 12)]:
        families = collections.Counter(row["family"] for row in rows_of(folder, name))
        assert families == dict.fromkeys(FAMILIES, count // 3), name
    answers = {*package.get_answers()}
    assert {asked_in(row)[1] for name in FILES for row in rows_of(folder, name)} <= answers


def test_settings_are_chosen_by_pictures_that_are_not_trained_on(tmp_path, package):
    """With questions about nearly all of dev's pictures: small draws would hardly ever meet."""
    data.write_data(tmp_path, data.Counts(train=900, dev=900, test=3))
    pictures = [{row["image"] for row in rows_of(tmp_path, name)} for name in ("train", "dev")]
    assert len(pictures[0]) > 600 and len(pictures[1]) > 300
    assert not pictures[0] & pictures[1]


def shape_in(picture):
    """(colour, shape) of a picture by its pixels: the ink's name, and how full its box is."""
    pixels = np.asarray(Image.open(picture)).astype(int)
    inked = (abs(pixels - pixels[0, 0]) > 8).any(axis=2)
    # The colours are those of CSS, but for green, which CSS calls lime; edges are mixed
    inks = {ImageColor.getrgb(name): name for name in COLOURS} | {(0, 255, 0): "green"}
    found = collections.Counter(inks.get(tuple(ink)) for ink in pixels[inked].tolist())
    del found[None]
    [(colour, _)] = found.most_common(1)
    rows, columns = np.nonzero(inked)
    fullness = inked.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    shape = "triangle"  # half of its box
    if fullness > 0.65:
        shape = "circle"  # pi / 4 of it
    if fullness > 0.9:
        shape = "rectangle"
    return colour, shape


def test_the_thinking_says_what_the_pixels_show(folder):
    """What is put together from questions, against the pictures."""
    pairs = 0
    for row in rows_of(folder, "train"):
        thinking = row["conversations"][1]["value"].split("</think>")[0]
        seen = thinking.split(".")[0].removeprefix("I see ").split()
        facts = {word for word in seen if word in SHAPES or word in COLOURS}
        assert facts <= {*shape_in(folder / row["image"])}, thinking
        pairs += len(facts) == 2
    assert pairs > 12


def test_blank_pictures_ask_the_same_about_nothing(folder):
    for seen, unseen in zip(rows_of(folder, "test"), rows_of(folder, "blank")):
        assert seen["conversations"] == unseen["conversations"]
        picture = np.asarray(Image.open(folder / seen["image"]))
        blank = np.asarray(Image.open(folder / unseen["image"]))
        assert blank.shape == picture.shape == (64, 64, 3)
        assert (blank == picture[0, 0]).all() and (picture != picture[0, 0]).any()


def test_lines_to_score_have_no_thinking(folder):
    for row in rows_of(folder, "test"):
        assert row["conversations"][1]["value"].startswith("\n</think>")


def test_the_same_seed_gives_the_same_lines(folder, tmp_path):
    counts = data.Counts(24, 6, 12)
    for seed, is_same in [(0, True), (1, False)]:
        data.write_data(tmp_path, counts, seed)
        for name in FILES:
            again = (tmp_path / f"{name}.jsonl").read_bytes()
            assert (again == (folder / f"{name}.jsonl").read_bytes()) == is_same


@pytest.mark.parametrize("flags, words", [
    (["--test", "100"], "100 questions for test: expected a multiple of 3"),
    (["--train", "0"], "0 questions for train"),
    (["--test", "9000"], "need 3000 of the family shape"),
])  # fmt: skip
def test_wrong_numbers_are_one_line(package, tmp_path, capsys, flags, words):
    assert command.main(["data", str(tmp_path / "out"), *flags]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()  # nothing was written before


def test_without_the_package_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)  # as if it were not installed
    assert command.main(["data", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "pip install easy-vqa" in error and error.count("\n") == 1


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.NAMES)
def test_recipes_name_a_rate_for_each_part_that_trains(name):
    recipe = recipes.read(name)
    parts = {"lora": "language_model"}
    keys = {RATE_OF_PART[parts.get(part, part)] for part in recipe.train}
    assert recipes.rates_of(recipe).keys() == keys


def test_every_recipe_beside_the_code_is_known():
    assert {path.stem for path in recipes.HERE.glob("*.yaml")} == set(recipes.NAMES)


@pytest.mark.parametrize("name", ["vision_model", "lora"])
def test_two_steps_train_what_the_recipe_names(folder, tmp_path, name):
    flags = [
        "--config", str(recipes.path_of(name)), "--model", str(NANO),
        "--data", str(folder / "train.jsonl"), "--output_dir", str(tmp_path),
        "--max_steps", "2", "--save_strategy", "no", "--global_batch_size", "4",
        "--per_device_train_batch_size", "4", "--save", "mlp1",
    ]  # fmt: skip
    summary = sft.train(*sft.parse(flags))
    assert summary["steps"] == 2 and summary["samples"]["read"] >= 8
    assert summary["samples"]["broken"] == summary["samples"]["too_long"] == 0


def test_rates_are_tried_once(tmp_path, monkeypatch, capsys):
    """Each run has its multiple of the recipe's rates; only other data let it run again."""
    commands = []
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")

    def train(command, **keywords):
        settings = dict(zip(command[3::2], command[4::2]))
        out = Path(settings["--output_dir"])
        out.mkdir(parents=True, exist_ok=True)
        summary = {"eval_right": {"last": 0.5}, "eval_loss": {"last": 0.25}}
        (out / "summary.json").write_text(json.dumps(summary))
        commands.append(settings)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(rates.subprocess, "run", train)
    flags = ["rates", str(tmp_path), "--recipes", "mlp1", "lora", "--factors", "0.5", "2"]
    assert command.main(flags) == 0
    assert command.main(flags) == 0
    first, second = capsys.readouterr().out.split("| recipe ")[1:]
    assert first == second and first.count("50.0 % | 0.250 |") == 4
    assert len(commands) == 4
    own = recipes.rates_of(recipes.read("lora"))
    for settings, factor in zip(commands[2:], (0.5, 2)):
        for key, rate in own.items():
            assert float(settings[f"--{key}"]) == pytest.approx(factor * rate)
    (tmp_path / "train.jsonl").write_text("{}\n{}\n")
    assert command.main(flags) == 0 and len(commands) == 8


def test_a_training_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    failed = type("Done", (), {"returncode": 3})
    monkeypatch.setattr(rates.subprocess, "run", lambda *arguments, **keywords: failed)
    assert command.main(["rates", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "ended with 3" in error and error.count("\n") == 1


@pytest.mark.parametrize("flags, words", [
    (["--steps", "0"], "have to be above 0"),
    (["--factors", "-1"], "have to be above 0"),
    ([], "examples.easy_vqa data"),
])  # fmt: skip
def test_what_cannot_be_tried_is_one_line(tmp_path, capsys, flags, words):
    assert command.main(["rates", str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


# -- table -----------------------------------------------------------------------------------------


def write_score(folder, right):
    """A report of `training.score` of 100 questions a family, by its own code."""
    shares = {family: score.Share(right[family], 100) for family in FAMILIES}
    content = {
        "all": score.Share(sum(right.values()), 300).as_json(),
        "groups": {family: share.as_json() for family, share in shares.items()},
    }
    folder.mkdir(parents=True)
    (folder / score.SCORE_FILE).write_text(json.dumps(content))


def test_the_table_has_before_after_and_blank(tmp_path, capsys):
    write_score(tmp_path / "before", {"shape": 1, "colour": 2, "yes/no": 0})
    write_score(tmp_path / "mlp1" / "after", {"shape": 98, "colour": 91, "yes/no": 90})
    write_score(tmp_path / "mlp1" / "blank", {"shape": 33, "colour": 12, "yes/no": 81})
    (tmp_path / "mlp1" / "summary.json").write_text('{"seconds": 330}')
    assert command.main(["table", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 2 * len(recipes.NAMES)
    assert lines[2] == (
        "| nothing | before | 1 of 100 (1.0 %) | 2 of 100 (2.0 %) | 0 of 100 (0.0 %) "
        "| 3 of 300 (1.0 %) |  |"
    )
    assert lines[3].startswith("| mlp1 | after | 98 of 100 (98.0 %) | 91 of 100")
    assert lines[3].endswith("| 279 of 300 (93.0 %) | 5.5 |")
    assert lines[4].startswith("| mlp1 | blank pictures | 33 of 100")
    assert lines[-1].count("not measured") == len(FAMILIES) + 1


def test_scores_without_families_are_one_line(tmp_path, capsys):
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / score.SCORE_FILE).write_text('{"groups": {}}')
    assert command.main(["table", str(tmp_path)]) == 1
    assert "--by family" in capsys.readouterr().err
