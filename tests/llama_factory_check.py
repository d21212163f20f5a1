"""LLaMA-Factory on nano through integrations/llama_factory_plugin.py: run by `make clients`.

Its own plugin for InternVL makes the prompts and its collator the batches. Its trainer has the
losses of `training.sft` on the same samples, and changes only what is not frozen.
"""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests import checkpoints, trainers

PREFIXES = {
    "mlp1": "mlp1.",
    "language_model": "language_model.",
    "vision_model": "vision_model.",
}


def train(folder, part, questions):
    """Two steps by LLaMA-Factory; its losses and the names of the tensors that it changed."""
    trainers.write_lines(folder / "theirs.jsonl", trainers.samples(questions=questions))
    columns = {"messages": "messages", "images": "images"}
    tags = {
        "role_tag": "role", "content_tag": "content", "user_tag": "user",
        "assistant_tag": "assistant",
    }  # fmt: skip
    if not any(names for names, _, _ in questions):
        del columns["images"]  # of no type, where all are empty
        rows = [{"messages": row["messages"]} for row in trainers.samples(questions=questions)]
        trainers.write_lines(folder / "theirs.jsonl", rows)
    info = {
        "theirs": {
            "file_name": "theirs.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags
        }
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    settings = {
        **trainers.SHARED,
        "model_name_or_path": str(checkpoints.NANO), "trust_remote_code": True,
        "template": "skywork_r1v", "stage": "sft", "do_train": True, "finetuning_type": "full",
        "dataset": "theirs", "dataset_dir": str(folder), "output_dir": str(folder / "theirs"),
        "cutoff_len": 4096, "image_max_pixels": 10**8, "preprocessing_num_workers": 1,
        "freeze_vision_tower": part != "vision_model",
        "freeze_multi_modal_projector": part != "mlp1",
        "freeze_language_model": part != "language_model",
        "disable_gradient_checkpointing": True, "fp16": False, "pure_bf16": False,
        "infer_dtype": "float32", "save_strategy": "no",
    }  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    trainers.run([sys.executable, "integrations/llama_factory_plugin.py", folder / "train.yaml"])
    after = load_file(folder / "theirs" / "model.safetensors")
    before = load_file(checkpoints.NANO / "model.safetensors")
    changed = {
        name for name in before if not torch.equal(before[name].float(), after[name].float())
    }
    return trainers.losses(folder / "theirs" / "trainer_log.jsonl"), changed


@pytest.mark.parametrize("part", ["mlp1", "language_model", "vision_model"])
def test_training_has_the_same_losses(tmp_path, part):
    found, changed = train(tmp_path, part, trainers.QUESTIONS)
    expected = trainers.our_losses(tmp_path, part)
    print(f"{part}: losses {found} by LLaMA-Factory, {expected} by training.sft")
    # It keeps what is frozen in bfloat16.
    assert found == pytest.approx(expected, rel=1e-2)
    assert changed and all(name.startswith(PREFIXES[part]) for name in changed)


def test_a_batch_of_text_alone(tmp_path):
    """Its collator adds a masked picture there, so that every process runs the vision tower."""
    found, changed = train(tmp_path, "language_model", trainers.TEXT_QUESTIONS)
    expected = trainers.our_losses(tmp_path, "language_model", trainers.TEXT_QUESTIONS)
    print(f"text alone: losses {found} by LLaMA-Factory, {expected} by training.sft")
    assert found == pytest.approx(expected, rel=1e-2)
    assert changed and all(name.startswith("language_model.") for name in changed)
