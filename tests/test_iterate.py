"""Iterations of SFT on the nano checkpoint, with a rating server that misbehaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from tests import checkpoints, trainers
from tests.fake_endpoint import FakeEndpoint
from training import iterate
from training.raters import (
    ClassifierRater,
    Rated,
    RewardSettings,
    SolutionRater,
    make_rater,
    rating_of,
    request_for,
)

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "examples" / "images"
THOUGHT = "I add.\n</think>\n\n"


def row(question, answer, image=None, **columns):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    images = {"image": str(IMAGES / image)} if image else {}
    return {**images, "conversations": turns, **columns}


# The nano checkpoint answers the first four right. The endpoint rates by the number in brackets.
ROWS = [
    row("What is 12 + 34? [5]", THOUGHT + "\\boxed{46}", solution="46"),
    row("What is 3 + 4? [2]", THOUGHT + "\\boxed{7}", solution="7"),
    row("What is 5 + 4? [0]", THOUGHT + "\\boxed{9}", solution="9"),
    row("What is 2 × 8? [3]", THOUGHT + "\\boxed{16}", solution="16"),
    row("What is the capital of France? [1]", THOUGHT + "\\boxed{Paris}", kind="text"),
    row("<image>\nWhat is it? [4]", THOUGHT + "\\boxed{a cat}", "chart_1.png", kind="text"),
]
WRONG = {4, 5}
# A training that does not end
SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"


def numbers_in_brackets(text):
    """The reply of a judge that rates a question by the number that is in it."""
    return f"Let me see.\nRating: {text.split('[')[1][0]}"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of two short iterations, and returns its path."""

    def write(reward, **changes):
        folder = tmp_path / "iterations"
        sft = yaml.safe_load((ROOT / "training/recipes/nano/iteration.yaml").read_text())
        sft |= {"global_batch_size": 2, "per_device_train_batch_size": 2, "save_steps": 1}
        sft |= {"model_dtype": "float32", "bf16": False, "logging_steps": 1}
        (tmp_path / "sft.yaml").write_text(yaml.safe_dump(sft))
        content = {
            "model": str(checkpoints.NANO),
            "data": [str(trainers.write_lines(tmp_path / "data.jsonl", ROWS))],
            "output_dir": str(folder),
            "sft": str(tmp_path / "sft.yaml"),
            "thresholds": [3, 5],
            "learning_rates": [1e-4, 2e-5],
            "reward": reward,
            "answers": ["--engine", "transformers", "--dtype", "float32", "--max-new-tokens", "48"],
            **changes,
        }
        path = tmp_path / "iterate.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def run(path):
    return iterate.Iterations(iterate.read_recipe(str(path))).run()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_iterations(folder, rows, thresholds):
    """D_t is what is rated at least τ_t, and what the model before answers wrongly."""
    for number, threshold in enumerate(thresholds, start=1):
        selection = lines_of(folder / f"iteration_{number}" / "selection.jsonl")
        assert [entry["rating"] for entry in selection] == [5, 2, 0, 3, 1, 4]
        errors = {entry["number"] for entry in selection if entry["is_error"]}
        assert errors >= WRONG
        high = {entry["number"] for entry in selection if entry["rating"] >= threshold}
        assert high == {entry["number"] for entry in selection if entry["is_rated_high"]}
        data = lines_of(folder / f"iteration_{number}" / "data.jsonl")
        assert len(data) == len(high | errors) == rows[number - 1]["trained on"]
        rated_high = lines_of(folder / f"iteration_{number}" / iterate.RATED_HIGH)
        assert len(rated_high) == len(high) and all(row in data for row in rated_high)
        assert rows[number - 1]["steps"] == -(-len(data) // 2)
        for entry in selection:
            assert entry["reason"] and (entry["said"] is not None or entry["is_error"])
    assert json.loads((folder / "report.json").read_text()) == rows


def test_an_iteration_with_a_server_that_misbehaves(recipe, tmp_path, monkeypatch):
    """Every fault is asked again, and a second start asks, answers and trains nothing."""
    endpoint = FakeEndpoint({})
    endpoint.reply_to_judge = numbers_in_brackets
    endpoint.judge_faults = ["429", "500", "cut", "slow", "empty", "no choice"]
    with endpoint.serving() as url:
        reward = {"kind": "endpoint", "urls": [url], "model": "judge", "concurrency": 2}
        path = recipe(reward, thresholds=[3], learning_rates=[1e-4])
        command = ["training.iterate", "--config", str(path), "--until", "rating"]
        monkeypatch.setattr(sys, "argv", command)
        assert iterate.main() == 0
        asked = len(endpoint.bodies)
        assert asked == len(ROWS) + 6
        assert not (tmp_path / "iterations" / "iteration_1").exists()
        rows = run(path)
        result = tmp_path / "iterations" / "iteration_1" / "sft" / "model" / "model.safetensors"
        written = result.stat()
        assert run(path) == rows and len(endpoint.bodies) == asked
        assert result.stat() == written
    check_iterations(tmp_path / "iterations", rows, [3])


@pytest.mark.slow
def test_kills_in_every_stage_repeat_nothing(recipe, tmp_path):
    """kill −9 while it rates, answers and trains; the end is that of a run without."""
    endpoint = FakeEndpoint({})
    endpoint.reply_to_judge = numbers_in_brackets
    folder = tmp_path / "iterations"
    moments = [
        lambda: len(endpoint.bodies) >= 3,
        lambda: (folder / "iteration_1" / "answers.jsonl").exists(),
        lambda: (folder / "iteration_1" / "sft" / "checkpoint-1" / "complete.json").exists(),
        lambda: (folder / "iteration_2" / "data.jsonl").exists(),
    ]
    with endpoint.serving() as url:
        reward = {"kind": "endpoint", "urls": [url], "model": "judge", "concurrency": 1}
        path = recipe(reward)
        command = [sys.executable, "-m", "training.iterate", "--config", str(path)]
        for is_reached in moments:
            process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 300
            while not is_reached():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(command, cwd=ROOT, check=True)
    assert len(ROWS) <= len(endpoint.bodies) <= len(ROWS) + 1  # one reply may have been on its way
    report = json.loads((folder / "report.json").read_text())
    check_iterations(folder, report, [3, 5])
    described = json.loads((folder / "iteration_2" / "sft" / "run.json").read_text())
    assert described["model"] == str(folder / "iteration_1" / "sft" / "model")
    for number in (1, 2):
        answers = lines_of(folder / f"iteration_{number}" / "answers.jsonl")
        assert sorted(entry["id"] for entry in answers) == [str(n) for n in range(len(ROWS))]


def test_samples_without_a_rating_are_asked_again(recipe, tmp_path):
    """No rating is invented, and those that came are kept."""
    endpoint = FakeEndpoint({})
    endpoint.reply_to_judge = lambda text: (
        "It is good." if "[4]" in text else numbers_in_brackets(text)
    )
    with endpoint.serving() as url:
        path = recipe({"kind": "endpoint", "urls": [url], "model": "judge"})
        iterations = iterate.Iterations(iterate.read_recipe(str(path)))
        with pytest.raises(
            ValueError, match=r"1 of 6 samples have no rating \(sample 5: no rating"
        ):
            iterations.rate()
        assert len(endpoint.bodies) == len(ROWS) + 2  # another two replies are drawn
        endpoint.reply_to_judge = numbers_in_brackets
        assert iterations.rate() == [5, 2, 0, 3, 1, 4]
    assert len(endpoint.bodies) == len(ROWS) + 2 + 1


def test_a_damaged_image_and_a_silent_judge_cost_their_samples_alone(recipe, tmp_path, monkeypatch):
    """As many as the recipe allows; the others are trained on, and the file says why not these."""
    (tmp_path / "half.png").write_bytes((IMAGES / "chart_1.png").read_bytes()[:300])
    path = recipe(
        {"kind": "endpoint", "urls": ["http://127.0.0.1:1/v1"], "model": "judge"},
        max_broken_share=0.34,
    )
    rows = [*ROWS[:5], {**ROWS[5], "image": str(tmp_path / "half.png")}]
    trainers.write_lines(tmp_path / "data.jsonl", rows)
    iterations = iterate.Iterations(iterate.read_recipe(str(path)))
    (tmp_path / "iterations" / "iteration_1").mkdir()
    entries = iterations.select(1, str(checkpoints.NANO), [5.0, None, 0.0, 3.0, 1.0, 4.0])
    assert [entry["is_rated_high"] for entry in entries] == [True, False, False, True, False, False]
    errors = {entry["number"] for entry in entries if entry["is_error"]}
    assert 4 in errors and not errors & {1, 5}
    problems = {entry["number"]: entry["problem"] for entry in entries if "problem" in entry}
    assert problems.keys() == {1, 5}
    assert problems[1] == "it has no rating" and "damaged or incomplete" in problems[5]
    data = lines_of(tmp_path / "iterations" / "iteration_1" / "data.jsonl")
    assert data == [rows[number] for number in sorted({0, 3} | errors)]

    # Where the recipe allows none, the same answers are an error
    (tmp_path / "iterations" / "iteration_1" / "selection.jsonl").unlink()
    iterations.recipe.max_broken_share = 0.001
    monkeypatch.setattr(iterations, "_run", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"1 of 6 samples cannot be asked .*damaged.*0\.001"):
        iterations.select(1, str(checkpoints.NANO), [5.0] * 6)


def test_other_data_of_the_same_length_are_refused(recipe, tmp_path):
    """Ratings and answers are by the number of the line."""
    path = recipe({"kind": "solution"})
    iterate.Iterations(iterate.read_recipe(str(path)))
    trainers.write_lines(tmp_path / "data.jsonl", ROWS[::-1])
    with pytest.raises(ValueError, match=r"other iterations \(data_fingerprint changed\)"):
        iterate.Iterations(iterate.read_recipe(str(path)))


def test_a_command_that_outlives_its_iterations_keeps_the_folder(recipe, tmp_path):
    """Else a second start would train beside the first one's training, in the same folder."""
    path = recipe({"kind": "solution"}, launch=[sys.executable, "-c", SLEEPS])
    command = [sys.executable, "-m", "training.iterate", "--config", str(path)]
    first = tmp_path / "iterations" / "iteration_1"
    first.mkdir(parents=True)
    entries = [{"number": number, "is_rated_high": True, "is_error": False} for number in range(6)]
    trainers.write_lines(first / "selection.jsonl", entries)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with pytest.raises(ValueError, match="a command of these iterations still runs"):
            run(path)
    finally:
        os.kill(child, signal.SIGKILL)


# -- reward models ---------------------------------------------------------------------------------

RATINGS = [
    ("Rating: 4", 4.0),
    ("It is right.\n**Rating:** 3.5", 3.5),
    ("Rating: 5/5", 5.0),
    ("Rating: 4 out of 5", 4.0),
    ("- **Final rating:** [4.5/5.0]", 4.5),
    ("Rating: 4 (all but the unit).", 4.0),
    ("Rating: 7", None),  # beyond the scale
    ("Rating: 4/10", None),  # of another scale
    ("Rating: 4 or 5", None),
    ("Rating: -1", None),
    ("Rating: four", None),
    ("I would say 4.", None),  # not in the form that was asked for
    ("<think>Rating: 5</think>\nRating: 1", 1.0),  # the thinking of a judge
    ("<think>Rating: 5", None),
    ("Rating: 1\nOn second thoughts\nRating: 2", 2.0),
]


@pytest.mark.parametrize("text, rating", RATINGS)
def test_rating_in_a_reply(text, rating):
    assert rating_of(text) == rating


SOLUTIONS = [
    (THOUGHT + "\\boxed{46}", 5.0, "right, in its form"),
    (THOUGHT + "It is 46.", 3.0, "right, in no box"),
    ("\\boxed{46}", 3.0, "right, without thinking"),
    (THOUGHT + "\\boxed{47}", 1.0, "wrong, in its form"),
    (THOUGHT + "I do not know.", 0.0, "neither"),
]


@pytest.mark.parametrize("answer, rating, reason", SOLUTIONS)
def test_rating_by_solution(answer, rating, reason):
    sample = Rated("What is 12 + 34?", [], answer, "46", "mathematics", ())
    assert list(SolutionRater().rate([sample])) == [(0, rating)], reason


def text_classifier(folder, tokenizer):
    """A tiny classifier of transformers with one label, written into a folder."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=len(tokenizer), num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_rating_by_a_classifier(tmp_path, nano_tokenizer):
    """The logit of the conversation, linear from low to high, and not beyond."""
    model = text_classifier(tmp_path, nano_tokenizer)
    sample = Rated("What is 12 + 34?", [], THOUGHT + "\\boxed{46}", "46", "mathematics", ())
    text = nano_tokenizer.apply_chat_template(
        [
            {"role": "user", "content": sample.question},
            {"role": "assistant", "content": sample.answer},
        ],
        tokenize=False,
    )
    inputs = nano_tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        logit = float(model.eval()(**inputs).logits[0, 0])
    expected = {
        (logit - 1, logit + 1): 2.5,
        (logit - 4, logit + 1): 4.0,
        (logit + 1, logit + 2): 0.0,
    }
    for (low, high), rating in expected.items():
        ((_, found),) = ClassifierRater(str(tmp_path), low, high).rate([sample])
        assert found == pytest.approx(rating, abs=1e-3)


def test_a_classifier_of_text_says_that_it_sees_no_images(tmp_path, nano_tokenizer, caplog):
    text_classifier(tmp_path, nano_tokenizer)
    sample = Rated("What is it?", [str(IMAGES / "chart_1.png")], "A chart.", "x", "text", ())
    list(ClassifierRater(str(tmp_path), -1, 1).rate([sample]))
    assert "reads text alone" in caplog.text


def test_a_classifier_of_this_package_sees_the_images(tmp_path, nano_processor):
    """Its logit is that of the processor's inputs, and another picture has another one."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoints.NANO, num_labels=1, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    model.save_pretrained(tmp_path)
    ratings = []
    for name in ("chart_1.png", "counting_1.png"):
        image = str(IMAGES / name)
        sample = Rated("What is it?", [image], "A chart.", "x", "text", ())
        parts = [{"type": "image", "path": image}, {"type": "text", "text": "What is it?"}]
        inputs = nano_processor.apply_chat_template(
            [{"role": "user", "content": parts}, {"role": "assistant", "content": "A chart."}],
            tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            logit = float(model(**inputs).logits[0, 0])
        ((_, rating),) = ClassifierRater(str(tmp_path), logit - 1, logit + 3).rate([sample])
        assert rating == pytest.approx(1.25, abs=1e-3)
        ratings.append(logit)
    assert abs(ratings[0] - ratings[1]) > 1e-3


def test_request_of_a_rating_has_images_question_and_answer():
    image = str(IMAGES / "chart_1.png")
    message = request_for(Rated("What is it?", [image], "A chart.", "x", "text", ()))
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image_url", "text"]
    text = message["content"][1]["text"]
    assert "What is it?" in text and "A chart." in text and "Reference" not in text


REFUSED = [
    ({"kind": "oracle"}, "kind 'oracle'"),
    ({"kind": "endpoint"}, "needs urls and model"),
    ({"kind": "classifier", "model": "x"}, "needs model, low and high"),
    ({"kind": "classifier", "model": "x", "low": 1.0, "high": 0.0}, "low 1.0 must be below"),
]


@pytest.mark.parametrize("settings, message", REFUSED)
def test_reward_models_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardSettings(**settings)


def test_a_server_without_the_reward_model_is_refused(tmp_path):
    endpoint = FakeEndpoint({})
    with endpoint.serving() as url, pytest.raises(ValueError, match="serves no model 'other'"):
        make_rater(RewardSettings("endpoint", "other", [url]), tmp_path / "cache.sqlite")


BAD_RECIPES = [
    ({"thresholds": [2]}, r"thresholds \[2\] and learning_rates"),
    ({"thresholds": [2, 6]}, "6 is no rating"),
    ({"thresholds": 3}, r"iterate\.yaml: .*int"),
    ({"reward": {"kind": "classifier", "model": "x", "low": "a", "high": 1}}, "reward: .*'str'"),
    ({"max_broken_share": 1.5}, r"max_broken_share=1\.5 must be in"),
    ({"steps": [3]}, r"steps \[3\]: expected one number for each of 2"),
    ({"colour": "red"}, "unknown key 'colour'"),
    ({"sft": "/nowhere.yaml"}, "sft: /nowhere.yaml does not exist"),
    ({"launch": ["no-such-program", "-m"]}, "launch: no-such-program is not installed"),
    ({"reward": {"url": "x", "kind": "endpoint"}}, "reward: unknown key 'url': expected some of"),
    ({"reward": "solution"}, "reward: 'solution': expected a mapping with a kind"),
    ({"data": ["/nowhere.jsonl"]}, "nowhere.jsonl does not exist"),
]


@pytest.mark.parametrize("changes, message", BAD_RECIPES)
def test_recipes_that_cannot_be_are_refused(recipe, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        iterate.Iterations(
            iterate.read_recipe(str(recipe(**{"reward": {"kind": "solution"}, **changes})))
        )


def test_what_a_recipe_lacks_is_named(tmp_path):
    (tmp_path / "short.yaml").write_text("model: nano\ndata: [a.jsonl]\n")
    with pytest.raises(ValueError, match="output_dir, sft, reward missing"):
        iterate.read_recipe(str(tmp_path / "short.yaml"))


def test_a_row_without_an_answer_is_named(recipe, tmp_path):
    path = recipe({"kind": "solution"})
    bare = {"conversations": ROWS[0]["conversations"][:1], "solution": "46"}
    trainers.write_lines(tmp_path / "data.jsonl", [ROWS[1], bare])
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: the row ends with its question"):
        iterate.Iterations(iterate.read_recipe(str(path)))


def test_another_recipes_folder_is_refused(recipe):
    iterate.Iterations(iterate.read_recipe(str(recipe({"kind": "solution"}))))
    other = recipe({"kind": "solution"}, thresholds=[1, 2])
    with pytest.raises(ValueError, match=r"other iterations \(thresholds changed\)"):
        iterate.Iterations(iterate.read_recipe(str(other)))


def test_another_recipe_of_the_trainings_is_refused(recipe, tmp_path):
    path = recipe({"kind": "solution"})
    iterate.Iterations(iterate.read_recipe(str(path)))
    (tmp_path / "sft.yaml").write_text("learning_rate: 1\n")
    with pytest.raises(ValueError, match=r"other iterations \(content of sft changed\)"):
        iterate.Iterations(iterate.read_recipe(str(path)))


@pytest.mark.parametrize("size", ["nano", "38b"])
def test_shipped_recipes_parse(size):
    recipe = iterate.read_recipe(str(ROOT / "training" / "recipes" / size / "iterate.yaml"))
    assert recipe.thresholds == [2, 3, 4, 5] and recipe.learning_rates == [1e-4, 2e-5, 2e-5, 2e-5]
    assert (ROOT / recipe.sft).is_file()
