"""Files of long-running commands, whatever a kill, a power cut or a full disk leaves of them."""

import json
import math
import subprocess
import sys

import pytest

import durable
from serving import question_file
from tests import checkpoints
from training.recipe import RecipeArguments, TrainingConfig
from training.resume import check_same_run, finished, last_checkpoint, mark_complete
from training.select import Scores


@pytest.mark.slow  # minutes: each command is started some dozen times
@pytest.mark.parametrize(
    "command", ["assembly", "selection", "answers", "training", "distillation"]
)
def test_stopped_before_any_file_operation_it_goes_on_to_the_same_result(command, tmp_path):
    """Also where the file that was last touched is empty then: see tests/crash_points.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_points", command, str(tmp_path)],
        cwd=checkpoints.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["points"] >= 4 and not result["failures"]


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    durable.write_json(path, {"a": "ü"})
    with pytest.raises(RuntimeError), durable.writing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert durable.read_json(path) == {"a": "ü"}
    with pytest.raises(ValueError):
        durable.write_json(path, {"loss": math.nan})
    assert durable.read_json(path) == {"a": "ü"}


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\xff"])
def test_what_was_not_written_whole_reads_as_nothing(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    assert durable.read_json(path) is None


def test_a_directory_takes_its_name_when_it_is_whole(tmp_path):
    for name, text in (("new", "new"), ("target", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    (tmp_path / "target" / "left over").write_text("")
    durable.replace_directory(tmp_path / "new", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert durable.sizes_of_files(tmp_path / "target") == {"file": 3}


def test_scores_cut_at_every_byte(tmp_path):
    """No line gets another one's score, and all of them are there again in the end."""
    true = {0: -1.25, 1: -10.5, 12: -0.0625, 123: -7e-05}
    identity = ["pool", "judge"]
    path = tmp_path / "scores"
    Scores(path, identity).add(true)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        scores = Scores(path, identity)
        assert scores.values.items() <= true.items()
        scores.add({index: true[index] for index in true.keys() - scores.values.keys()})
        assert Scores(path, identity).values == true


def test_answers_cut_at_every_byte(tmp_path):
    """Also inside a character of several bytes; what is lost is asked again."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "größer?"}\n{"question": "图?"}\n', encoding="utf-8")
    asked = question_file.read_questions(questions)
    entries = [question_file.answer_entry(question, "é\u2028图", 3, "stop") for question in asked]
    whole = "".join(map(question_file.json_line, entries)).encode("utf-8")
    path = tmp_path / "answers.jsonl"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        found = question_file.read_answers(path, asked)
        assert list(found.values()) == entries[: whole[:length].count(b"\n")]
        with path.open("ab") as file:  # as the command goes on
            for entry in entries[len(found) :]:
                file.write(question_file.json_line(entry).encode("utf-8"))
        assert list(question_file.read_answers(path, asked).values()) == entries


@pytest.fixture
def trained(tmp_path):
    """The output directory of a finished training, and how it was trained."""
    config = TrainingConfig(str(tmp_path), max_steps=2, use_cpu=True, bf16=False)
    recipe = RecipeArguments(model="nano", data=["data.jsonl"], save=["mlp1"])
    checkpoint = tmp_path / "checkpoint-2"
    for folder in (checkpoint, tmp_path / "mlp1"):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"12345678")
    mark_complete(checkpoint)
    sizes = {"mlp1": durable.sizes_of_files(tmp_path / "mlp1")}
    durable.write_json(tmp_path / "summary.json", {"steps": 2, "results": sizes})
    check_same_run(tmp_path, {"a": 1})
    return tmp_path, recipe, config


@pytest.mark.parametrize("damaged", ["summary.json", "mlp1/model.safetensors"])
def test_a_finished_training_whose_files_are_damaged_is_not_finished(trained, damaged):
    folder, recipe, config = trained
    checkpoint = last_checkpoint(folder)
    assert finished(recipe, config, checkpoint)["steps"] == 2
    (folder / damaged).write_bytes(b"")
    assert finished(recipe, config, last_checkpoint(folder)) is None


def test_a_result_that_was_not_asked_for_before_is_made(trained):
    folder, recipe, config = trained
    recipe.save = ["model", "mlp1"]
    assert finished(recipe, config, last_checkpoint(folder)) is None


def test_a_damaged_description_of_the_run_stops_nobody(trained):
    folder, _, _ = trained
    (folder / "run.json").write_bytes(b"")
    check_same_run(folder, {"a": 2})
    with pytest.raises(ValueError, match="checkpoints of another run"):
        check_same_run(folder, {"a": 1})


ENDS_ELSEWHERE = [
    # scheduler, warm-up in steps or as a share, steps before and now, whether it may go on
    ("constant", 0, 2, 5, True, "the rate is the same at any step"),
    ("constant_with_warmup", 2, 9, 5, True, "as the run has not come that far"),
    ("constant", 0, 5, 1, False, "the checkpoint has taken more steps"),
    ("constant", 0, 5, -1, False, "so it has, of a number of epochs"),
    ("constant_with_warmup", 0.1, 2, 5, False, "it warms up over a share of all steps"),
    ("cosine", 0, 2, 5, False, "the rate falls to the last step"),
]


@pytest.mark.parametrize("scheduler, warmup, before, now, goes_on, reason", ENDS_ELSEWHERE)
def test_a_run_that_ends_at_another_step(trained, scheduler, warmup, before, now, goes_on, reason):
    folder, _, _ = trained
    described = {"lr_scheduler_type": scheduler, "warmup_steps": warmup, "max_steps": before}
    durable.write_json(folder / "run.json", described)
    if goes_on:
        check_same_run(folder, {**described, "max_steps": now})
        assert durable.read_json(folder / "run.json")["max_steps"] == now
        return
    with pytest.raises(ValueError, match=f"max_steps {before}, now {now}"):
        check_same_run(folder, {**described, "max_steps": now})


def test_a_training_of_more_steps_is_not_finished(trained):
    folder, recipe, config = trained
    config.max_steps = 5
    assert finished(recipe, config, last_checkpoint(folder)) is None
    config.max_steps = -1  # an epoch has two steps
    assert finished(recipe, config, last_checkpoint(folder))["steps"] == 2


@pytest.mark.parametrize("damage", ["emptied", "removed", "unmarked"])
def test_a_damaged_checkpoint_is_none(trained, damage):
    folder, _, _ = trained
    file = folder / "checkpoint-2" / "model.safetensors"
    if damage == "emptied":
        file.write_bytes(b"")
    elif damage == "removed":
        file.unlink()
    else:
        (folder / "checkpoint-2" / "complete.json").unlink()
    assert last_checkpoint(folder) is None
