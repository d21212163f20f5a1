"""Checkpoints for the tests: repositories of this code with tiny weights."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.model_card import model_card_code
from remote_code import checkpoint_files, configuration_skywork_chat, modeling_skywork_chat

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).resolve().parent / "data"
GOLDEN = DATA / "golden"
GOLDEN_IMAGE_TOKEN = 7
NANO = ROOT / "nano"

CODE = checkpoint_files.CODE_FILES
TEXT_FILES = (
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def copy_code(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(
        ROOT / "preprocessor",
        folder / "preprocessor",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    return folder


def golden_repository(folder):
    """The golden checkpoint as a repository of this code, with its auto_map."""
    copy_code(folder)
    config = json.loads((GOLDEN / "config.json").read_text())
    config["auto_map"] = json.loads((ROOT / "config.json").read_text())["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "model.safetensors", folder)
    return folder


def golden(name):
    return load_file(GOLDEN / f"{name}.safetensors")


def tiny_config(**changes):
    """The root's config with the 38B shapes made tiny.

    The tokenizer's vocabulary and the tiles, of 448 pixels or 32 × 32 patches, are the real ones.
    """
    config = json.loads((ROOT / "config.json").read_text())
    config["vision_config"].update(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.02,
    )
    config["llm_config"].update(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_window_layers=2,
        max_position_embeddings=8192,
        initializer_range=0.2,
    )
    for part in (config, config["vision_config"], config["llm_config"]):
        part["torch_dtype"] = "float32"
    config.update(changes)
    return config


def tiny_repository(folder, seed=0):
    """Random weights for the root's own tokenizer and tile size.

    They are the same on every transformers version: drawn here, by one seed, in the order of names.
    """
    from safetensors.torch import save_file

    copy_code(folder)
    for name in TEXT_FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    with torch.device("meta"):
        model = modeling_skywork_chat.SkyworkChatModel(
            configuration_skywork_chat.SkyworkChatConfig(**tiny_config())
        )
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in sorted(model.state_dict().items()):
        is_norm = (tensor.dim() == 1 and name.endswith("weight")) or name.split(".")[-1] in (
            "ls1",
            "ls2",
        )
        value = torch.randn(tensor.shape, generator=generator) * 0.2
        weights[name] = 1 + 0.1 * value if is_norm else value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def runnable_model_card(path, max_new_tokens=12):
    """The block with another path, CPU for GPUs, and short answers."""
    code = model_card_code()
    for old, new in (
        ("path = 'Skywork/Skywork-R1V-38B'", f"path = {str(path)!r}"),
        (
            "device_map = split_model(path)",
            "device_map = {name: 'cpu' for name in split_model(path)}",
        ),
        (".cuda()", ""),
        ("max_new_tokens=64000", f"max_new_tokens={max_new_tokens}"),
    ):
        assert old in code, f"the model card no longer has {old!r}"
        code = code.replace(old, new)
    return code
