"""The report's hybrid optimization at nano scale: iterations of SFT, then GRPO, with controls.

    python -m training.nano.hybrid runs/nano                     # every row, with seed 0
    python -m training.nano.hybrid runs/nano --only aligned iteration_4 grpo --seeds 0 1 2
    python -m training.nano.hybrid runs/nano --count 500         # scored on more samples

It starts from the model right after the swap, which `training.nano.pipeline` left in the folder.
Only the projector trains, but in the row with LoRA. Everything is in `runs/nano/hybrid`; what is
there already is kept, and an interrupted training goes on from its last checkpoint. Rows that were
scored on another number of samples are scored again. Commands for other rows or seeds may run
beside each other once there are data and the rows that theirs start from.

    data                     the pool D, some of whose answers are wrong
    aligned                  stage 1: SFT on all of it
    seed_N/iterations        four iterations of SFT (training.iterate)
    seed_N/grpo              GRPO after them, on the samples that are rated 5
    seed_N/everything_T      control: as many steps on the whole pool, whatever its ratings
    seed_N/errors            control: as many steps on the model's errors alone, without ratings
    seed_N/grpo_buffer       GRPO with R1V2's selective sample buffer
    seed_N/grpo_kl           GRPO with a KL term
    seed_N/grpo_lora         GRPO that trains LoRA on the language model as well
    seed_N/grpo_longer       GRPO in three times the steps, at a third of the rate
    scores/                  a file for each row and seed
    results.json             all of them; table.md and hybrid.png: the same to look at
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import durable
from tasks import samples
from training.iterate import RATED_HIGH
from training.nano import data, hybrid_table
from training.nano.loop import FAST_DTYPE_NAME
from training.nano.stages import (
    BATCH,
    RECIPES,
    StageFolder,
    as_arguments,
    run_module,
    settings_of_device,
)
from training.nano.targets import as_list

ITERATIONS = 4
# Samples of the pool; steps of GRPO, completions of each, and groups that its buffer keeps.
FULL = {"pool": 1000, "grpo": 40, "completions": 64, "buffer": 8}
# A few steps of each, for tests; the pool is so large that some of it is answered wrongly.
SMOKE = {"pool": 32, "grpo": 1, "completions": 4, "buffer": 2}
# Completions to a question in such a run.
SMALL_GRPO = {"num_generations": 2, "save_steps": 1}
COUNT = 200  # samples of each family that a row is scored on
TEXT_COUNT = 100  # of those that are put into words
ANSWERING = {"engine": "transformers", "batch-size": BATCH, "max-new-tokens": 160}
BETA = 0.04  # of the KL term, where there is one
LONGER = 3  # times the steps, in the row with more of them
SEED_OF_PART = 1000  # between the seeds of a control's parts, so that each has an order of its own


class Hybrid(StageFolder):
    """The models of the table; each is trained unless it is there.

    Args:
        start: the folder of `training.nano.pipeline`.
        sizes: FULL or SMOKE.
        run_module: runs a command of this package with a list of arguments; by default in a process
            of its own, as a user would.

    Raises:
        FileNotFoundError: there is no model to start from.
        ValueError: the folder is of a run with other sizes.
    """

    def __init__(
        self,
        start: Path,
        sizes: dict[str, int],
        run_module: Callable[[str, list[str]], Any] = run_module,
    ) -> None:
        self.start = start
        self.sizes = sizes
        self.run_module = run_module
        if not (self.swapped(0) / "config.json").is_file():
            raise FileNotFoundError(
                f"{self.swapped(0)} is no model: run `python -m training.nano.pipeline {start}` "
                "first."
            )
        super().__init__(start / "hybrid", {"sizes": sizes})

    # -- the models of the rows --------------------------------------------------------------------

    def swapped(self, seed: int) -> Path:
        """The model right after the swap; the same for all seeds."""
        return self.start / "swapped"

    def aligned(self, seed: int) -> Path:
        """The model after stage 1, M_0; the same for all seeds."""
        folder = self.folder / "aligned"
        self._run_sft("aligned", folder, self.swapped(seed), {})
        return folder / "model"

    def iteration(self, seed: int, number: int = ITERATIONS) -> Path:
        """M_t after an iteration of SFT.

        Args:
            number: t, from 1.
        """
        return self._iteration(seed, number) / "sft" / "model"

    def grpo(self, seed: int) -> Path:
        """The model after the last iteration and GRPO."""
        return self._train_grpo("grpo", seed, {})

    def grpo_buffer(self, seed: int) -> Path:
        """The same with the selective sample buffer."""
        return self._train_grpo("grpo_buffer", seed, {"sample_buffer": self.sizes["buffer"]})

    def grpo_kl(self, seed: int) -> Path:
        """The same with the KL term of the recipes for 38B."""
        return self._train_grpo("grpo_kl", seed, {"beta": BETA})

    def grpo_lora(self, seed: int) -> Path:
        """The same with LoRA on the language model beside the projector."""
        return self._train_grpo("grpo_lora", seed, {"train": ["mlp1", "lora"]})

    def grpo_longer(self, seed: int) -> Path:
        """The same in more steps, at a lower rate."""
        changes = {
            "max_steps": LONGER * self.sizes["grpo"],
            "learning_rate": _recipe("grpo")["learning_rate"] / LONGER,
        }
        return self._train_grpo("grpo_longer", seed, changes)

    def final(self, seed: int) -> Path:
        """What the pipeline ends with, on five times as many samples, none of them wrong."""
        return self.start / "final"

    def errors(self, seed: int) -> Path:
        """Iterations without ratings: on the errors alone, in as many steps."""
        changes = {"thresholds": [None] * ITERATIONS, "steps": self._steps(seed)}
        return self._iterate("errors", seed, changes) / f"iteration_{ITERATIONS}" / "sft" / "model"

    def everything(self, seed: int) -> Path:
        """SFT on the whole pool, with the steps and learning rates of the iterations."""
        model = self.aligned(seed)
        rates = _recipe("iterate")["learning_rates"]
        for number, steps in enumerate(self._steps(seed), start=1):
            folder = self._folder(seed) / f"everything_{number}"
            changes = {
                "learning_rate": rates[number - 1],
                "max_steps": steps,
                "seed": seed + SEED_OF_PART * number,
            }
            self._run_sft(f"everything {number} of seed {seed}", folder, model, changes)
            model = folder / "model"
        return model

    # -- what they do ------------------------------------------------------------------------------

    def _folder(self, seed: int) -> Path:
        return self.folder / f"seed_{seed}"

    def _pool(self) -> Path:
        """The pool D, which is the same for all seeds."""
        path = self.folder / "data" / "hybrid.jsonl"
        action = functools.partial(data.write, "hybrid", path.parent, self.sizes["pool"])
        self.run("data", path, action)
        return path

    def _run_sft(self, name: str, folder: Path, model: Path, changes: Mapping[str, Any]) -> None:
        """Train a model on the whole pool.

        Args:
            name: of the stage.
            folder: of the training.
            changes: of the recipe, which by default is an epoch at the first iteration's rate.
        """
        settings = {
            "config": RECIPES / "iteration.yaml",
            "model": model,
            "data": self._pool(),
            "output_dir": folder,
            "learning_rate": _recipe("iterate")["learning_rates"][0],
            **settings_of_device(),
            **changes,
        }
        self._run_module(name, folder, "training.sft", settings)

    def _iterate(self, name: str, seed: int, changes: Mapping[str, Any]) -> Path:
        """Run training.iterate; returns its folder.

        Args:
            changes: of its recipe.
        """
        folder = self._folder(seed) / name
        sft = self._folder(seed) / "iteration.yaml"
        recipe = self._folder(seed) / f"{name}.yaml"
        content = {
            **_recipe("iterate"),
            "model": str(self.aligned(seed)),
            "data": [str(self._pool())],
            "output_dir": str(folder),
            "sft": str(sft),
            "answers": as_arguments({**ANSWERING, "dtype": FAST_DTYPE_NAME}),
            **changes,
        }
        self._folder(seed).mkdir(exist_ok=True)
        _write_yaml(sft, {**_recipe("iteration"), "seed": seed, **settings_of_device()})
        _write_yaml(recipe, content)
        last = folder / f"iteration_{ITERATIONS}" / "sft" / "summary.json"
        action = functools.partial(self.run_module, "training.iterate", ["--config", str(recipe)])
        self.run(f"{name} of seed {seed}", last, action)
        return folder

    def _iteration(self, seed: int, number: int) -> Path:
        """The folder of an iteration, t from 1."""
        return self._iterate("iterations", seed, {}) / f"iteration_{number}"

    def _steps(self, seed: int) -> list[int]:
        """The optimizer steps that each iteration took."""
        steps = []
        for number in range(1, ITERATIONS + 1):
            summary = durable.read_json(self._iteration(seed, number) / "sft" / "summary.json")
            steps.append(summary["steps"])
        return steps

    def _train_grpo(self, name: str, seed: int, changes: Mapping[str, Any]) -> Path:
        """Run training.grpo on the last iteration's model; returns the model that it leaves."""
        folder = self._folder(seed) / name
        settings: dict[str, Any] = {
            "config": RECIPES / "grpo.yaml",
            "model": self.iteration(seed),
            "data": self._iteration(seed, ITERATIONS) / RATED_HIGH,
            "output_dir": folder,
            "max_steps": self.sizes["grpo"],
            "per_device_train_batch_size": self.sizes["completions"],
            "seed": seed,
            **changes,
        }
        # Its recipe is in float32
        settings |= {key: value for key, value in settings_of_device().items() if key == "use_cpu"}
        if self.sizes is SMOKE:
            settings |= SMALL_GRPO
        self._run_module(f"{name} of seed {seed}", folder, "training.grpo", settings)
        return folder / "model"

    def _run_module(
        self, name: str, folder: Path, module: str, settings: Mapping[str, Any]
    ) -> None:
        """Run a training, unless its summary says that it is done."""
        action = functools.partial(self.run_module, module, as_arguments(settings))
        self.run(name, folder / "summary.json", action)

    # -- the scores --------------------------------------------------------------------------------

    def results(self) -> dict[str, dict[str, Any]]:
        """What is scored so far: {row: {seed: scores}}, in the order of ROWS."""
        rows: dict[str, dict[str, Any]] = {}
        for key in ROWS:
            seeds = {}
            for file in sorted((self.folder / "scores").glob(f"{key}.*.json")):
                seeds[file.stem.removeprefix(f"{key}.")] = durable.read_json(file)
            if seeds:
                rows[key] = seeds
        return rows

    def score(self, key: str, seed: int, count: int, text_count: int) -> None:
        """Score a row of ROWS, unless it is scored on as many samples.

        Args:
            count: samples of each family.
            text_count: samples of each family that are put into words.
        """
        row = ROWS[key]
        model = row.model(self, seed)
        path = self.folder / "scores" / f"{key}.{seed}.json"
        before = durable.read_json(path)
        if before is not None and before["count"] == count:
            return
        print(f"== scores of {row.name}, seed {seed}", flush=True)
        path.parent.mkdir(exist_ok=True)
        durable.write_json(path, score_model(model, count, text_count))

    def write_table(self) -> str:
        """Write results.json, table.md and hybrid.png; returns the table."""
        rows = self.results()
        durable.write_json(self.folder / "results.json", rows)
        names = {key: row.name for key, row in ROWS.items()}
        text = hybrid_table.table(rows, names) + "\n\n" + as_list(hybrid_table.targets(rows))
        durable.write_text(self.folder / "table.md", text + "\n")
        hybrid_table.plot(rows, names, self.folder / "hybrid.png")
        return text


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: what it says.
        model: the folder of its model, which is trained where it is not there.
        has_seeds: whether another seed gives another model.
    """

    name: str
    model: Callable[[Hybrid, int], Path]
    has_seeds: bool = True


def _iteration_row(number: int) -> Row:
    return Row(f"iteration {number}", functools.partial(Hybrid.iteration, number=number))


ROWS = {
    "swapped": Row("right after the swap", Hybrid.swapped, False),
    "aligned": Row("stage 1: SFT on everything", Hybrid.aligned, False),
    **{f"iteration_{number}": _iteration_row(number) for number in range(1, ITERATIONS + 1)},
    "grpo": Row("GRPO", Hybrid.grpo),
    "everything": Row("control: SFT on everything again, as many steps", Hybrid.everything),
    "errors": Row("control: iterations without ratings, as many steps", Hybrid.errors),
    "grpo_buffer": Row("GRPO with the sample buffer", Hybrid.grpo_buffer),
    "grpo_kl": Row("GRPO with a KL term", Hybrid.grpo_kl),
    "grpo_lora": Row("GRPO with LoRA on the language model", Hybrid.grpo_lora),
    "grpo_longer": Row("GRPO in 3 times the steps, at a third of the rate", Hybrid.grpo_longer),
    "final": Row("for comparison: 5,000 samples, none of them wrong", Hybrid.final, False),
}


def score_model(model: Path, count: int, text_count: int) -> dict[str, Any]:
    """What a row of results.json has of a model.

    Args:
        model: its folder.
        count: samples of each family.
        text_count: samples of each family that are put into words.

    Returns:
        "count"; "families": of each family right, total and interval; "text": the same of families
        in words; "format": [answers in the form of one, all answers]; "seconds"; "machine".
    """
    # Nothing else here needs EvalScope.
    from evaluation import nano as evaluation
    from evaluation.families import FamilySet
    from evaluation.local import load
    from training.rewards import has_format

    begun = time.time()
    families = FamilySet(count, families=list(samples.ALL_FAMILIES))
    loaded, tokenizer = load(str(model), FAST_DTYPE_NAME)
    with evaluation.folder(None) as out:
        results = evaluation.score(loaded, tokenizer, families, out, batch_size=BATCH)
    formed = sum(has_format(answer.text) for answer in results.answers.values())
    return {
        "count": count,
        "families": evaluation.shares(results),
        "text": evaluation.evaluate(str(model), text_count, text=True),
        "format": [formed, len(results.answers)],
        "seconds": round(time.time() - begun),
        "machine": _machine(),
    }


def _machine() -> dict[str, Any]:
    """Where a score comes from."""
    device = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def _recipe(name: str) -> dict[str, Any]:
    """The content of a nano recipe."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    durable.write_text(path, yaml.safe_dump(dict(content), sort_keys=False))


def score_rows(
    hybrid: Hybrid, keys: Sequence[str], seeds: Sequence[int], count: int, text_count: int
) -> None:
    """Train and score rows, all of a seed before the next; each table has what is there."""
    for seed in seeds:
        for key in keys:
            if ROWS[key].has_seeds or seed == seeds[0]:
                hybrid.score(key, seed, count, text_count)
                hybrid.write_table()


def main() -> None:
    """Train and score the rows that the command line names, and print the table and the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the directory of training.nano.pipeline")
    parser.add_argument("--only", choices=ROWS, nargs="+", default=list(ROWS), help="these rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings")
    parser.add_argument(
        "--count", type=int, default=COUNT, help="samples of each family that rows are scored on"
    )
    parser.add_argument(
        "--text-count", type=int, default=TEXT_COUNT, help="samples that are put into words"
    )
    parser.add_argument("--smoke", action="store_true", help="do a few steps of every stage")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else FULL
    try:
        hybrid = Hybrid(arguments.folder, sizes)
        score_rows(hybrid, arguments.only, arguments.seeds, arguments.count, arguments.text_count)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print(hybrid.write_table())
    print(f"\nTraining: {hybrid.times_in_words()}")


if __name__ == "__main__":
    main()
