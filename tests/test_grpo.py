"""GRPO on the nano checkpoint: a few steps, mixed prompts, going on after a kill, and refusals."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests import checkpoints, trainers
from tests.fake_endpoint import FakeEndpoint
from training import grpo, grpo_recipe, iterate, sample_buffer
from training.grpo_data import load_prompts, prompt_of
from training.raters import RewardSettings, make_rater
from training.reward_model import ModelReward
from training.rows import SampleError

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "training" / "recipes"
IMAGES = ROOT / "examples" / "images"


def ask(text, *images, **columns):
    """A row with a question alone."""
    question = {"from": "human", "value": "<image>\n" * len(images) + text}
    return {
        "images": [str(IMAGES / image) for image in images],
        "conversations": [question],
        **columns,
    }


ROWS = [
    ask("What is the result of the calculation in the image?", "calculation_1.png", solution="0"),
    ask("What is 12 + 34?", solution="46"),
    ask(
        "Which image shows more shapes?",
        "pair_1a.png",
        "pair_1b.png",
        solution="first",
        kind="text",
    ),
    {
        "image": str(IMAGES / "counting_1.png"),
        "conversations": [
            {"from": "human", "value": "<image>\nHow many shapes are in the image?"},
            {"from": "gpt", "value": "I count.\n</think>\n\nAnswer: \\boxed{9}"},
        ],
    },
]


@pytest.fixture
def data(tmp_path):
    return trainers.write_lines(tmp_path / "questions.jsonl", ROWS)


def arguments(data, folder, **settings):
    """The command line of a short training."""
    values = {
        "data": data,
        "output_dir": folder,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "max_completion_length": 48,
        "save_steps": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "temperature": 2.0,  # at 1 it writes the same each time
        **settings,
    }
    return ["--config", str(RECIPES / "nano" / "grpo.yaml"), *trainers.flags(values)]


@pytest.mark.parametrize("train, changed", [
    ("mlp1", "mlp1."),
    pytest.param("language_model", "language_model.", marks=pytest.mark.slow),
])  # fmt: skip
def test_two_steps_change_only_what_trains(data, tmp_path, train, changed):
    """Prompts with one image, two images and none in one batch; every reward is logged."""
    folder = tmp_path / "run"
    summary = grpo.train(*grpo_recipe.parse(arguments(data, folder, train=train)))
    assert summary["steps"] == 2 and summary["frozen_tensors_unchanged"] > 0
    before = load_file(checkpoints.NANO / "model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    different = {
        name for name in before if not torch.equal(before[name].float(), after[name].float())
    }
    assert different and all(name.startswith(changed) for name in different)

    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    keys = {key for entry in log for key in entry}
    assert {"rewards/accuracy_reward/mean", "rewards/format_reward/mean", "reward"} <= keys
    assert {
        "completions/mean_length",
        "frac_reward_zero_std",
        "clip_ratio/region_mean",
        "entropy",
    } <= keys
    assert (folder / "rewards.png").stat().st_size > 0
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 8
    prompts = {line["prompt"].count("<image>") for line in lines}
    assert prompts == {0, 1, 2}
    assert grpo.train(*grpo_recipe.parse(arguments(data, folder, train=train))) == summary


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_rewards(data, tmp_path):
    """kill −9 after its second checkpoint; the rest has the rewards and lengths of a whole run."""
    histories = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        line = arguments(data, folder, max_steps=4, save_total_limit=4, sample_buffer=4)
        command = [sys.executable, "-m", "training.grpo", *line]
        if name == "killed":
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 300
            while not (folder / "checkpoint-2" / "complete.json").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert len((folder / "log.jsonl").read_text().splitlines()) >= 2  # as it goes
            assert (folder / "rewards.png").exists()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        log = [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]
        histories[name] = [
            (
                entry["step"],
                entry["reward"],
                entry["completions/mean_length"],
                entry["groups_from_buffer"],
            )
            for entry in log
            if "reward" in entry
        ]
        rows = (folder / "completions.jsonl").read_text().splitlines()
        histories[name].append([json.loads(row)["completion"] for row in rows])
    assert len(histories["whole"]) == 4 + 1 and len(histories["whole"][-1]) == 4 * 8
    assert histories["killed"] == histories["whole"]


REFUSED = [
    # settings, what the error names
    ({"rewards": "beauty"}, "rewards=.'beauty'.: expected some of accuracy"),
    ({"pack_samples": True}, "pack_samples=True has no effect in GRPO"),
    ({"eval_share": 0.1}, "eval_share=0.1 has no effect in GRPO: score the result"),
    ({"train": "mouth"}, "train"),
    ({"num_generations": 3}, "divisible"),
    ({"rewards": "model"}, "the settings of its reward model go together"),
    ({"reward_model": '{"kind": "solution"}'}, "the settings of its reward model go together"),
    ({"rewards": "model", "reward_model": '{"kind": "oracle"}'}, "kind 'oracle'"),
    (
        {"rewards": "model", "reward_model": '{"kind": "solution", "sort": 1}'},
        "unknown key .sort.: expected some of kind",
    ),
    ({"rewards": "model", "reward_model": "kind=solution"}, "kind=solution.*expected a mapping"),
    ({"sample_buffer": -1}, "sample_buffer=-1"),
    ({"beta": 0.04, "sync_ref_model": True}, "sync_ref_model=True"),
    ({"num_iterations": 2, "save_steps": 3}, "expected a multiple of 2"),
    # Three micro-batches of completions, of which a step takes two: used up every three steps
    (
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2, "save_steps": 2},
        "expected a multiple of 3",
    ),
    ({"num_iterations": 2, "save_strategy": "epoch"}, 'save_strategy="epoch"'),
    ({"max_broken_share": 0.5}, "max_broken_share=0.5 has no effect in GRPO"),
    ({"learning_rat": 1}, "--learning_rat"),
]


@pytest.mark.parametrize("settings, message", REFUSED)
def test_recipes_that_cannot_be_are_refused(data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        grpo_recipe.parse(arguments(data, tmp_path / "run", **settings))


def test_a_model_is_not_loaded_for_what_cannot_run(data, tmp_path, monkeypatch):
    """A table of what was found only later: by TRL, at a step, or never."""
    damaged = tmp_path / "half.png"
    damaged.write_bytes((IMAGES / "chart_1.png").read_bytes()[:300])
    row = {**ask("What?", "chart_1.png", solution="1"), "images": [str(damaged)]}
    bad_image = trainers.write_lines(tmp_path / "damaged.jsonl", [*ROWS, row])
    dead = '{"kind": "endpoint", "urls": ["http://127.0.0.1:1/v1"], "model": "judge"}'
    rows = [
        ({"data": bad_image}, "half.png: the image is damaged"),
        ({"per_device_train_batch_size": 16}, "data has 4 prompts, and 8 are asked at a time"),
        ({"reward_weights": "0.5"}, "expected one for each of rewards"),
        ({"rewards": "model", "reward_model": dead}, "cannot be asked for its models"),
    ]
    monkeypatch.setattr(grpo.sft, "load_model", lambda *_: pytest.fail("the model was loaded"))
    for number, (settings, message) in enumerate(rows):
        given = {"data": data, **settings}
        line = arguments(given.pop("data"), tmp_path / str(number), **given)
        with pytest.raises(ValueError, match=message):
            grpo.make_trainer(*grpo_recipe.parse(line))


@pytest.mark.parametrize("solution, expected", [(0, "0"), (0.5, "0.5"), ("0", "0")])
def test_solutions_may_be_numbers(solution, expected):
    """0 is a right answer, and not a missing one for which the row's own box would stand."""
    conversation = [*ask("How many?")["conversations"], {"from": "gpt", "value": "\\boxed{3}"}]
    assert prompt_of({"conversations": conversation, "solution": solution}, ".")["solution"] == (
        expected
    )


@pytest.mark.parametrize("solution", ["", True, [1], {"a": 1}])
def test_solutions_that_are_none_are_refused(solution):
    with pytest.raises(SampleError, match="expected a text or a number"):
        prompt_of(ask("How many?", solution=solution), ".")


@pytest.mark.parametrize("recipe", ["nano/grpo.yaml", "38b/grpo.yaml", "38b/grpo_r1v3.yaml"])
def test_recipes_parse(recipe, tmp_path):
    """On a machine without a GPU bf16 and vLLM are left out."""
    line = ["--config", str(RECIPES / recipe), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    parsed, config = grpo_recipe.parse([*line, "--bf16", "false", "--use_vllm", "false"])
    assert parsed.train == ["mlp1"] and config.num_generations == 8 and config.temperature == 1.0
    if recipe.startswith("38b"):  # it goes on from what the iterations leave
        iterations = iterate.read_recipe(str(RECIPES / "38b" / "iterate.yaml"))
        last = Path(iterations.output_dir) / f"iteration_{len(iterations.thresholds)}"
        assert parsed.model == str(last / "sft" / "model")
        assert parsed.data == [str(last / iterate.RATED_HIGH)]


# -- reward models ---------------------------------------------------------------------------------

CHART = [str(IMAGES / "chart_1.png")]
COLUMNS = {
    "question": ["What is 12 + 34?"] * 4,
    "image_paths": [[], [], CHART, []],
    "solution": ["46"] * 4,
    "kind": ["mathematics"] * 4,
    "options": [[]] * 4,
}


def test_the_reward_of_a_served_reward_model(tmp_path):
    """Its rating of 0 to 5 becomes 0 to 1; one without gets the mean of its prompt's others."""
    endpoint = FakeEndpoint({})
    endpoint.reply_to_judge = lambda text: {
        "a": "Rating: 5", "b": "Rating: 1.5", "c": "Rating: 2", "d": "It is good.",
    }[text.split("Answer:\n")[1][0]]  # fmt: skip
    endpoint.judge_faults = ["429", "cut"]
    completions = [[{"role": "assistant", "content": text}] for text in "abcd"]
    with endpoint.serving() as url:
        settings = RewardSettings("endpoint", "judge", [url], concurrency=1)
        reward = ModelReward(make_rater(settings, tmp_path / "ratings.sqlite"))
        assert reward(completions, **COLUMNS) == [1.0, 0.3, 0.4, 0.65]
        asked = len(endpoint.bodies)
        assert asked == 4 + 2 + 2  # two faults; the reply without a rating is drawn twice more
        assert [body["temperature"] for body in endpoint.bodies[-3:]] == [0.0, 0.7, 0.7]
        assert reward(completions[:3], **COLUMNS) == [1.0, 0.3, 0.4]
        assert len(endpoint.bodies) == asked  # kept: nothing is paid twice
        # The others are to another prompt, whose mean would say something about this one
        assert reward([completions[0], completions[1], completions[3]], **COLUMNS) == [1.0, 0.3, 0]
        endpoint.judge_fault_of = lambda text: "500"
        with pytest.raises(ValueError, match=r"reward model does not answer.*internal error"):
            reward([completions[2]], **COLUMNS)  # to another prompt than before
    contents = [body["messages"][0]["content"] for body in endpoint.bodies]
    kinds = {tuple(part["type"] for part in content) for content in contents}
    assert kinds == {("text",), ("image_url", "text")}


def test_the_sum_of_rules_and_reward_model(data, tmp_path):
    """R1V2's reward, in a step of training: the sum of the three."""
    folder = tmp_path / "run"
    recipe, config = grpo_recipe.parse(arguments(
        data, folder, max_steps=1, reward_model='{"kind": "solution"}', sample_buffer=4
    ) + ["--rewards", "accuracy", "format", "model"])  # fmt: skip
    grpo.train(recipe, config)
    (entry,) = [
        row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        if "reward" in row
    ]  # fmt: skip
    parts = [entry[f"rewards/{name}_reward/mean"] for name in ("accuracy", "format", "model")]
    assert entry["reward"] == pytest.approx(sum(parts), abs=1e-5)
    assert entry["groups_from_buffer"] == 0.0  # there is nothing in it yet
    page = (folder / "completions.html").read_text()
    assert page.count("<article>") == 4 and page.count("<details>") == 8
    assert page.count('src="data:image/jpeg;base64,') == 4  # one, one, two and none
    assert not re.search(r"(src|href)=\"(?!data:)", page)


# -- the reference of the KL term ------------------------------------------------------------------


def test_the_reference_is_a_copy_of_the_model_at_the_start(data, tmp_path):
    """TRL's own reference is the whole model, loaded once more, as it is here."""
    recipe, config = grpo_recipe.parse(
        arguments(data, tmp_path / "run", max_steps=3, beta=0.04, learning_rate=1e-2)
    )
    trainer = grpo.make_trainer(recipe, config)
    start = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    trainer.train()
    assert trainer.args.beta == trainer.beta == 0.04
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-4
    trainer.model.eval()
    inputs = {
        "input_ids": torch.tensor([[1023] * 16 + [7, 8, 9]]),
        "pixel_values": torch.ones(1, 3, 112, 112),
    }
    with torch.no_grad():
        expected = start(**inputs).logits
        torch.testing.assert_close(trainer.ref_model(**inputs).logits, expected)
        assert (trainer.model(**inputs).logits - expected).abs().max() > 0.1


# -- the sample buffer -----------------------------------------------------------------------------


def batch_of(*groups):
    """A batch as TRL's, of groups (advantages, prompt length, completion lengths, tiles)."""
    rows = []
    for number, (advantages, prompt, completions, tiles) in enumerate(groups):
        for advantage, length in zip(advantages, completions):
            rows.append((number, advantage, prompt, length, tiles))
    longest_prompt = max(row[2] for row in rows)
    longest = max(row[3] for row in rows)
    batch = {
        "prompt_ids": torch.zeros(len(rows), longest_prompt, dtype=torch.long),
        "prompt_mask": torch.zeros(len(rows), longest_prompt, dtype=torch.long),
        "completion_ids": torch.zeros(len(rows), longest, dtype=torch.long),
        "completion_mask": torch.zeros(len(rows), longest, dtype=torch.long),
        "old_per_token_logps": torch.zeros(len(rows), longest),
        "advantages": torch.tensor([row[1] for row in rows]),
        "num_items_in_batch": torch.tensor(sum(row[3] for row in rows)),
    }
    tiles = []
    for place, (number, _, prompt, length, count) in enumerate(rows):
        batch["prompt_ids"][place, longest_prompt - prompt :] = 100 + number
        batch["prompt_mask"][place, longest_prompt - prompt :] = 1
        batch["completion_ids"][place, :length] = 1000 + place
        batch["completion_mask"][place, :length] = 1
        batch["old_per_token_logps"][place, :length] = -float(place + 1)
        tiles.append(torch.full((count, 3, 2, 2), float(number)))
    if sum(map(len, tiles)):
        batch["pixel_values"] = torch.cat(tiles)
        batch["num_images"] = [int(len(of_row) > 0) for of_row in tiles]
        batch["num_tiles"] = [len(of_row) for of_row in tiles]
    return batch


TAUGHT = ([1.0, -1.0], 3, [2, 5], 3)
EMPTY = ([0.0, 0.0], 7, [4, 4], 1)
TEXT = ([0.5, -0.5], 2, [1, 1], 0)


@pytest.mark.parametrize("groups", [
    [TAUGHT, EMPTY], [EMPTY, TEXT, TAUGHT], [TEXT], [TEXT, TEXT], [TAUGHT],
])  # fmt: skip
def test_groups_of_a_batch_make_the_batch_again(groups):
    batch = batch_of(*groups)
    again = sample_buffer.join(sample_buffer.split(batch, 2), batch)
    assert again.keys() == batch.keys()
    for name, value in batch.items():
        assert torch.equal(again[name], value) if torch.is_tensor(value) else again[name] == value


def test_an_empty_group_is_replaced_by_one_that_taught():
    buffer = sample_buffer.SampleBuffer(capacity=4, size=2, seed=0)
    first, share = buffer.exchange(batch_of(TAUGHT, EMPTY))
    assert share == 0 and torch.equal(first["advantages"], torch.tensor([1.0, -1.0, 0.0, 0.0]))
    batch = batch_of(EMPTY, TEXT)
    before = {name: copy.deepcopy(value) for name, value in batch.items()}
    second, share = buffer.exchange(batch)
    assert share == 0.5
    assert second["advantages"].tolist() == [1.0, -1.0, 0.5, -0.5]
    assert second["prompt_ids"].tolist() == [[100] * 3, [100] * 3, [0, 101, 101], [0, 101, 101]]
    assert second["completion_ids"][:2].tolist() == [[1000] * 2 + [0] * 3, [1001] * 5]
    assert second["old_per_token_logps"][1].tolist() == [-2.0] * 5
    assert second["num_tiles"] == [3, 3, 0, 0] and second["num_images"] == [1, 1, 0, 0]
    assert second["pixel_values"].shape[0] == 6 and (second["pixel_values"] == 0).all()
    for name, value in before.items():  # the caller's batch is as it was
        assert torch.equal(batch[name], value) if torch.is_tensor(value) else batch[name] == value


def test_groups_are_drawn_by_their_advantages_and_the_oldest_are_forgotten():
    buffer = sample_buffer.SampleBuffer(capacity=2, size=2, seed=0)
    buffer.exchange(batch_of(([9.0, -9.0], 1, [1, 1], 0)))
    buffer.exchange(batch_of(([3.0, -3.0], 1, [1, 1], 0), ([1.0, -1.0], 1, [1, 1], 0)))
    drawn = []
    for _ in range(400):
        batch, share = buffer.exchange(batch_of(EMPTY))
        assert share == 1.0
        drawn.append(float(batch["advantages"][0]))
    assert set(drawn) == {3.0, 1.0}
    assert 0.68 < drawn.count(3.0) / 400 < 0.82  # three quarters, by |advantage|


def test_a_buffer_goes_on_where_it_was(tmp_path):
    buffer = sample_buffer.SampleBuffer(capacity=3, size=2, seed=0)
    buffer.exchange(batch_of(TAUGHT, TEXT))
    torch.save(buffer.state(), tmp_path / "state.pt")
    again = sample_buffer.SampleBuffer(capacity=3, size=2, seed=5)
    again.load(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(5):
        one, _ = buffer.exchange(batch_of(EMPTY))
        other, _ = again.exchange(batch_of(EMPTY))
        assert torch.equal(one["completion_ids"], other["completion_ids"])


def test_what_a_buffer_cannot_replace_is_named():
    buffer = sample_buffer.SampleBuffer(capacity=3, size=2, seed=0)
    with pytest.raises(ValueError, match="tool_mask"):
        buffer.exchange({**batch_of(TAUGHT), "tool_mask": torch.ones(2, 5)})
    with pytest.raises(ValueError, match="no multiple of num_generations=3"):
        sample_buffer.SampleBuffer(3, 3, 0).exchange(batch_of(TAUGHT))


# -- data ------------------------------------------------------------------------------------------

BAD_ROWS = [
    # row, error, what it names
    (ask("What?"), SampleError, "no right answer"),
    (ask("What?", "none.png", solution="1"), FileNotFoundError, "none.png does not exist"),
    (ask("What?", solution="E", kind="choice", options=["a", "b"]), ValueError, "gold 'E'"),
    ({**ask("What?", solution="1"), "image": "data:image/png;base64,AAAA", "images": None},
     SampleError, "image files only"),
    ({"solution": "1"}, SampleError, "conversations"),
    ("text", SampleError, "expected an object"),
]  # fmt: skip


@pytest.mark.parametrize("row, error, message", BAD_ROWS)
def test_rows_that_cannot_be_asked_are_named(row, error, message):
    with pytest.raises(error, match=message):
        prompt_of(row, ROOT)


def test_prompts_keep_turns_images_and_solutions(tmp_path):
    row = {
        "images": [str(IMAGES / "counting_1.png"), str(IMAGES / "chart_1.png")],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Look: <image>\nHow many?"},
            {"role": "assistant", "content": "x</think>9"},
            {"role": "user", "content": "<image>\nAnd this?"},
        ],
        "solution": "5",
    }
    (prompt,) = load_prompts([str(trainers.write_lines(tmp_path / "a.jsonl", [row]))]).dataset
    kinds = [[part["type"] for part in message["content"]] for message in prompt["prompt"]]
    assert kinds == [["text"], ["text", "image", "text"], ["text"], ["image", "text"]]
    assert [image.size for image in prompt["images"]] != [] and len(prompt["images"]) == 2
    assert prompt["solution"] == "5" and prompt["kind"] == "mathematics"
