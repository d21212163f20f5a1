"""The memory calculator of GRPO, against sums by hand."""

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
