"""Recipes: only what a recipe names changes.

An interrupted training goes on to the same losses, and two processes train as one does.
"""

import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoTokenizer

from tests import checkpoints, cpu_processes
from training import recipe, select, sft
from training.frozen import assert_frozen, checksums, freeze
from training.nano import data as nano_data
from training.resume import last_checkpoint, mark_complete
from training.trainer import EpochSeededLengthSampler

RECIPES = checkpoints.ROOT / "training" / "recipes"
# Three float32 copies of mlp1's 330,240 parameters, and small files; all parameters are 45 MB
BYTES_OF_CHECKPOINT = 6e6
STAGES = ("mlp_init_1", "mlp_init_2", "mlp_init_3", "alignment_sft")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """40 drawn samples, some of them of two images, and one of text."""
    folder = tmp_path_factory.mktemp("samples")
    path = nano_data.write("init_2", folder, 40, seed=3)
    with open(path, "a", encoding="utf-8") as file:
        turns = [
            {"from": "human", "value": "What is 7 × 8?"},
            {"from": "gpt", "value": "Answer: 56"},
        ]
        file.write(json.dumps({"conversations": turns}) + "\n")
    return path


def arguments(samples, folder, **changes):
    settings = {
        "model": checkpoints.NANO, "data": samples, "output_dir": folder, "max_steps": 3,
        "bf16": "false", "model_dtype": "float32",
        "per_device_train_batch_size": 4, "global_batch_size": 4,
        "logging_steps": 1, "dataloader_num_workers": 0, "report_to": "none",
        "save_strategy": "no", **changes,
    }  # fmt: skip
    flags = ["--config", str(RECIPES / "nano" / "alignment_sft.yaml")]
    for name, value in settings.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def run(samples, folder, **changes):
    return sft.train(*sft.parse(arguments(samples, folder, **changes)))


def losses(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def changed_names(folder):
    before, after = (load_file(path / "model.safetensors") for path in (checkpoints.NANO, folder))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name].float(), after[name].float())}


def test_mlp1_alone_trains(samples, tmp_path):
    """The rest is the same in every bit; the result chats; the summary and the plot are there."""
    summary = run(samples, tmp_path / "out", report_to=["tensorboard"])
    assert changed_names(tmp_path / "out" / "model") == {
        f"mlp1.{name}"
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    }
    assert summary["trained_parameters"] == 330_240 and summary["frozen_tensors_unchanged"] == 173
    assert summary["samples"]["read"] >= 12 and summary["steps"] == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (tmp_path / "out" / "loss.png").stat().st_size > 5000
    assert list(tmp_path.rglob("events.out.tfevents*"))
    model = AutoModel.from_pretrained(tmp_path / "out" / "model", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model", trust_remote_code=True)
    image = checkpoints.ROOT / "examples" / "image1.jpg"
    assert model.chat(tokenizer, image, "Calculate.", {"max_new_tokens": 8, "do_sample": False})


def test_lora_merged_and_unmerged_agree(samples, tmp_path):
    run(
        samples,
        tmp_path / "out",
        train=["lora", "mlp1"],
        save=["adapter", "model", "mlp1"],
        lora_rank=4,
        learning_rate=5e-3,
    )
    base = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    )
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    merged = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out" / "model", trust_remote_code=True, torch_dtype=torch.float32
    ).eval()
    ids = torch.arange(5, 900, 11)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(input_ids=ids).logits, merged(input_ids=ids).logits, atol=2e-4, rtol=2e-4
        )
    names = changed_names(tmp_path / "out" / "model")
    assert all(name.startswith(("language_model.model.layers", "mlp1.")) for name in names)
    assert sum("_proj.weight" in name for name in names) == 5 * 7 and "mlp1.1.weight" in names
    projector = load_file(tmp_path / "out" / "mlp1" / "model.safetensors")
    assert torch.equal(projector["mlp1.1.weight"], merged.state_dict()["mlp1.1.weight"])


def test_full_fine_tuning_and_accumulation(samples, tmp_path):
    """Two halves of a batch give the step of the whole."""
    for name, at_once in (("whole", 4), ("halves", 2)):
        run(
            samples, tmp_path / name, train=["mlp1", "language_model"], max_steps=2,
            learning_rate=1e-4, per_device_train_batch_size=at_once,
            train_sampling_strategy="sequential",
        )  # fmt: skip
    names = changed_names(tmp_path / "whole" / "model")
    assert not any(name.startswith("vision_model") for name in names)
    assert "language_model.lm_head.weight" in names and "mlp1.1.weight" in names
    whole, halves = losses(tmp_path / "whole"), losses(tmp_path / "halves")
    assert whole == pytest.approx(halves, rel=1e-4)


def test_gradient_checkpointing_and_mixed_precision(samples, tmp_path):
    """The same first loss; bfloat16 close to it."""
    first = []
    for name, changes in (
        ("plain", {}),
        ("checkpointed", {"gradient_checkpointing": "true"}),
        ("bf16", {"bf16": "true", "model_dtype": "bfloat16"}),
    ):  # fmt: skip
        run(samples, tmp_path / name, max_steps=2, train_sampling_strategy="sequential", **changes)
        first.append(losses(tmp_path / name))
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert first[0] == pytest.approx(first[2], rel=0.1)


def launch(flags, launcher=()):
    """Start a recipe in a new process or, with one of `cpu_processes`, in several."""
    module = "tests.cpu_processes" if launcher else "training.sft"
    command = [sys.executable, *launcher, "-m", module]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen(
        [*command, *flags],
        cwd=checkpoints.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=240):
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-3000:]
    return output


def test_two_processes_train_as_one(samples, tmp_path):
    """Gradients over gloo: the same losses on the same global batch.

    Text and images are on different ranks.
    """
    settings = {"max_steps": 4}
    one = launch(arguments(samples, tmp_path / "one", **settings))
    finish(one)
    two = launch(
        arguments(samples, tmp_path / "two", **{**settings, "per_device_train_batch_size": 2}),
        cpu_processes.TWO_PROCESSES,
    )
    finish(two)
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(first) == 4 and first == pytest.approx(second, rel=2e-4)
    ours, theirs = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")
    )
    torch.testing.assert_close(ours["mlp1.1.weight"], theirs["mlp1.1.weight"], atol=2e-4, rtol=1e-3)


# Two processes with replicas are in the default suite; two minutes of sharded ones are not.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_sharded_training_is_that_of_one_process(samples, tmp_path, kind):
    """The same losses and weights, also when resumed, on two CPUs: see tests/cpu_processes.py.

    Evaluations are in between, of 10 samples, some of which have more tiles than others.
    """
    config = cpu_processes.sharded_config(kind, tmp_path, "no")
    settings = {
        "max_steps": 4,
        "gradient_checkpointing": "true",
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_share": 0.25,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    run(samples, tmp_path / "one", save=["mlp1", "model"], **settings)
    evaluated = json.loads((tmp_path / "one" / "summary.json").read_text())["eval_loss"]
    for result in ("mlp1", "model"):  # the second goes on from the checkpoint of the first
        flags = arguments(
            samples,
            tmp_path / "sharded",
            **{**settings, "per_device_train_batch_size": 2, "save": result},
        )
        finish(launch(flags, cpu_processes.launcher(config)))
        assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
        summary = json.loads((tmp_path / "sharded" / "summary.json").read_text())
        # Batches are half as large there, and the mean is over batches
        assert summary["eval_loss"] == pytest.approx(evaluated, rel=0.1)
        assert summary["trained_parameters"] == 330_240
        assert summary["frozen_tensors_unchanged"] >= 171
        if result == "mlp1":  # killed while it wrote its results: they are, without a step more
            written = (tmp_path / "sharded" / "mlp1" / "model.safetensors").read_bytes()
            (tmp_path / "sharded" / "summary.json").unlink()
            finish(launch(flags, cpu_processes.launcher(config)))
            again = json.loads((tmp_path / "sharded" / "summary.json").read_text())
            for key in ("steps", "trained_parameters", "frozen_tensors_unchanged", "eval_loss"):
                assert again[key] == summary[key]
            assert not (tmp_path / "sharded" / "checkpoint-5").exists()
            assert (tmp_path / "sharded" / "mlp1" / "model.safetensors").read_bytes() == written
        shutil.rmtree(tmp_path / "sharded" / "checkpoint-4")
        checkpoint = tmp_path / "sharded" / "checkpoint-2"
        projector = load_file(tmp_path / "one" / "mlp1" / "model.safetensors")
        saved = load_file(checkpoint / "model.safetensors")
        assert {name: tensor.shape for name, tensor in saved.items()} == {
            name: tensor.shape for name, tensor in projector.items()
        }
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        assert size < BYTES_OF_CHECKPOINT
        ours, theirs = (
            load_file(tmp_path / name / result / "model.safetensors") for name in ("one", "sharded")
        )
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close(
            ours["mlp1.1.weight"], theirs["mlp1.1.weight"], atol=2e-4, rtol=1e-3
        )
    assert changed_names(tmp_path / "sharded" / "model") == changed_names(
        tmp_path / "one" / "model"
    )


@pytest.mark.slow  # four processes
def test_replicas_of_shards_are_one_process(samples, tmp_path):
    """Two replicas of two shards: the losses of one process, and of a run that went on."""
    config = cpu_processes.sharded_config("hsdp", tmp_path, "no")
    settings = {
        "max_steps": 3, "gradient_checkpointing": "true", "save_strategy": "steps",
        "save_steps": 2, "save": "mlp1",
    }  # fmt: skip
    run(samples, tmp_path / "one", **settings)
    flags = arguments(
        samples, tmp_path / "sharded", **{**settings, "per_device_train_batch_size": 1}
    )
    for _ in ("whole", "resumed"):
        finish(launch(flags, cpu_processes.launcher(config)))
        assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
        shutil.rmtree(tmp_path / "sharded" / "checkpoint-3")
    ours, theirs = (
        load_file(tmp_path / name / "mlp1" / "model.safetensors") for name in ("one", "sharded")
    )
    torch.testing.assert_close(ours["mlp1.1.weight"], theirs["mlp1.1.weight"], atol=2e-4, rtol=1e-3)


@pytest.mark.slow  # 160 s on a CPU without bf16 units, where a product in bf16 is 30 times slower
@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_sharded_in_half_precision_with_an_adapter(samples, tmp_path, kind):
    """As at 38B: what is frozen in bfloat16, what trains in float32, and LoRA saved by itself."""
    config = cpu_processes.sharded_config(kind, tmp_path, "bf16")
    settings = {
        "bf16": "true", "model_dtype": "bfloat16", "gradient_checkpointing": "true",
        "max_steps": 2, "train": ["lora"], "save": ["adapter"],
    }  # fmt: skip
    run(samples, tmp_path / "one", **settings)
    flags = arguments(
        samples, tmp_path / "sharded", **{**settings, "per_device_train_batch_size": 2}
    )
    finish(launch(flags, cpu_processes.launcher(config)))
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "one"), rel=0.02)
    # Every tensor of the files that is not trained, LoRA's names or not
    summary = json.loads((tmp_path / "sharded" / "summary.json").read_text())
    assert summary["frozen_tensors_unchanged"] >= 177
    ours, theirs = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("one", "sharded")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if "lora_A" in name:  # B is what one step has made of zero
            torch.testing.assert_close(tensor.float(), theirs[name].float(), atol=2e-3, rtol=1e-2)
        else:
            assert theirs[name].shape == tensor.shape and theirs[name].any()


def test_killed_and_resumed(samples, tmp_path):
    """A kill -9 in the second epoch, with half a checkpoint on disk.

    The losses that follow are those of an unbroken run, bit for bit: the same kernels run on the
    same shapes.
    """
    # An epoch has 11 steps
    settings = {"max_steps": 16, "save_strategy": "steps", "save_steps": 2}
    finish(launch(arguments(samples, tmp_path / "unbroken", **settings)))
    process = launch(arguments(samples, tmp_path / "broken", **settings))
    deadline = time.time() + 200
    while not (tmp_path / "broken" / "checkpoint-12" / "trainer_state.json").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "broken" / "summary.json").exists()
    (tmp_path / "broken" / "checkpoint-90").mkdir()
    (tmp_path / "broken" / "checkpoint-90" / "model.safetensors").write_bytes(b"half")
    finish(launch(arguments(samples, tmp_path / "broken", **settings)))
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    ours, theirs = (
        load_file(tmp_path / name / "model" / "model.safetensors")
        for name in ("unbroken", "broken")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not (tmp_path / "broken" / "checkpoint-90").exists()


def test_checkpoints_hold_what_trains(samples, tmp_path):
    run(samples, tmp_path / "out", max_steps=2, save_strategy="steps", save_steps=2)
    kept = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    assert kept and all(name.startswith("mlp1.") for name in kept)
    # another recipe cannot go on from it
    with pytest.raises(ValueError, match=r"checkpoints of another run.*train \['mlp1'\], now"):
        run(samples, tmp_path / "out", max_steps=2, train=["mlp1", "language_model"])
    with pytest.raises(ValueError, match=r"learning_rate 0.0001, now 0.5"):
        run(samples, tmp_path / "out", max_steps=2, learning_rate=0.5)
    other = tmp_path / "other.jsonl"
    other.write_text(samples.read_text().replace("Answer: 56", "Answer: 65"))
    with pytest.raises(ValueError, match=r"data_fingerprint .*, now .* delete that one"):
        run(other, tmp_path / "out", max_steps=2, image_root=samples.parent)
    assert run(samples, tmp_path / "out", max_steps=2, save_strategy="no")["steps"] == 2


def test_results_that_are_missing_are_written_without_another_step(samples, tmp_path):
    """As after a kill while they were written, or with another `save`.

    Trainer's `train` would take one step beyond the last.
    """
    settings = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    first = run(samples, tmp_path / "out", **settings)
    weights = load_file(tmp_path / "out" / "model" / "model.safetensors")
    (tmp_path / "out" / "summary.json").unlink()
    again = run(samples, tmp_path / "out", **settings, save=["model", "mlp1"])
    assert again["steps"] == first["steps"] == 2 and losses(tmp_path / "out").keys() == {1, 2}
    now = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], now[name]) for name in weights)
    assert (tmp_path / "out" / "mlp1" / "model.safetensors").exists()

    # At a constant rate it may go on to more steps, as if it had been that long from the start
    run(samples, tmp_path / "out", **{**settings, "max_steps": 3})
    run(samples, tmp_path / "whole", **{**settings, "max_steps": 3})
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_a_recipe_may_have_one_text_for_a_list(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: nano\ndata: my.jsonl\ntrain: mlp1\nsave: mlp1\nbf16: false\n")
    parsed, _ = sft.parse(["--config", str(recipe), "--output_dir", str(tmp_path)])
    assert (parsed.data, parsed.train, parsed.save) == (["my.jsonl"], ["mlp1"], ["mlp1"])


def test_the_example_needs_answers_that_it_can_compare(tmp_path):
    from examples.finetune.__main__ import HERE, read_test

    assert len(read_test(HERE / "test.jsonl")) == 60
    row = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "Two."}],
    }
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"mine.jsonl, line 1: no .boxed.* in the answer 'Two.'"):
        read_test(tmp_path / "mine.jsonl")


@pytest.mark.parametrize("train, is_random", [(["mlp1"], False), (["mlp1", "vision_model"], True)])
def test_a_frozen_vision_tower_drops_nothing(nano_model, train, is_random):
    """Whatever its config says; the projector learns from the features of inference."""
    config = copy.deepcopy(nano_model.config)
    config.vision_config.drop_path_rate = config.vision_config.dropout = (
        config.vision_config.attention_dropout
    ) = 0.3
    model = type(nano_model)(config)
    model.load_state_dict(nano_model.state_dict())
    freeze(model, train)
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = [model.train(mode).extract_feature(pixels) for mode in (False, True)]
    assert torch.equal(*features) != is_random and model.config.vision_config.drop_path_rate == 0.3


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_spawned_workers_get_data_and_collator(samples, tmp_path, streaming):
    """As pickles; Windows and macOS start workers so."""
    flags = arguments(samples, tmp_path / "out", streaming=streaming)
    trainer = sft.make_trainer(*sft.parse(flags))
    data, collate = pickle.loads(pickle.dumps((trainer.train_dataset, trainer.data_collator)))
    ours = trainer.data_collator([next(iter(trainer.train_dataset))])
    theirs = collate([next(iter(data))])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_checkpoints_are_what_trainer_has_written(tmp_path):
    """A directory of the user's beside them is no checkpoint, and stays."""
    for name, state in (("checkpoint-9", 9), ("checkpoint-10", 10), ("checkpoint-11", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": state}))
        if state:
            mark_complete(tmp_path / name)
    (tmp_path / "checkpoint-10-merged").mkdir()
    shutil.copytree(tmp_path / "checkpoint-10", tmp_path / "checkpoint-12-backup")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    left = {"checkpoint-9", "checkpoint-10", "checkpoint-10-merged", "checkpoint-12-backup"}
    assert {path.name for path in tmp_path.iterdir()} == left, (
        "only the one that was cut off is gone"
    )


def test_a_second_result_has_nothing_of_the_first(samples, tmp_path):
    run(samples, tmp_path / "out", max_steps=1)
    (tmp_path / "out" / "model" / "tokenizer_config.json").write_text("of an earlier run")
    run(samples, tmp_path / "out", max_steps=1)
    AutoTokenizer.from_pretrained(tmp_path / "out" / "model", trust_remote_code=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("model*")) == ["model"]


def test_streaming(samples, tmp_path):
    summary = run(
        samples,
        tmp_path / "out",
        streaming="true",
        shuffle_buffer=8,
        train_sampling_strategy="random",
    )
    assert summary["steps"] == 3 and summary["samples"]["read"] >= 12
    with pytest.raises(ValueError, match="max_steps is needed"):
        run(samples, tmp_path / "other", streaming="true", max_steps=-1)


def test_a_source_of_datasets(samples, tmp_path):
    import datasets
    from PIL import Image

    rows = [json.loads(line) for line in samples.read_text().splitlines()[:12]]
    names = [row["image"] if isinstance(row["image"], list) else [row["image"]] for row in rows]
    table = {
        "images": [[Image.open(samples.parent / name) for name in of_row] for of_row in names],
        "conversations": [row["conversations"] for row in rows],
    }
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "conversations": datasets.List(
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ),
        }
    )
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "saved")
    source = f"datasets:{tmp_path / 'saved'}"
    summary = run(
        source, tmp_path / "out", max_steps=-1
    )  # an epoch, grouped by length, as the recipe has it
    assert summary["steps"] == 3
    assert summary["samples"] == {"read": 12, "broken": 0, "too_long": 0, "fewer_tiles": 0}
    summary = run(source, tmp_path / "streamed", streaming="true", dataloader_num_workers=4)
    assert summary["steps"] == 3
    with pytest.raises(ValueError, match="saved as one data set without splits; leave out :test"):
        run(f"{source}:test", tmp_path / "split")


def test_order_depends_on_the_epoch_alone():
    sampler = EpochSeededLengthSampler(4, list(range(40)), seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    resumed = EpochSeededLengthSampler(4, list(range(40)), seed=3)
    resumed.set_epoch(1)
    assert list(resumed) == second != first and sorted(first) == sorted(second) == list(range(40))


def test_several_gpus_in_one_process_are_refused(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe.TrainingConfig, "n_gpu", 2)
    with pytest.raises(
        ValueError, match=r"2 GPUs are visible.*accelerate launch.*CUDA_VISIBLE_DEVICES=0"
    ):
        run(samples, tmp_path / "out")


BAD = {
    "an unknown key": ({"lerning_rate": 1}, ValueError, "lerning_rate"),
    "an unknown part": (
        {"train": ["mlp2"]},
        ValueError,
        r"train: \['mlp2'\]; expected some of mlp1",
    ),
    "both ways to train": ({"train": ["lora", "language_model"]}, ValueError, "exclude each other"),
    "an adapter without LoRA": ({"save": ["adapter"]}, ValueError, "adapter needs lora"),
    "an adapter beside its tower": (
        {"train": ["vision_lora", "vision_model"]},
        ValueError,
        "exclude each other",
    ),
    "a batch that does not divide": (
        {"global_batch_size": 6},
        ValueError,
        "global_batch_size=6 is no multiple of 4",
    ),
    "a length beyond the context": (
        {"max_length": 10_000},
        ValueError,
        "max_length=10000: expected .* 4096 tokens",
    ),
    "no data": ({"data": "nothing.jsonl"}, FileNotFoundError, "nothing.jsonl does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_recipes_are_one_clear_error(samples, tmp_path, name):
    changes, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        run(samples, tmp_path / "out", **changes)


def test_frozen_tensors_are_really_compared(nano_model):
    before = checksums(nano_model.requires_grad_(False))
    assert assert_frozen(nano_model, before) == len(before)
    with torch.no_grad():
        weight = nano_model.vision_model.encoder.layers[0].mlp.fc1.weight
        weight[3, 5] += 1e-6
    try:
        with pytest.raises(
            RuntimeError,
            match=r"1 frozen tensors have changed, such as vision_model.encoder.layers.0.mlp.fc1",
        ):
            assert_frozen(nano_model, before)
    finally:
        with torch.no_grad():
            weight[3, 5] -= 1e-6


def test_recipes_are_those_of_the_report():
    """Section 2.1's table; and nano says the same things in other sizes."""
    rates = {"mlp_init_1": 2e-4, "mlp_init_2": 4e-5, "mlp_init_3": 4e-5, "alignment_sft": 4e-5}
    sizes = {
        "model", "data", "output_dir", "save", "learning_rate", "global_batch_size",
        "per_device_train_batch_size", "max_length", "max_tiles", "max_broken_share",
        "gradient_checkpointing", "dataloader_num_workers", "save_steps", "logging_steps",
    }  # fmt: skip
    for stage in STAGES:
        large, nano = (
            yaml.safe_load((RECIPES / size / f"{stage}.yaml").read_text())
            for size in ("38b", "nano")
        )
        assert (
            large["learning_rate"] == rates[stage]
            and large["weight_decay"] == 0.05
            and large["warmup_steps"] == 0.03
        )
        assert (
            large["global_batch_size"] == 512
            and large["max_length"] == 16384
            and large["num_train_epochs"] == 1
        )
        assert large["train"] == nano["train"] == ["mlp1"]
        differing = {
            name for name in large.keys() | nano.keys() if large.get(name) != nano.get(name)
        }
        assert differing <= sizes | {"use_cpu", "disable_tqdm"}, differing


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(RECIPES.glob("*b/*.yaml")) + sorted(RECIPES.glob("nano/*.yaml"))
        # tests/test_grpo.py, test_iterate.py, test_distill.py and test_lengths.py read the others
        if not path.stem.startswith(("grpo", "iterate", "distill", "lengths"))
    ],
    ids=lambda p: p.parent.name + p.stem,
)
def test_recipes_parse(path):
    recipe, config = sft.parse(["--config", str(path), "--use_cpu", "true"])
    assert config.learning_rate > 0
    assert recipe.train == (["lora", "mlp1"] if path.stem == "lora_4bit" else ["mlp1"])


def test_selection_prefers_right_answers(samples, tmp_path):
    """The judge's likelihood ranks a true answer above the same line with a false one."""
    rows = []
    for number, (question, right, wrong) in enumerate(
        [
            ("What is 7 × 8?", "56", "57"),
            ("What is 12 + 34?", "46", "64"),
            ("What is 20 - 55?", "-35", "35"),
        ]
    ):
        for answer in (right, wrong):
            turns = [
                {"from": "human", "value": question},
                {"from": "gpt", "value": f"I read it.\n</think>\n\nAnswer: \\boxed{{{answer}}}"},
            ]
            rows.append({"id": number, "right": answer == right, "conversations": turns})
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = select.JudgingSettings(workers=0, dtype="float32")
    kept, scored = select.select(pool, tmp_path / "selected.jsonl", checkpoints.NANO, 0.5, settings)
    assert (kept, scored) == (3, 6)
    lines = [json.loads(line) for line in (tmp_path / "selected.jsonl").read_text().splitlines()]
    assert all("score" in line for line in lines)
    with pytest.raises(ValueError, match="keep=0"):
        select.select(pool, tmp_path / "x.jsonl", checkpoints.NANO, 0)


def test_scores_are_mean_log_likelihoods(nano_tokenizer):
    """By hand, from the logits of the unpadded row."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    ).eval()
    ids = torch.tensor([[5, 9, 300, 301, 17], [8, 12, 99, 999, 999]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 300, 301, 17], [-100, -100, 99, -100, -100]])
    scores = select.score_answers(
        model, {"input_ids": ids, "attention_mask": mask, "labels": labels}
    )
    with torch.no_grad():
        of_row = model(input_ids=ids[1:, :3]).logits[0, 1].log_softmax(-1)[99]
    torch.testing.assert_close(scores[1], of_row, atol=1e-4, rtol=1e-4)


def test_the_command_line_reports_errors_in_one_line(samples, tmp_path):
    flags = arguments(tmp_path / "nothing.jsonl", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "training.sft", *flags],
        cwd=checkpoints.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1]
        == f"error: data file {tmp_path / 'nothing.jsonl'} does not exist."
    )
    assert not Path(tmp_path / "out" / "model").exists() and shutil.which("python3")
