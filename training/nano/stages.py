"""What the nano pipelines share: stages in a folder, each of which is done once.

A stage is done where its result is there. Trainings run in processes of their own, as a user would
start them, and their memory is free again afterwards. `training.nano.pipeline` makes the checkpoint
in such stages; `training.nano.lengths` and `training.nano.hybrid` show what distillation,
iterations and GRPO do to it.
"""

from __future__ import annotations

import functools
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
from training import assemble
from training.nano import projector
from training.nano.loop import DEVICE, FAST_DTYPE, num_workers

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "nano"
MAX_TILES = 6
SHARE_OF_CORES = 0.4  # that read a training set, beside a GPU
# Questions that are asked together. All wait for the longest answer, so few are better on a CPU.
BATCH = 64 if DEVICE.type == "cpu" else 250


def run_module(module: str, arguments: list[str]) -> None:
    """Run `python -m MODULE` with these arguments in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; it has printed why.
    """
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def train_in_a_process(arguments: list[str]) -> None:
    """Run `python -m training.sft` with these arguments."""
    run_module("training.sft", arguments)


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


class StageFolder:
    """A folder whose stages are done once.

    Args:
        folder: of all results.
        record: what all of them depend on, in JSON's types.

    Attributes:
        times: seconds of each stage that is done.

    Raises:
        ValueError: the folder is of a run with another record.
    """

    def __init__(self, folder: str | Path, record: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "pipeline.json"
        before = durable.read_json(path)
        if before is None:
            # Under a name of its own first: stages beside this one may claim the folder just now.
            own_path = self.folder / f"pipeline.{os.getpid()}.json"
            durable.write_json(own_path, record)
            own_path.replace(path)
        elif before != record:
            raise ValueError(
                f"{self.folder} is of a run with {before}, not {record}: name another directory."
            )

    @property
    def times(self) -> dict[str, int]:
        """Seconds of each stage that is done, by its name."""
        files = sorted((self.folder / "times").glob("*.json"))
        return {file.stem: json.loads(file.read_text()) for file in files}

    def times_in_words(self) -> str:
        """How long all stages took, and each of them."""
        seconds = ", ".join(f"{name} {value} s" for name, value in self.times.items())
        return f"{sum(self.times.values()) / 60:.0f} minutes: {seconds}"

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


class Stages(StageFolder):
    """Stages that assemble models and train them by recipes.

    Args:
        folder: of all results.
        sizes: steps, or samples, of each stage.
        seed: of everything random.
        train: runs `training.sft` with a list of arguments; by default in a process of its own, as
            a user would.
        made_from: what else tells this run from others, as JSON has it.

    Raises:
        ValueError: the folder is of a run with another seed, other sizes or other sources.
    """

    def __init__(
        self,
        folder: str | Path,
        sizes: dict[str, int],
        seed: int = 0,
        train: Callable[[list[str]], Any] = train_in_a_process,
        made_from: Mapping[str, Any] | None = None,
    ) -> None:
        self.sizes = sizes
        self.seed = seed
        self.train = train
        super().__init__(folder, {"seed": seed, "sizes": sizes, **(made_from or {})})

    def assemble(
        self, name: str, vision: Path, language_model: Path, mlp1: Path | None = None
    ) -> None:
        """A repository of parts, each named by its folder; without `mlp1` a new projector.

        The tokens around an image get embeddings that the language model knows.
        """
        action = functools.partial(
            assemble.assemble,
            self.folder / name,
            vision,
            language_model,
            mlp1,
            seed=self.seed,
            settings={"max_dynamic_patch": MAX_TILES},
        )
        self.run(name, self.folder / name, action)
        projector.mark_images(self.folder / name)

    def train_by_recipe(
        self, name: str, recipe: str, model: Path, data: Path, **settings: Any
    ) -> None:
        """Train a model by a recipe; the results are in a folder with the name of the stage.

        Args:
            name: of the stage.
            recipe: its name in RECIPES.
            model: a repository.
            data: a JSONL file.
            settings: of the recipe, in place of those that it has.
        """
        folder = self.folder / name
        options = {
            "config": RECIPES / f"{recipe}.yaml",
            "model": model,
            "data": data,
            "output_dir": folder,
            "seed": self.seed,
            **settings_of_device(),
            **settings,
        }
        action = functools.partial(self.train, as_arguments(options))
        self.run(name, folder / "summary.json", action)
