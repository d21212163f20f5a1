"""What GRPO needs, before any GPU is rented: policy, generation, tokens and hours.

    python -m memory.grpo training/recipes/38b/grpo.yaml --gpus 8 --sharding fsdp
    python -m memory.grpo training/recipes/38b/grpo.yaml --gpus 8 --sharding fsdp \\
        --vllm-mode colocate --vllm-tensor-parallel-size 8
    python -m memory.grpo training/recipes/38b/grpo_r1v3.yaml --gpus 16 --tokens-per-second 5000

The policy is a training stage of `max_completion_length` tokens behind the longest prompt
(memory/training.py). vLLM generates: in server mode on GPUs of its own, in colocate mode in the
share `vllm_gpu_memory_utilization` of each GPU of the policy, of which
`vllm_tensor_parallel_size` hold the weights together. With `beta` above 0 there is a
reference, which is the model itself with what trains as it was at the start. A reward model has a
server of its own, whose size its own configuration decides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from memory import sizes, training
from memory.serving_plan import TENSOR_PARALLEL_SIZES, VLLM_SHARE
from remote_code import configuration_skywork_chat
from training.parts import adapters_among

TEXT_TOKENS = 512  # of a prompt, beside its images
COLOCATED_SHARE = 0.3  # of a GPU: TRL's vllm_gpu_memory_utilization unless a recipe says otherwise
SECONDS_PER_HOUR = 3600
MODES = ("server", "colocate")


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What of a recipe decides about generation.

    Attributes:
        num_generations: completions of a prompt.
        max_completion_length: tokens of a completion, at most.
        max_tiles: of an image, thumbnail not counted.
        beta: weight of the KL term; above 0 there is a reference.
        max_steps: optimizer steps of the whole training.
        per_device_train_batch_size: completions on each GPU in a forward pass.
        gradient_accumulation_steps: of these in an optimizer step.
        vllm_mode: "server" or "colocate".
        vllm_gpu_memory_utilization: share of a GPU that vLLM takes in colocate mode.
        vllm_tensor_parallel_size: GPUs that hold one vLLM together in colocate mode.
    """

    num_generations: int = 8
    max_completion_length: int = 256
    max_tiles: int = 12
    beta: float = 0.0
    max_steps: int = 1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    vllm_mode: str = "colocate"
    vllm_gpu_memory_utilization: float = COLOCATED_SHARE
    vllm_tensor_parallel_size: int = 1

    @classmethod
    def from_yaml(cls, path: str | Path) -> Rollouts:
        """The rollouts of a recipe's file.

        Raises:
            OSError: the file cannot be read.
        """
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in recipe.items() if name in names})

    def prompt_tokens(self, config: configuration_skywork_chat.SkyworkChatConfig) -> int:
        """Tokens of the longest prompt: an image of all tiles with its thumbnail, and text."""
        return (self.max_tiles + 1) * config.num_image_token + TEXT_TOKENS

    def completions(self, gpus: int) -> int:
        """Completions of an optimizer step."""
        return gpus * self.per_device_train_batch_size * self.gradient_accumulation_steps


def policy_bytes(
    config: configuration_skywork_chat.SkyworkChatConfig,
    stage: training.Stage,
    rollouts: Rollouts,
    gpus: int,
    sharding: str,
) -> dict[str, int]:
    """Bytes of each part on each GPU that trains, by name; "total" includes slack, not vLLM.

    Raises:
        ValueError: as `memory.training.estimate`.
    """
    length = rollouts.prompt_tokens(config) + rollouts.max_completion_length
    stage = dataclasses.replace(stage, max_length=length)
    parts = training.estimate(config, stage, gpus, sharding)
    parts.pop("total")
    if rollouts.beta > 0 and not adapters_among(stage.train):
        # AdamW's two moments of what trains; the reference is one float32 copy of it.
        parts["reference"] = parts["optimizer states"] // 2
    return {**parts, "total": round(sizes.ALLOCATOR_SLACK * sum(parts.values()))}


def generation_bytes(
    config: configuration_skywork_chat.SkyworkChatConfig, rollouts: Rollouts, completions: int
) -> dict[str, int]:
    """Bytes of vLLM in bfloat16, by name: weights, and the cache of so many whole completions.

    The completions of a prompt share its part of the cache (prefix caching).
    """
    weights = 2 * sizes.count_parameters(sizes.model_without_weights(config))
    prompts = -(-completions // rollouts.num_generations)
    tokens = prompts * rollouts.prompt_tokens(config)
    tokens += completions * rollouts.max_completion_length
    cache = tokens * sizes.kv_bytes_per_token(config.llm_config, 2)
    return {"weights": weights, "cache": round(cache)}


def colocated_bytes(
    needed: dict[str, int], rollouts: Rollouts, gpus: int, gpu_bytes: float
) -> dict[str, int]:
    """Bytes of vLLM on each GPU that trains, by name; vLLM's own activations are not counted.

    Args:
        needed: `generation_bytes` of all completions of a step.
        gpus: that train.
        gpu_bytes: of each, everything counted.

    Returns:
        "weights"; "cache": what is left of vLLM's share, below 0 where the weights do not fit;
        "cache of all completions": with which none has to wait.

    Raises:
        ValueError: GPUs that do not divide into groups with a vLLM each.
    """
    size = rollouts.vllm_tensor_parallel_size
    if size < 1 or gpus % size:
        raise ValueError(
            f"vllm_tensor_parallel_size={size}: expected a number that divides {gpus} GPUs."
        )
    weights = needed["weights"] // size
    return {
        "weights": weights,
        "cache": round(rollouts.vllm_gpu_memory_utilization * gpu_bytes) - weights,
        "cache of all completions": needed["cache"] // gpus,
    }


def server_gpus(needed: dict[str, int], gpu_bytes: float) -> int | None:
    """GPUs of the smallest server whose vLLM holds weights and cache; None where 8 are too few."""
    for gpus in sorted(TENSOR_PARALLEL_SIZES):
        if sum(needed.values()) <= gpus * VLLM_SHARE * gpu_bytes:
            return gpus
    return None


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", help="YAML file of training.grpo")
    parser.add_argument("--model", default=str(sizes.ROOT), help="directory with a config.json")
    parser.add_argument("--gpus", type=int, default=8, help="number of GPUs that train")
    parser.add_argument("--sharding", choices=training.SHARDINGS, default="none")
    parser.add_argument("--gpu-gb", type=float, default=80.0, help="memory of a GPU in GB")
    parser.add_argument(
        "--vllm-mode", choices=MODES, help="where vLLM generates; by default as the recipe says"
    )
    parser.add_argument(
        "--vllm-tensor-parallel-size", type=int, help="GPUs of a vLLM that is colocated"
    )
    parser.add_argument(
        "--mean-tokens",
        type=float,
        help="of a completion; by default half of max_completion_length, which is an assumption",
    )
    parser.add_argument(
        "--tokens-per-second", type=float, help="that vLLM writes, all requests together"
    )
    parser.add_argument("--json", action="store_true", help="JSON rather than text")
    return parser


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of a training.

    Raises:
        OSError: a file cannot be read.
        ValueError: a recipe or a machine that cannot be.
    """
    stage = training.Stage.from_yaml(arguments.recipe)
    rollouts = Rollouts.from_yaml(arguments.recipe)
    for name in ("vllm_mode", "vllm_tensor_parallel_size"):
        if getattr(arguments, name) is not None:
            rollouts = dataclasses.replace(rollouts, **{name: getattr(arguments, name)})
    config = sizes.load_config(arguments.model)
    whole_gpu = arguments.gpu_gb * sizes.GIGABYTE
    policy = policy_bytes(config, stage, rollouts, arguments.gpus, arguments.sharding)
    completions = rollouts.completions(arguments.gpus)
    generation = generation_bytes(config, rollouts, completions)
    left = whole_gpu - sizes.CUDA_CONTEXT
    mean_tokens = arguments.mean_tokens or rollouts.max_completion_length / 2
    tokens = round(rollouts.max_steps * completions * mean_tokens)
    found: dict[str, Any] = {
        "policy": policy,
        "generation": generation,
        "vllm_mode": rollouts.vllm_mode,
        "completions of a step": completions,
        "tokens": tokens,
    }
    if rollouts.vllm_mode == "colocate":
        left -= rollouts.vllm_gpu_memory_utilization * whole_gpu
        found["vLLM of a GPU"] = colocated_bytes(generation, rollouts, arguments.gpus, whole_gpu)
        found["vLLM fits"] = found["vLLM of a GPU"]["cache"] > 0
    else:
        found["server GPUs"] = server_gpus(generation, whole_gpu)
    found["policy fits"] = policy["total"] <= left
    if arguments.tokens_per_second:
        hours = tokens / arguments.tokens_per_second / SECONDS_PER_HOUR
        found["hours of generation"] = round(hours, 1)
    return found


def _print_parts(parts: dict[str, int]) -> None:
    for name, size in parts.items():
        print(f"{size / sizes.GIGABYTE:8.2f} GB  {name}")


def main() -> None:
    """Print what a training needs, and whether the policy fits."""
    arguments = _make_parser().parse_args()
    try:
        found = plan(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"Each of {arguments.gpus} GPUs that train ({arguments.sharding}):")
    _print_parts(found["policy"])
    print("Fits." if found["policy fits"] else "Does not fit.")
    print(f"vLLM ({found['vllm_mode']}), for {found['completions of a step']} completions at once:")
    _print_parts(found["generation"])
    if found["vllm_mode"] == "server":
        print(f"GPUs of its server: {found['server GPUs'] or 'more than 8'}")
    else:
        print("Of that on each GPU that trains, beside the policy:")
        _print_parts(found["vLLM of a GPU"])
        print("Fits." if found["vLLM fits"] else "Does not fit.")
    print(f"Tokens to write: {found['tokens'] / 1e6:.0f} million")
    if "hours of generation" in found:
        print(f"Hours of generation: {found['hours of generation']}")


if __name__ == "__main__":
    main()
