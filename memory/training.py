"""What a training stage needs on each GPU, before any is rented.

    python -m memory.training training/recipes/38b/alignment_sft.yaml --gpus 8 --sharding fsdp
    python -m memory.training training/recipes/38b/mlp_init_1.yaml --gpus 16 --sharding zero3

Shapes come from the model's config.json (by default the 38B model's), everything else from the
recipe; no weights are loaded. The batch is taken as full: `per_device_train_batch_size` samples of
`max_length` tokens, most of them images'. Weights, gradients and optimizer states are exact sums
over the parameters; activations are an estimate. At nano scale the sum is within a factor of 1.5
of the peak of a whole step, for each kind of what trains (tests/test_training_memory.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
import yaml
from torch import nn

from memory import sizes
from memory.serving_parts import QUANTIZED_BYTES
from remote_code import configuration_skywork_chat
from training.parts import ADAPTED_PART, TRAINABLE, adapters_among, names_among

SHARDINGS = ("none", "fsdp", "zero3")
FLOAT32_BYTES = 4
MODULES = ("mlp1", "vision_model", "language_model")  # of TRAINABLE, those that are modules
# The tile of logits that TRL's fused head (1.16, trl/kernels/chunked_logprob.py) has at a time
TOKENS_OF_TILE = 4096
WORDS_OF_TILE = 32_768
# A key of the recipes of other commands, which train nothing themselves
NO_TRAINING = {"thresholds": "training.iterate", "judge": "training.distill"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """What of a recipe decides about memory.

    Attributes:
        train: names of the parts that train, of `training.parts.TRAINABLE`.
        model_dtype: of the weights that do not train.
        bf16: whether activations are computed in bfloat16, by autocast.
        per_device_train_batch_size: samples on each GPU; the default is that of transformers and
            TRL, for recipes that do not say.
        max_length: tokens of a sample.
        gradient_checkpointing: whether activations inside a layer are computed again for the
            backward pass.
        lora_rank: rank of the adapters, where "lora" or "vision_lora" trains.
        load_in_4bit: whether the decoder layers are in 4 bits.

    Raises:
        ValueError: nothing trains, or an unknown part.
    """

    train: tuple[str, ...]
    model_dtype: str = "bfloat16"
    bf16: bool = True
    per_device_train_batch_size: int = 8
    max_length: int = 1024
    gradient_checkpointing: bool = True
    lora_rank: int = 16
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", tuple(names_among("train", self.train, TRAINABLE)))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Stage:
        """The stage of a recipe's file; keys that do not matter for memory are left out.

        Raises:
            OSError: the file cannot be read.
            ValueError: a recipe of another command, nothing trains, or an unknown part.
        """
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        for key, module in NO_TRAINING.items():
            if key in recipe:
                raise ValueError(
                    f"{path} is a recipe of {module} (it has {key!r}): expected one of "
                    "training.sft or training.grpo."
                )
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in recipe.items() if name in known}
        return cls(**{"train": ("mlp1",), **values})

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight that does not train."""
        return getattr(torch, self.model_dtype).itemsize

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in the activations."""
        return 2 if self.bf16 else self.weight_bytes

    @property
    def tokens(self) -> int:
        """Tokens of a full batch on one GPU."""
        return self.per_device_train_batch_size * self.max_length


@dataclasses.dataclass(frozen=True)
class ActivationBytes:
    """What the activations of a full batch take on one GPU, in bytes.

    Attributes:
        saved: what autograd saves for the backward pass.
        tower: what the vision tower takes at its widest while images are encoded.
        logits: what the language model's head takes.
    """

    saved: int
    tower: int
    logits: int

    @property
    def largest(self) -> int:
        """The most that is there at one time: images are encoded before there are logits."""
        return max(self.saved + self.logits, self.tower)


# -- activations -----------------------------------------------------------------------------------


def activation_bytes(
    config: configuration_skywork_chat.SkyworkChatConfig, stage: Stage
) -> ActivationBytes:
    """What autograd saves of a full batch, and what the widest points take besides.

    The vision tower saves nothing unless it trains. The language model saves its activations even
    where it is frozen, since the gradient passes through it.
    """
    tiles = stage.tokens // config.num_image_token
    patches = (config.tile_size // config.vision_config.patch_size) ** 2
    positions = tiles * (patches + 1)  # with a class token for each tile
    saved = _saved_by_language_model(config, stage)
    saved += _saved_by_projector(config, stage, tiles)
    if "vision_model" in stage.train or "vision_lora" in stage.train:
        saved += _saved_by_vision_tower(config, stage, positions)
    tower = sizes.vision_working_bytes(config.vision_config, positions, stage.compute_bytes)
    return ActivationBytes(saved, tower, _bytes_of_logits(config, stage))


def _bytes_of_logits(config: configuration_skywork_chat.SkyworkChatConfig, stage: Stage) -> int:
    """Bytes that TRL's fused head takes: it goes through tokens and vocabulary in tiles."""
    width = config.llm_config.hidden_size
    tile = min(stage.tokens, TOKENS_OF_TILE) * WORDS_OF_TILE * stage.compute_bytes
    log_probabilities = 4 * FLOAT32_BYTES * stage.tokens
    gradient_of_states = FLOAT32_BYTES * stage.tokens * width
    head_in_compute_dtype = 0
    if "language_model" in stage.train and stage.compute_bytes < FLOAT32_BYTES:
        words = min(config.llm_config.vocab_size, WORDS_OF_TILE)
        head_in_compute_dtype = words * width * stage.compute_bytes
    return tile + log_probabilities + gradient_of_states + head_in_compute_dtype


def _saved_by_language_model(
    config: configuration_skywork_chat.SkyworkChatConfig, stage: Stage
) -> int:
    """Bytes that the decoder layers save.

    With checkpointing these are each layer's input and the inside of one layer, else the inside of
    every layer.
    """
    llm = config.llm_config
    width = llm.hidden_size
    key_value = width * sizes.key_value_heads(llm) // llm.num_attention_heads
    # Of each of the two RMSNorms the float32 input and its scaled copy
    norms = 2 * (FLOAT32_BYTES + stage.compute_bytes) * width
    # Queries, keys, values and the attention's output; gate, up, silu(gate) and their product
    values = 2 * width + 2 * key_value + 4 * llm.intermediate_size
    if "language_model" in stage.train or "lora" in stage.train:
        values += 3 * width  # inputs of the matrices, for the gradients of weights or adapters
    inside_of_layer = stage.tokens * (norms + stage.compute_bytes * values)
    if not stage.gradient_checkpointing:
        return llm.num_hidden_layers * inside_of_layer
    input_of_layer = stage.tokens * stage.compute_bytes * width
    return llm.num_hidden_layers * input_of_layer + inside_of_layer


def _saved_by_vision_tower(
    config: configuration_skywork_chat.SkyworkChatConfig, stage: Stage, positions: int
) -> int:
    """Bytes that the layers of a training vision tower save; with checkpointing their inputs."""
    vision = config.vision_config
    width = vision.hidden_size
    if stage.gradient_checkpointing:
        return vision.num_hidden_layers * positions * stage.compute_bytes * width
    # Two norms, and those of queries and keys, in float32
    norms = 4 * (FLOAT32_BYTES + stage.compute_bytes) * width
    # Queries, keys, values, the attention's output, both scaled branches; around GELU
    branches = stage.compute_bytes * (7 * width + 2 * vision.intermediate_size)
    return vision.num_hidden_layers * positions * (norms + branches)


def _saved_by_projector(
    config: configuration_skywork_chat.SkyworkChatConfig, stage: Stage, tiles: int
) -> int:
    """Bytes that mlp1 saves: the normalised input and the inside of GELU."""
    input_width = config.merged_size
    normalised = (FLOAT32_BYTES + stage.compute_bytes) * input_width
    around_gelu = 2 * stage.compute_bytes * config.llm_config.hidden_size
    return tiles * config.num_image_token * (normalised + around_gelu)


# -- weights, gradients and optimizer states -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """What all GPUs hold together besides activations, in bytes, without copies of one another."""

    weights: int
    gradients: int
    optimizer_states: int


def lora_parameters(layers: nn.Module, rank: int) -> int:
    """Parameters of adapters on all matrices of the layers of a language model or vision tower.

    A matrix has rank × (inputs + outputs) of them (LoRA, arXiv:2106.09685).
    """
    return sum(rank * sum(matrix.shape) for matrix in _matrices(layers))


def _matrices(layers: nn.Module) -> list[torch.Tensor]:
    """The weights of all linear maps in layers."""
    return [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]


def adapter_parameters(model: sizes.Model, stage: Stage) -> int:
    """Parameters of all adapters of a stage."""
    total = 0
    if "lora" in stage.train:
        total += lora_parameters(model.language_model.model.layers, stage.lora_rank)
    if "vision_lora" in stage.train:
        total += lora_parameters(model.vision_model.encoder.layers, stage.lora_rank)
    return total


def bytes_saved_by_quantization(model: sizes.Model, stage: Stage) -> int:
    """Bytes that the matrices of the decoder layers take less in 4 bits, with their scales."""
    if not stage.load_in_4bit:
        return 0
    weights = sum(matrix.numel() for matrix in _matrices(model.language_model.model.layers))
    return round(weights * (stage.weight_bytes - QUANTIZED_BYTES["nf4"]))


def training_state(model: sizes.Model, stage: Stage, sharding: str) -> TrainingState:
    """Weights, gradients and AdamW's states.

    Args:
        model: may be on the meta device.
        stage: what trains.
        sharding: with "zero3" there is a float32 master besides the weights; otherwise what trains
            is itself kept in float32.
    """
    parameters = sizes.count_parameters(model)
    trained_modules = [name for name in MODULES if name in stage.train]
    trainable = sum(sizes.count_parameters(getattr(model, name)) for name in trained_modules)
    adapters = adapter_parameters(model, stage)
    updated = trainable + adapters
    moments = 2 * FLOAT32_BYTES * updated
    if sharding == "zero3":
        return TrainingState(
            weights=stage.weight_bytes * (parameters + adapters),
            gradients=stage.weight_bytes * updated,
            optimizer_states=FLOAT32_BYTES * updated + moments,
        )
    frozen = stage.weight_bytes * (parameters - trainable)
    return TrainingState(
        weights=frozen - bytes_saved_by_quantization(model, stage) + FLOAT32_BYTES * updated,
        gradients=FLOAT32_BYTES * updated,
        optimizer_states=moments,
    )


def gathered_bytes(model: sizes.Model) -> int:
    """Bytes of the layers that sharding gathers on a GPU.

    While a layer computes, all of it is there in a dtype of two bytes, and the next one is on its
    way.
    """
    largest = sizes.count_parameters(model.get_input_embeddings())
    for layer in (*model.language_model.model.layers, *model.vision_model.encoder.layers):
        largest = max(largest, sizes.count_parameters(layer))
    return 2 * 2 * largest


# -- all together ----------------------------------------------------------------------------------


def estimate(
    config: configuration_skywork_chat.SkyworkChatConfig,
    stage: Stage,
    gpus: int = 1,
    sharding: str = "none",
) -> dict[str, int]:
    """Bytes of each part on each GPU, by name; "total" includes the allocator's slack.

    Args:
        config: of the model.
        stage: what trains, on which batches.
        gpus: number of GPUs.
        sharding: "none" (every GPU holds everything), "fsdp" or "zero3" (each holds its share of
            weights, gradients and states).

    Raises:
        ValueError: an unknown sharding, or fewer than one GPU.
    """
    if sharding not in SHARDINGS:
        raise ValueError(
            f"sharding={sharding!r} is unknown; expected one of {', '.join(SHARDINGS)}."
        )
    if gpus < 1:
        raise ValueError(f"gpus={gpus}: expected at least 1.")
    if stage.load_in_4bit and sharding != "none":
        raise ValueError(f"load_in_4bit runs with sharding none, not {sharding}.")
    model = sizes.model_without_weights(config)
    state = training_state(model, stage, sharding)
    is_sharded = sharding != "none"
    holders = gpus if is_sharded else 1
    parts = {
        "weights": state.weights / holders,
        "gradients": state.gradients / holders,
        "optimizer states": state.optimizer_states / holders,
        "gathered layers": gathered_bytes(model) if is_sharded else 0,
        "activations": activation_bytes(config, stage).largest,
    }
    rounded = {name: round(size) for name, size in parts.items()}
    return {**rounded, "total": round(sizes.ALLOCATOR_SLACK * sum(parts.values()))}


def advice(stage: Stage, sharding: str) -> list[str]:
    """What makes a stage smaller, of what it does not do yet."""
    lines = []
    if not stage.gradient_checkpointing:
        lines.append("gradient_checkpointing: true")
    if stage.per_device_train_batch_size > 1:
        lines.append("a smaller per_device_train_batch_size")
    lines.append("a smaller max_length")
    for adapter, part in ADAPTED_PART.items():
        if part in stage.train:
            lines.append(f"train {adapter} rather than {part}")
    if sharding != "none":
        lines.append("more GPUs")
        return lines
    if adapters_among(stage.train) and not stage.load_in_4bit:
        lines.append("load_in_4bit: true")
    if not stage.load_in_4bit:
        lines.append("more GPUs, with --sharding fsdp or zero3")
    return lines


# -- the command line ------------------------------------------------------------------------------


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="What a training stage needs on each GPU, before any is rented."
    )
    parser.add_argument("recipe", help="YAML file of training.sft")
    parser.add_argument(
        "--model",
        default=str(sizes.ROOT),
        help="directory with a config.json; by default the 38B model's",
    )
    parser.add_argument("--gpus", type=int, default=8, help="number of GPUs")
    parser.add_argument("--sharding", choices=SHARDINGS, default="fsdp")
    parser.add_argument("--gpu-gb", type=float, default=80.0, help="memory of a GPU in GB")
    parser.add_argument("--json", action="store_true", help="JSON rather than text")
    return parser


def main() -> None:
    """Print what a stage needs on each GPU, and whether that fits."""
    arguments = _make_parser().parse_args()
    try:
        stage = Stage.from_yaml(arguments.recipe)
        config = sizes.load_config(arguments.model)
        parts = estimate(config, stage, arguments.gpus, arguments.sharding)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    fits = parts["total"] <= arguments.gpu_gb * sizes.GIGABYTE - sizes.CUDA_CONTEXT
    if arguments.json:
        print(json.dumps({**parts, "fits": fits}))
        return
    for name, size in parts.items():
        print(f"{size / sizes.GIGABYTE:8.2f} GB  {name}")
    verdict = "Fits" if fits else "Does not fit"
    machine = f"{arguments.gpus} × {arguments.gpu_gb:g} GB"
    print(f"{verdict} {machine} with sharding {arguments.sharding}.")
    if not fits:
        print("\n".join(["What would help:", *advice(stage, arguments.sharding)]))


if __name__ == "__main__":
    main()
