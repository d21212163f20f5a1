"""Stages in a folder, each done once: what the nano pipelines share.

A stage is done where its result is there. Trainings run in processes of their own, as a user would
start them, and their memory is free again afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import durable
from training.nano.loop import DEVICE, FAST_DTYPE, num_workers

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "nano"
SHARE_OF_CORES = 0.4  # that read the projector's training sets, beside a GPU


def run_module(module: str, arguments: list[str]) -> None:
    """Run `python -m MODULE` with these arguments in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; it has printed why.
    """
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def settings_of_device() -> dict[str, Any]:
    """What a nano recipe says otherwise on a GPU, or without fast bf16."""
    settings: dict[str, Any] = {}
    if DEVICE.type != "cpu":  # where the recipes train
        settings |= {"use_cpu": False, "dataloader_num_workers": num_workers(SHARE_OF_CORES)}
    if FAST_DTYPE is torch.float32:  # the recipes are in bf16
        settings |= {"bf16": False, "model_dtype": "float32"}
    return settings


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line; a list becomes several words."""
    arguments = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
        arguments += [f"--{name}", *words]
    return arguments


class Stages:
    """A folder whose stages are done once.

    Args:
        folder: of all results.
        record: what all of them depend on, in JSON's types.
        file: the name of the file that holds it.

    Attributes:
        times: seconds of each stage that is done.

    Raises:
        ValueError: the folder is of a run with another record.
    """

    def __init__(self, folder: Path, record: dict[str, Any], file: str) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        path = folder / file
        if path.exists():
            before = json.loads(path.read_text())
            if before != record:
                raise ValueError(
                    f"{folder} is of a run with {before}, not {record}: name another directory."
                )
        durable.write_json(path, record)

    @property
    def times(self) -> dict[str, int]:
        """Seconds of each stage that is done, by its name."""
        files = sorted((self.folder / "times").glob("*.json"))
        return {file.stem: json.loads(file.read_text()) for file in files}

    def run(self, name: str, result: Path, action: Callable[[], Any]) -> None:
        """Do a stage, unless its result is there, and add its seconds to those of its name.

        Each has a file of its own, because stages may run beside each other.

        Args:
            result: a file or directory that appears when it is whole.
            action: makes the result.
        """
        if result.exists():
            return
        print(f"== {name}", flush=True)
        start = time.time()
        action()
        seconds = round(time.time() - start) + self.times.get(name, 0)
        path = self.folder / "times" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        durable.write_json(path, seconds)
