"""GRPO on the nano checkpoint: a few steps, mixed prompts, going on after a kill, and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import checkpoints, trainers
from training import grpo, grpo_recipe
from training.grpo_data import load_prompts, prompt_of
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
        line = arguments(data, folder, max_steps=4, save_total_limit=4)
        command = [sys.executable, "-m", "training.grpo", *line]
        if name == "killed":
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 300
            while not (folder / "checkpoint-2" / "complete.json").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        log = [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]
        histories[name] = [
            (entry["step"], entry["reward"], entry["completions/mean_length"])
            for entry in log
            if "reward" in entry
        ]
    assert len(histories["whole"]) == 4
    assert histories["killed"] == histories["whole"]


REFUSED = [
    # settings, what the error names
    ({"rewards": "beauty"}, "rewards=.'beauty'.: expected some of accuracy"),
    ({"pack_samples": True}, "pack_samples=True has no effect in GRPO"),
    ({"eval_share": 0.1}, "eval_share=0.1 has no effect in GRPO: score the result"),
    ({"train": "mouth"}, "train"),
    ({"num_generations": 3}, "divisible"),
    ({"num_iterations": 2, "save_steps": 3}, "expected a multiple of 2"),
]


@pytest.mark.parametrize("settings, message", REFUSED)
def test_recipes_that_cannot_be_are_refused(data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        grpo_recipe.parse(arguments(data, tmp_path / "run", **settings))


@pytest.mark.parametrize("recipe", ["nano/grpo.yaml", "38b/grpo.yaml", "38b/grpo_r1v3.yaml"])
def test_recipes_parse(recipe, tmp_path):
    """On a machine without a GPU bf16 and vLLM are left out."""
    line = ["--config", str(RECIPES / recipe), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    parsed, config = grpo_recipe.parse([*line, "--bf16", "false", "--use_vllm", "false"])
    assert parsed.train == ["mlp1"] and config.num_generations == 8 and config.temperature == 1.0


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
