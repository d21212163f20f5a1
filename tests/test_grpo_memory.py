"""The memory calculator of GRPO, against sums by hand."""

import dataclasses
import json
import subprocess
import sys

import pytest

from memory import grpo, sizes, training
from tests import checkpoints

RECIPES = checkpoints.ROOT / "training" / "recipes" / "38b"
CONFIG = sizes.load_config(checkpoints.ROOT)
ROLLOUTS = grpo.Rollouts.from_yaml(RECIPES / "grpo.yaml")
STAGE = training.Stage.from_yaml(RECIPES / "grpo.yaml")
# Of the projector alone
PROJECTOR = sizes.count_parameters(sizes.model_without_weights(CONFIG).mlp1)


def test_the_recipe_is_read():
    assert ROLLOUTS.completions(gpus=8) == 64 and ROLLOUTS.num_generations == 8
    assert ROLLOUTS.prompt_tokens(CONFIG) == 13 * 256 + 512


def test_vllm_holds_the_weights_and_every_whole_completion():
    """64 layers × 8 heads × 128 × key and value × 2 bytes are 256 KiB a token."""
    needed = grpo.generation_bytes(CONFIG, ROLLOUTS, completions=64)
    assert needed["weights"] == pytest.approx(76.78e9, rel=1e-3)
    assert needed["cache"] == (8 * (13 * 256 + 512) + 64 * 8192) * 256 * 1024


@pytest.mark.parametrize(("needed", "gpu_gb", "gpus", "why"), [
    (70, 80, 1, "72 GB are vLLM's on a card of 80"),
    (73, 80, 2, "just too much for one"),
    (222, 80, 4, "288 GB on four"),
    (600, 80, None, "576 GB on eight"),
    (222, 141, 2, "larger cards"),
])  # fmt: skip
def test_the_smallest_server(needed, gpu_gb, gpus, why):
    assert grpo.server_gpus({"weights": needed * 1e9}, gpu_gb * 1e9) == gpus, why


def test_the_reference_is_one_copy_of_what_trains():
    without = training.estimate(CONFIG, STAGE, 8, "none")  # for 1,024 tokens
    policy = grpo.policy_bytes(CONFIG, STAGE, ROLLOUTS, 8, "none")
    assert policy["reference"] == 4 * PROJECTOR
    assert policy["weights"] == without["weights"]
    assert policy["activations"] > without["activations"]


def test_a_colocated_vllm_has_its_share_of_each_gpu():
    """Of 80 GB 24 are vLLM's: an eighth of the weights with eight GPUs together, or all of them."""
    together = dataclasses.replace(ROLLOUTS, vllm_tensor_parallel_size=8)
    needed = grpo.generation_bytes(CONFIG, together, completions=64)
    parts = grpo.colocated_bytes(needed, together, 8, 80e9)
    assert parts["weights"] == needed["weights"] // 8
    assert parts["weights"] + parts["cache"] == pytest.approx(24e9)
    assert parts["cache of all completions"] == needed["cache"] // 8
    assert grpo.colocated_bytes(needed, ROLLOUTS, 8, 80e9)["cache"] < 0
    with pytest.raises(ValueError, match=r"vllm_tensor_parallel_size=8: .* divides 12 GPUs"):
        grpo.colocated_bytes(needed, together, 12, 80e9)


@pytest.mark.parametrize(("size", "fits"), [(1, False), (8, True)])
def test_the_command_for_one_machine(size, fits, capsys, monkeypatch):
    """Shared out, the policy leaves room for a vLLM that is shared out too."""
    words = [
        "grpo", str(RECIPES / "grpo.yaml"), "--sharding", "fsdp", "--vllm-mode", "colocate",
        "--vllm-tensor-parallel-size", str(size),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    grpo.main()
    written = capsys.readouterr().out
    assert written.count("Fits.") == 1 + fits and written.count("Does not fit.") == 1 - fits
    assert "GPUs of its server" not in written


@pytest.mark.parametrize(("gpu_gb", "fits"), [(80, False), (141, True)])
def test_the_command(gpu_gb, fits):
    """The policy whole on each GPU does not fit 80 GB, and does 141."""
    command = [
        sys.executable, "-m", "memory.grpo", str(RECIPES / "grpo.yaml"), "--gpu-gb", str(gpu_gb),
        "--tokens-per-second", "5000", "--mean-tokens", "3000", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=checkpoints.ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["policy fits"] is fits and found["server GPUs"] == (4 if gpu_gb == 80 else 2)
    assert found["tokens"] == 500 * 64 * 3000
    assert found["hours of generation"] == pytest.approx(500 * 64 * 3000 / 5000 / 3600, abs=0.05)
