"""GRPO on several processes, with whole weights (DDP) and shared out ones (FSDP2).

The completions are those of a script (tests/scripted_grpo.py), so that every run has the same.
Questions with an image, with two and without are on different processes.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests import checkpoints, cpu_processes, trainers
from tests.test_grpo import ROWS, arguments
from training import grpo, grpo_recipe

SETTINGS = {
    "max_steps": 3, "num_generations": 4, "beta": 0.1, "save": "mlp1", "save_steps": 1,
    "save_total_limit": 4, "use_vllm": "true", "vllm_mode": "server",
    # A server's log-likelihoods are invented there
    "vllm_importance_sampling_correction": "false",
}  # fmt: skip
LOGGED = ("loss", "grad_norm", "reward", "kl", "entropy", "completions/mean_length")


def launch(folder, data, launcher=(), **changes):
    """Run GRPO by the script, to its end, and return the log's entry of each step.

    Args:
        folder: of the training; what a server receives is in its `received`.
        launcher: of tests/cpu_processes.py; by default there is one process.
        changes: of its settings.
    """
    received = folder / "received"
    shutil.rmtree(received, ignore_errors=True)
    received.mkdir(parents=True)
    size = 4 if launcher else 8  # completions of a process; a step has 8
    values = {**SETTINGS, "per_device_train_batch_size": size, **changes}
    flags = arguments(data, folder, **values)
    command = [sys.executable, *launcher, "-m", "tests.scripted_grpo", *flags]
    environment = {
        **os.environ, "RECEIVED": str(received), "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=checkpoints.ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in log if "loss" in entry]


def assert_same(log, expected, tolerance):
    """Two logs have the same steps and, about, the same values."""
    assert [entry["step"] for entry in log] == [entry["step"] for entry in expected]
    for key in LOGGED:
        ours, theirs = ([entry[key] for entry in entries] for entries in (log, expected))
        assert ours == pytest.approx(theirs, rel=tolerance, abs=1e-5), key


def weights(file):
    return load_file(file)["mlp1.1.weight"]


@pytest.mark.slow  # 40 s each
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_train_as_one(tmp_path, kind):
    """Losses, rewards and the KL term of one process; what vLLM gets; and going on."""
    data = trainers.write_lines(tmp_path / "questions.jsonl", ROWS)
    one, two = tmp_path / "one", tmp_path / "two"
    expected = launch(one, data)
    launcher = cpu_processes.TWO_PROCESSES
    if kind == "fsdp":
        launcher = cpu_processes.launcher(cpu_processes.sharded_config(kind, tmp_path, "no"))
    log = launch(two, data, launcher)
    assert_same(log, expected, 1e-3)
    assert expected[0]["kl"] == pytest.approx(0, abs=1e-6) and expected[-1]["kl"] > 1
    first, second = (folder / "mlp1" / "model.safetensors" for folder in (one, two))
    torch.testing.assert_close(weights(second), weights(first), atol=2e-4, rtol=1e-3)

    # Before each step vLLM gets the projector as it is then, whole, and nothing else
    received = sorted((two / "received").iterdir())
    assert [file.name for file in received] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert all(name.startswith("mlp1.") for name in load_file(received[2]))
    start = weights(checkpoints.NANO / "model.safetensors").float()
    assert torch.equal(weights(received[0]), start)
    assert torch.equal(weights(received[2]), weights(two / "checkpoint-2" / "model.safetensors"))

    # The KL term of a training that goes on is to the same start
    (two / "summary.json").unlink()
    shutil.rmtree(two / "checkpoint-3")
    assert_same(launch(two, data, launcher), log, 1e-4)


REFUSED = [
    ({"ACCELERATE_USE_FSDP": "true"}, {}, "shared out by FSDP1: expected FSDP2"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "shared out by DeepSpeed: expected FSDP2"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {}, "FSDP without use_vllm"),
    # The recipe's own setting, which transformers reads as FSDP2
    ({}, {"fsdp": "full_shard"}, "FSDP without use_vllm"),
    (
        {},
        {"fsdp": "full_shard", "fsdp_config": '{"version": 1}'},
        "shared out by FSDP1: expected FSDP2",
    ),
    (
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {"train": "lora", "save": "adapter", "use_vllm": True},
        re.escape("train=['lora'] with FSDP"),
    ),
]


@pytest.mark.parametrize("environment, changes, message", REFUSED, ids=[row[2] for row in REFUSED])
def test_ways_to_share_weights_that_are_refused(
    tmp_path, monkeypatch, environment, changes, message
):
    """Before anything is loaded, with what to do."""
    changes = dict(changes)
    use_vllm = changes.pop("use_vllm", False)
    data = trainers.write_lines(tmp_path / "questions.jsonl", ROWS)
    recipe, config = grpo_recipe.parse(arguments(data, tmp_path / "run", **changes))
    config.use_vllm = use_vllm  # its own check would want vLLM to be there
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        grpo.make_trainer(recipe, config)
