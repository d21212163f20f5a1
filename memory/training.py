"""What a training stage needs on each GPU, before any is rented.

    python -m training.memory training/recipes/38b/alignment_sft.yaml --gpus 8 --sharding fsdp
    python -m training.memory training/recipes/38b/mlp_init_1.yaml --gpus 16 --sharding zero3 --gpu-gb 80

Shapes come from the model's config.json (by default the 38B model's), everything else from the recipe; no weights are
loaded. The batch is taken as full: `per_device_train_batch_size` samples of `max_length` tokens, most of them
images'. Weights, gradients and optimizer states are exact sums over the parameters; activations are an estimate,
within a factor of 1.5 of what autograd keeps at small scale without checkpointing (tests/test_training_memory.py).
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
import yaml

from memory.serving import ALLOCATOR_SLACK, RESERVE, count_parameters, load_config
from remote_code import modeling_skywork_chat
from training.parts import TRAINABLE, names_among

ROOT = Path(__file__).resolve().parents[1]
SHARDINGS = ("none", "fsdp", "zero3")
GIGABYTE = 1e9


@dataclasses.dataclass(frozen=True)
class Stage:
    """What of a recipe decides about memory.

    Raises:
        ValueError: nothing trains, or an unknown part.
    """

    train: tuple
    model_dtype: str = "bfloat16"
    bf16: bool = True
    per_device_train_batch_size: int = 8  # as of transformers and TRL where a recipe does not say
    max_length: int = 1024
    gradient_checkpointing: bool = True
    lora_rank: int = 16

    def __post_init__(self):
        object.__setattr__(self, "train", tuple(names_among("train", self.train, TRAINABLE)))

    @classmethod
    def from_yaml(cls, path):
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in recipe.items() if name in known}
        return cls(**{"train": ("mlp1",), **values})


def lora_parameters(model, rank):
    """Parameters of adapters on the decoder layers' seven matrices: rank × (inputs + outputs) each."""
    layers = model.language_model.model.layers
    return sum(
        rank * sum(m.weight.shape) for m in layers.modules() if isinstance(m, torch.nn.Linear)
    )


def activation_bytes(config, stage):
    """What autograd keeps of a full batch for the backward pass, and what the widest point takes besides.

    The vision tower keeps nothing unless it trains. The language model keeps its activations even where it is frozen,
    since the gradient passes through it: with checkpointing each layer's input and one layer's inside, else every
    layer's inside.

    Returns:
        {"kept": bytes, "tower": bytes while images are encoded, "logits": bytes}.
    """
    llm, vision = config.llm_config, config.vision_config
    wide = 2 if stage.bf16 else getattr(torch, stage.model_dtype).itemsize
    tokens = stage.per_device_train_batch_size * stage.max_length
    hidden, inner = llm.hidden_size, llm.intermediate_size
    key_value = hidden * llm.num_key_value_heads // llm.num_attention_heads
    trains_layers = any(part in stage.train for part in ("language_model", "lora"))
    # RMSNorm twice: float32 input and its scaled copy; queries, keys, values and the attention's output;
    # gate, up, silu(gate) and their product
    norms = 2 * (4 + wide) * hidden
    inside = tokens * (norms + wide * (2 * hidden + 2 * key_value + 4 * inner))
    if trains_layers:  # inputs of the matrices, for the gradients of weights or adapters
        inside += tokens * wide * 3 * hidden
    between = tokens * wide * hidden
    layers = llm.num_hidden_layers
    kept = layers * between + inside if stage.gradient_checkpointing else layers * inside
    side = (config.force_image_size or vision.image_size) // vision.patch_size
    tokens_per_tile = config.num_image_token
    tiles = tokens // tokens_per_tile
    of_tower = (
        tiles
        * (side**2 + 1)
        * wide
        * (2 * vision.hidden_size + max(2 * vision.intermediate_size, 7 * vision.hidden_size))
    )
    if "vision_model" in stage.train:
        # Two norms and those of queries and keys in float32; queries, keys, values, the attention's output, both
        # scaled branches; around GELU
        norms = 4 * (4 + wide) * vision.hidden_size
        branches = wide * (7 * vision.hidden_size + 2 * vision.intermediate_size)
        per_layer = tiles * (side**2 + 1) * (norms + branches)
        of_layers = tiles * (side**2 + 1) * wide * vision.hidden_size
        kept += vision.num_hidden_layers * (
            of_layers if stage.gradient_checkpointing else per_layer
        )
    # mlp1: the normalised input and the inside of GELU
    projected = tiles * tokens_per_tile
    kept += projected * ((4 + wide) * 4 * vision.hidden_size + 2 * wide * hidden)
    # TRL's fused head goes through the vocabulary in blocks; the log-probabilities remain
    logits = 4 * tokens * 4 + 4 * 1024 * llm.vocab_size
    return {"kept": kept, "tower": of_tower, "logits": logits}


def estimate(config, stage, gpus=1, sharding="none"):
    """Bytes of each part on each GPU, a dict; "total" is with the allocator's slack.

    Args:
        config: `SkyworkChatConfig`.
        sharding: "none" (every GPU holds all), "fsdp" or "zero3" (each holds its share of weights, gradients and
        states).

    Raises:
        ValueError: an unknown sharding, or fewer than one GPU.
    """
    if sharding not in SHARDINGS:
        raise ValueError(
            f"sharding={sharding!r} is unknown; expected one of {', '.join(SHARDINGS)}."
        )
    if gpus < 1:
        raise ValueError(f"gpus={gpus}: expected at least 1.")
    with torch.device("meta"):
        model = modeling_skywork_chat.SkyworkChatModel(config)
    wide = getattr(torch, stage.model_dtype).itemsize
    parameters = count_parameters(model)
    trainable = sum(
        count_parameters(getattr(model, part))
        for part in ("mlp1", "vision_model", "language_model")
        if part in stage.train
    )
    adapters = lora_parameters(model, stage.lora_rank) if "lora" in stage.train else 0
    share = gpus if sharding != "none" else 1
    if sharding == "zero3":  # a float32 master besides the weights, and two moments
        weights, states = wide * (parameters + adapters), 12 * (trainable + adapters)
        gradients = wide * (trainable + adapters)
    else:  # what trains is kept in float32
        weights = wide * (parameters - trainable) + 4 * (trainable + adapters)
        states, gradients = 8 * (trainable + adapters), 4 * (trainable + adapters)
    # While a layer computes, all of it is there in the computing dtype, and the next one is on its way
    gathered = 0
    if sharding != "none":
        embeddings = count_parameters(model.get_input_embeddings())
        largest = max(
            embeddings,
            max(count_parameters(layer) for layer in model.language_model.model.layers),
            max(count_parameters(layer) for layer in model.vision_model.encoder.layers),
        )
        gathered = 2 * 2 * largest
    activations = activation_bytes(config, stage)
    parts = {
        "weights": weights / share,
        "gradients": gradients / share,
        "optimizer states": states / share,
        "gathered layers": gathered,
        "activations": max(activations["kept"] + activations["logits"], activations["tower"]),
    }
    return {
        **{name: round(size) for name, size in parts.items()},
        "total": round(ALLOCATOR_SLACK * sum(parts.values())),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="YAML file of training.sft")
    parser.add_argument(
        "--model",
        default=str(ROOT),
        help="directory with a config.json; by default the 38B model's",
    )
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--sharding", choices=SHARDINGS, default="fsdp")
    parser.add_argument("--gpu-gb", type=float, default=80.0, help="memory of a GPU")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        stage = Stage.from_yaml(arguments.recipe)
        parts = estimate(load_config(arguments.model), stage, arguments.gpus, arguments.sharding)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    fits = parts["total"] <= arguments.gpu_gb * GIGABYTE - RESERVE
    if arguments.json:
        print(json.dumps({**parts, "fits": fits}))
        return
    for name, size in parts.items():
        print(f"{size / GIGABYTE:8.2f} GB  {name}")
    verdict = "Fits" if fits else "Does not fit"
    print(
        f"{verdict} {arguments.gpus} × {arguments.gpu_gb:g} GB with sharding {arguments.sharding}."
    )
    if not fits:
        print(
            "More GPUs (with fsdp or zero3), a smaller max_length or per_device_train_batch_size, or lora would help."
        )


if __name__ == "__main__":
    main()
