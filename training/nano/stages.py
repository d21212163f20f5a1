"""What the nano pipelines share: stages that are kept when they are done, in the folder of a run.

`training.nano.pipeline` makes the checkpoint with them, and `training.nano.lengths` shows what
adaptive-length distillation does to it.
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
from training.nano.loop import DEVICE, FAST_DTYPE, num_workers

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "nano"
MAX_TILES = 6
SHARE_OF_CORES = 0.4  # that read a training set, beside a GPU


def train_in_a_process(arguments: list[str]) -> None:
    """Run `python -m training.sft` with these arguments; its memory is free again afterwards."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "training.sft", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


class Stages:
    """Stages by name; each is run unless its result is there.

    Args:
        folder: of all results.
        sizes: steps, or samples, of each stage.
        seed: of everything random.
        train: runs `training.sft` with a list of arguments; by default in a process of its own, as
            a user would.
        made_from: what else tells this run from others, as JSON has it.

    Attributes:
        times: seconds of each stage that is done.

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
        self.folder = Path(folder)
        self.sizes = sizes
        self.seed = seed
        self.train = train
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim_folder({"seed": seed, "sizes": sizes, **(made_from or {})})

    @property
    def times(self) -> dict[str, int]:
        """Seconds of each stage that is done, by its name."""
        files = sorted((self.folder / "times").glob("*.json"))
        return {file.stem: json.loads(file.read_text()) for file in files}

    def _claim_folder(self, run: Mapping[str, Any]) -> None:
        """Write whose folder it is, or check that it is this run's."""
        path = self.folder / "pipeline.json"
        before = durable.read_json(path)
        if before is None:
            # Under a name of its own first: stages beside this one may claim the folder just now.
            own_path = self.folder / f"pipeline.{os.getpid()}.json"
            durable.write_json(own_path, run)
            own_path.replace(path)
        elif before != run:
            raise ValueError(
                f"{self.folder} is of a run with {before}, not {run}: name another directory."
            )

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

    def assemble(
        self, name: str, vision: Path, language_model: Path, mlp1: Path | None = None
    ) -> None:
        """A repository of parts, each named by its folder; without `mlp1` a new projector."""
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
            "--config": RECIPES / f"{recipe}.yaml",
            "--model": model,
            "--data": data,
            "--output_dir": folder,
            "--seed": self.seed,
        }
        if DEVICE.type != "cpu":  # where the recipes train
            workers = num_workers(SHARE_OF_CORES)
            options |= {"--use_cpu": "false", "--dataloader_num_workers": workers}
        if FAST_DTYPE is torch.float32:  # the recipes are in bf16
            options |= {"--bf16": "false", "--model_dtype": "float32"}
        for key, value in settings.items():
            options[f"--{key}"] = value
        arguments = []
        for option, value in options.items():
            arguments += [option, str(value)]
        self.run(name, folder / "summary.json", functools.partial(self.train, arguments))
