"""The memory calculator of training.

It is exact where it counts parameters, and near what autograd saves where it estimates.
"""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText

from memory import training as memory
from memory.sizes import load_config
from tests import checkpoints
from tests.test_memory_plan import most_allocated
from tests.test_sft import arguments, samples  # noqa: F401  a fixture
from training import sft

ROOT_CONFIG = load_config(checkpoints.ROOT)
NANO_CONFIG = load_config(checkpoints.NANO)
STAGE = memory.Stage(train=("mlp1",), per_device_train_batch_size=4, max_length=256)


def saved_by_autograd(stage):
    """Bytes of distinct tensors that a forward pass saves for the backward pass, but parameters."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, torch_dtype=getattr(torch, stage.model_dtype), trust_remote_code=True
    ).train()
    model.requires_grad_(False)
    for part in stage.train:
        getattr(model, part).requires_grad_(True).float()
    if stage.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tiles = stage.per_device_train_batch_size * stage.max_length // 16
    ids = torch.full((stage.per_device_train_batch_size, stage.max_length), 1023)
    storages_of_parameters = {
        parameter.untyped_storage().data_ptr() for parameter in model.parameters()
    }
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages_of_parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=stage.bf16),
    ):
        embeddings = model.embed(
            ids, pixel_values=torch.zeros(tiles, 3, 112, 112, dtype=model.dtype)
        )
        output = model.language_model.model(
            inputs_embeds=embeddings, use_cache=False
        ).last_hidden_state
    del output
    return sum(storages.values())


@pytest.mark.parametrize("changes", [
    {"gradient_checkpointing": False},
    {"gradient_checkpointing": False, "bf16": False, "model_dtype": "float32"},
    {"gradient_checkpointing": False, "train": ("mlp1", "language_model")},
    {"gradient_checkpointing": False, "train": ("mlp1", "vision_model")},
], ids=str)  # fmt: skip
def test_activations_near_what_autograd_saves(changes):
    stage = dataclasses.replace(STAGE, **changes)
    estimated = memory.activation_bytes(NANO_CONFIG, stage).saved
    measured = saved_by_autograd(stage)
    assert 1 / 1.5 < estimated / measured < 1.5, (
        f"{estimated / 1e6:.1f} MB estimated, {measured / 1e6:.1f} MB saved"
    )


def test_weights_gradients_and_states_are_exact():
    """Against the tensors of a real model and optimizer, in bytes."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.bfloat16, trust_remote_code=True
    )
    model.requires_grad_(False)
    model.mlp1.float().requires_grad_(True)
    trainable = list(model.mlp1.parameters())
    optimizer = torch.optim.AdamW(trainable)
    for parameter in trainable:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    states = [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    parts = memory.estimate(NANO_CONFIG, STAGE)
    assert parts["weights"] == size(model.parameters())
    assert parts["gradients"] == size(parameter.grad for parameter in trainable)
    assert parts["optimizer states"] == size(states)


def test_adapters_are_counted_as_peft_makes_them():
    from peft import LoraConfig, get_peft_model

    from training.recipe import LORA_TARGETS, VISION_LORA_TARGETS

    model = AutoModelForImageTextToText.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    stage = dataclasses.replace(STAGE, train=("lora", "vision_lora"), lora_rank=8)
    counted = memory.adapter_parameters(model, stage)
    targets = f"{LORA_TARGETS}|{VISION_LORA_TARGETS}"
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    assert counted == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_sharding_divides_what_it_should():
    stage = dataclasses.replace(STAGE, train=("mlp1", "language_model"), max_length=4096)
    alone = memory.estimate(ROOT_CONFIG, stage, 8, "none")
    shared = memory.estimate(ROOT_CONFIG, stage, 8, "fsdp")
    zero3 = memory.estimate(ROOT_CONFIG, stage, 16, "zero3")
    assert alone["optimizer states"] == 8 * shared["optimizer states"]
    assert alone["gathered layers"] == 0 < shared["gathered layers"]
    # weights, gradients, a float32 master and two moments over 16 GPUs
    trained = 32_763_876_352 + 105_000_000
    assert zero3["optimizer states"] == pytest.approx(12 * trained / 16, rel=0.01)


def test_the_stages_of_the_report_fit_where_the_readme_says():
    """mlp1 on 8 × 80 GB, one sample of 16,384 tokens each; all of it on one GPU does not."""
    stage = memory.Stage.from_yaml(
        checkpoints.ROOT / "training" / "recipes" / "38b" / "alignment_sft.yaml"
    )
    assert stage.max_length == 16384 and stage.train == ("mlp1",) and stage.gradient_checkpointing
    eight = memory.estimate(ROOT_CONFIG, stage, 8, "fsdp")
    assert eight["total"] < 79e9
    assert memory.estimate(ROOT_CONFIG, stage, 1, "none")["total"] > 79e9


def test_command_line():
    recipe = "training/recipes/38b/mlp_init_1.yaml"
    command = [sys.executable, "-m", "memory.training", recipe, "--gpus", "8", "--json"]
    done = subprocess.run(
        command, cwd=checkpoints.ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout)["fits"] is True
    for sharding, gpus in (("ddp", 1), ("none", 0)):
        with pytest.raises(ValueError, match=r"sharding='ddp'|gpus=0"):
            memory.estimate(NANO_CONFIG, STAGE, gpus, sharding)


@pytest.mark.parametrize(
    "train, parts", [("language_model", ("language_model",)), ("[mlp1, lora]", ("mlp1", "lora"))]
)
def test_a_recipe_may_have_one_text_for_a_list(tmp_path, train, parts):
    (tmp_path / "recipe.yaml").write_text(f"train: {train}\n")
    assert memory.Stage.from_yaml(tmp_path / "recipe.yaml").train == parts


@pytest.mark.parametrize("name", ["iterate", "distill"])
def test_a_recipe_that_trains_nothing_is_refused(name):
    path = checkpoints.ROOT / "training" / "recipes" / "38b" / f"{name}.yaml"
    with pytest.raises(ValueError, match=f"a recipe of training.{name} "):
        memory.Stage.from_yaml(path)


def test_unknown_parts_do_not_count_as_nothing():
    with pytest.raises(ValueError, match=r"train: \['mlp'\]; expected some of mlp1"):
        memory.estimate(NANO_CONFIG, memory.Stage(train=("mlp",)))


class TestAgainstAStep:
    """A whole step, with AdamW, at a few megabytes: forward, backward, update.

    In float32, as in tests/test_memory_plan.py. Peaks are those of torch's profiler. What the
    estimate has besides, the allocator's slack, is not in it.
    """

    @pytest.mark.parametrize("train, checkpointing", [
        (["mlp1"], "true"),
        (["lora", "vision_lora", "mlp1"], "false"),
        *(
            pytest.param(train, checkpointing, marks=pytest.mark.slow)  # 9 seconds each
            for train in (
                ["mlp1", "language_model"],
                ["mlp1", "vision_model"],
                ["mlp1", "language_model", "vision_model"],
                ["lora"],
                ["vision_lora"],
            )
            for checkpointing in ("true", "false")
        ),
    ], ids=str)  # fmt: skip
    def test_peak(self, samples, tmp_path, train, checkpointing):  # noqa: F811
        flags = arguments(
            samples,
            tmp_path,
            train=train,
            save=["adapter"] if "lora" in "".join(train) else ["model"],
            gradient_checkpointing=checkpointing,
        )
        recipe, config = sft.parse(flags)
        trainer = sft.make_trainer(recipe, config)
        stage = memory.Stage(
            train=tuple(train),
            model_dtype="float32",
            bf16=False,
            per_device_train_batch_size=2,
            max_length=512,
            gradient_checkpointing=checkpointing == "true",
        )
        batch = full_batch(stage)
        trainer.create_optimizer()
        trainer.model.train()
        if checkpointing == "true":
            trainer.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

        def step():
            trainer.compute_loss(trainer.model, dict(batch)).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        step()  # the moments are there from the second step on
        parts = memory.estimate(NANO_CONFIG, stage)
        # What is there before the step: weights and moments
        before = parts["weights"] + parts["optimizer states"]
        measured = before + most_allocated(step, tmp_path / "trace.json")
        estimated = sum(parts[name] for name in parts if name != "total")
        assert 1 / 1.5 < estimated / measured < 1.5, (
            f"{estimated / 1e6:.1f} MB estimated, {measured / 1e6:.1f} MB measured"
        )


def full_batch(stage):
    """A batch that has as many tokens and tiles as the stage may."""
    generator = torch.Generator().manual_seed(0)
    rows, length = stage.per_device_train_batch_size, stage.max_length
    tiles = rows * length // 16
    ids = torch.full((rows, length), 1023)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.clone(),
        "pixel_values": torch.randn(tiles, 3, 112, 112, generator=generator),
        "image_flags": torch.ones(tiles, dtype=torch.long),
    }
