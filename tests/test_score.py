"""Scoring one's own questions, and the model cards of results."""

import json
import re
import shutil

import pytest
import yaml

from tests import checkpoints, trainers
from tests.test_sft import run, samples  # noqa: F401 - a fixture
from training import score
from training.card import model_card
from training.recipe import RecipeArguments, TrainingConfig

ROWS = (
    (["counting_1.png"], "How many shapes are in the image?", "</think>\\boxed{9}"),
    (["counting_3.png"], "How many shapes are in the image?", "</think>\\boxed{5}"),
    (["pair_1a.png", "pair_1b.png"], "Which image shows more shapes, the first or the second?",
     "</think>\\boxed{second}"),
    ([], "What is 3 + 4?", "</think>\\boxed{7}"),
    ([], "What is <3> + 4?", "</think>\\boxed{<8>}"),
)  # fmt: skip


@pytest.fixture
def questions(tmp_path):
    return trainers.write_lines(tmp_path / "test.jsonl", trainers.samples(questions=ROWS))


def test_right_and_wrong_answers(questions, tmp_path, capsys):
    """Two of five have an answer in the data that is wrong."""
    out = tmp_path / "score"
    arguments = ["--model", checkpoints.NANO, "--data", questions, "--out", out]
    assert score.main(list(map(str, arguments))) == 0
    printed = capsys.readouterr().out
    # Wilson's interval of 3 of 5, by hand: 23.1 to 88.2 %
    assert "3 of 5 right: 60.0 % (23.1 to 88.2, with 95 % confidence)" in printed
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["right"] for line in lines] == [True, False, True, True, False]
    assert lines[1]["expected"] == "5" and lines[1]["found"] == "6"
    assert lines[1]["where"].endswith("line 2")
    page = (out / "wrong.html").read_text()
    assert page.count("<article>") == 2 and page.count("<img") == 1
    assert "&lt;8&gt;" in page and "<8>" not in page  # what data say is no markup
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # needs no network


def test_groups_are_counted_by_a_field(tmp_path, capsys):
    """The field may hold numbers; groups are in the order of their names."""
    rows = trainers.samples(questions=ROWS[3:])
    for row, grade in zip(rows, (2, 1)):
        row["grade"] = grade
    data = trainers.write_lines(tmp_path / "graded.jsonl", rows)
    out = tmp_path / "score"
    arguments = ["--model", checkpoints.NANO, "--data", data, "--out", out, "--by", "grade"]
    assert score.main(list(map(str, arguments))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 of 2 right: 50.0 %")
    assert lines[1].startswith("  1  0 of 1 right") and lines[2].startswith("  2  1 of 1 right")
    written = json.loads((out / score.SCORE_FILE).read_text())
    assert written["by"] == "grade" and list(written["groups"]) == ["1", "2"]
    # Wilson's interval of 1 of 1: 1 / (1 + z^2) = 20.7 %
    assert written["groups"]["2"] == {"right": 1, "asked": 1, "interval": [20.7, 100.0]}
    assert written["all"]["right"] == 1 and written["model"] == str(checkpoints.NANO)


@pytest.mark.parametrize("arguments, words", [
    (["--by", "grade"], "line 1 has no field 'grade'"),
    (["--max-new-tokens", "0"], "--max-new-tokens 0"),
    (["--data", "no_such.jsonl"], "no_such.jsonl does not exist"),
])  # fmt: skip
def test_errors_are_one_line(questions, capsys, arguments, words):
    flags = ["--model", str(checkpoints.NANO), "--data", str(questions), *arguments]
    assert score.main(flags) == 1
    assert words in capsys.readouterr().err


def test_a_result_says_where_it_comes_from(samples, tmp_path):  # noqa: F811
    """And the code on its card runs."""
    run(
        samples, tmp_path / "mine", max_steps=1, train=["lora"], save=["model", "adapter"],
        eval_share=0.2,
    )  # fmt: skip
    for name in ("model", "adapter"):
        card = (tmp_path / "mine" / name / "README.md").read_text()
        _, metadata, text = card.split("---\n", 2)
        assert yaml.safe_load(metadata)["pipeline_tag"] == "image-text-to-text"
        assert "None" not in text and str(checkpoints.NANO) in text and str(samples) in text
        assert "| eval loss, last |" in text and "| eval share | 0.2 |" in text
        shutil.copy(trainers.IMAGES / "counting_1.png", tmp_path / "picture.png")
        [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        code = code.replace("picture.png", str(tmp_path / "picture.png"))
        namespace = {}
        exec(code.replace("512", "8"), namespace)
        assert namespace["model"] is not None


def test_a_base_on_the_hub_is_named_in_the_metadata(tmp_path):
    recipe = RecipeArguments(model="Skywork/Skywork-R1V-38B", data=["a.jsonl"], save=["mlp1"])
    config = TrainingConfig(str(tmp_path / "mine"), use_cpu=True, bf16=False)
    card = model_card(recipe, config, {"steps": 3}, "mlp1")
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "Skywork/Skywork-R1V-38B"
    assert "training.assemble" in card and "| steps | 3 |" in card
