"""Rebuilds the nano checkpoint from a seed: the report's method from end to end, at a scale for two CPU cores.

    python -m training.nano.pipeline runs/nano            # make nano
    python -m training.nano.pipeline runs/nano --install  # and put the result into nano/

In this order, each in a folder of its own; what is there already is kept, and an interrupted stage of TRL's goes on
from its last checkpoint:

    encoder          vision encoder, with a throw-away head, then frozen
    base             text model; instruct and reasoning: its two children, text only
    substitute       assembly: encoder + new mlp1 + instruct
    mlp_init_1 … 3   only mlp1 trains, against the frozen instruct child; the second on what a judge selected
    swapped          re-assembly: the same encoder and mlp1 + reasoning
    alignment_sft    only mlp1 trains, against the frozen reasoning child; final: the result as a repository
    control          mlp1 trained against the reasoning child from nothing, on the data and the budget of alignment_sft
    results.json     every row of the README's table
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from evaluation import nano as evaluation
from training import assemble, select
from training.nano import data, encoder, text

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "nano"
MAX_TILES = 6
# Steps of 128 tiles, of 64 texts; samples of each set
FULL = {
    "encoder": 6000, "base": 1200, "instruct": 350, "reasoning": 800,
    "init_1": 12_000, "init_2": 4000, "init_3": 1000, "alignment": 16_000, "evaluation": 500,
}  # fmt: skip
# A few steps of each, for tests
SMOKE = {
    "encoder": 2, "base": 2, "instruct": 2, "reasoning": 2,
    "init_1": 64, "init_2": 64, "init_3": 32, "alignment": 64, "evaluation": 2,
}  # fmt: skip
KEPT_SHARE = 0.5  # of init_2, by the judge


def train_in_a_process(arguments):
    """`python -m training.sft` with these arguments, whose memory is free again afterwards."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-m", "training.sft", *arguments], check=True, cwd=ROOT, env=environment)


class Pipeline:
    """Stages by name; each is run unless its result is there, and its seconds are kept in times.json.

    Args:
        folder: of all results.
        sizes: steps, or samples, of each stage.
        seed: of everything random.
        train: runs `training.sft` with a list of arguments; by default in a process of its own, as a user would.

    Raises:
        ValueError: the folder is of a run with another seed or other sizes.
    """

    def __init__(self, folder, sizes, seed=0, train=train_in_a_process):
        self.folder, self.sizes, self.seed, self.train = Path(folder), sizes, seed, train
        self.folder.mkdir(parents=True, exist_ok=True)
        self.times_path = self.folder / "times.json"
        described, path = {"seed": seed, "sizes": sizes}, self.folder / "pipeline.json"
        before = json.loads(path.read_text()) if path.exists() else described
        if before != json.loads(json.dumps(described)):
            raise ValueError(f"{folder} is of a run with {before}, not {described}: name another directory.")
        path.write_text(json.dumps(described) + "\n")

    def run(self, name, result, action):
        """Do a stage whose result (a file or directory that appears when it is whole) is not there yet."""
        if result.exists():
            return
        print(f"== {name}", flush=True)
        start = time.time()
        action()
        times = json.loads(self.times_path.read_text()) if self.times_path.exists() else {}
        times[name] = round(time.time() - start + times.get(name, 0))
        self.times_path.write_text(json.dumps(times, indent=2) + "\n")

    def all(self):
        self.pretrain()
        self.transfer()
        self.control()
        self.evaluate()

    def pretrain(self):
        """The frozen parts: vision encoder, base, instruct and reasoning children."""
        folder, sizes, seed, small = self.folder, self.sizes, self.seed, self.sizes is SMOKE
        self.run(
            "encoder", folder / "encoder" / "model.safetensors",
            lambda: encoder.train(folder / "encoder", sizes["encoder"], seed, compile_encoder=not small),
        )  # fmt: skip
        for role in text.ROLES:
            start = None if role == "base" else folder / "base"
            target = folder / role
            self.run(
                role, target / "model.safetensors",
                lambda: text.train(role, target, sizes[role], seed, start, compile_layers=not small),
            )  # fmt: skip

    def transfer(self):
        """MLP initialisation against the substitute, swap, alignment."""
        self._assemble("substitute", "encoder", "instruct")
        self._data("init_1")
        self._train("mlp_init_1")
        self._data("init_2")
        sets = self.folder / "data"
        selected = sets / "init_2_selected.jsonl"
        judge = self.folder / "mlp_init_1" / "model"
        self.run("select", selected, lambda: select.select(sets / "init_2.jsonl", selected, judge, KEPT_SHARE))
        self._train("mlp_init_2")
        self._data("init_3")
        self._train("mlp_init_3")
        self._assemble("swapped", "mlp_init_3/model", "reasoning", "mlp_init_3/model")
        self._data("alignment")
        self._train("alignment_sft")
        # Once more, so that its files are written the same way whatever the version of transformers
        self._assemble("final", "alignment_sft/model", "reasoning", "alignment_sft/model")

    def control(self):
        """The same reasoning child with a projector from nothing."""
        self._assemble("control_start", "encoder", "reasoning")
        self._train("alignment_sft", "control", "control_start")

    def _assemble(self, name, vision, language_model, mlp1=None):
        folder = self.folder
        self.run(name, folder / name, lambda: assemble.assemble(
            folder / name, folder / vision, folder / language_model, mlp1 and folder / mlp1, seed=self.seed,
            settings={"max_dynamic_patch": MAX_TILES},
        ))  # fmt: skip

    def _data(self, stage):
        target = self.folder / "data"
        self.run(
            f"data {stage}", target / f"{stage}.jsonl", lambda: data.write(stage, target, self.sizes[stage], self.seed)
        )

    def _train(self, recipe, name=None, start=None):
        """A recipe, on this pipeline's folder."""
        name = name or recipe
        stage = {"mlp_init_1": "init_1", "mlp_init_2": "init_2_selected", "mlp_init_3": "init_3"}.get(recipe, "alignment")
        previous = {
            "mlp_init_1": "substitute", "mlp_init_2": "mlp_init_1/model", "mlp_init_3": "mlp_init_2/model",
            "alignment_sft": "swapped",
        }[recipe]  # fmt: skip
        arguments = [
            "--config", str(RECIPES / f"{recipe}.yaml"),
            "--model", str(self.folder / (start or previous)), "--data", str(self.folder / "data" / f"{stage}.jsonl"),
            "--output_dir", str(self.folder / name), "--seed", str(self.seed),
        ]  # fmt: skip
        self.run(name, self.folder / name / "summary.json", lambda: self.train(arguments))

    def rows(self):
        """Name, checkpoint and whether it is asked in words, of every row of the table."""
        return (
            ("substitute VLM (instruct child, after MLP initialisation)", "mlp_init_3/model", False),
            ("right after the swap, nothing trained", "swapped", False),
            ("after alignment SFT of the MLP", "final", False),
            ("control: MLP from nothing, same budget", "control/model", False),
            ("reasoning child alone, pictures in words", "reasoning", True),
            ("the same within the aligned model", "final", True),
        )

    def evaluate(self):
        partial = self.folder / "results.partial.json"

        def write():
            results = json.loads(partial.read_text()) if partial.exists() else {}
            for name, checkpoint, in_words in self.rows():
                if name in results:
                    continue
                print(f"   {name}", flush=True)
                results[name] = evaluation.evaluate(
                    str(self.folder / checkpoint), self.sizes["evaluation"], text=in_words
                )
                partial.write_text(json.dumps(results))
            machine = {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "torch": torch.__version__,
            }
            record = {"seed": self.seed, "machine": machine, "rows": results}
            (self.folder / "results.json").write_text(json.dumps(record, indent=2) + "\n")
            partial.unlink()

        self.run("evaluation", self.folder / "results.json", write)

    def table(self):
        """The README's table, in Markdown."""
        results = json.loads((self.folder / "results.json").read_text())["rows"]
        families = list(next(iter(results.values())))
        lines = ["| | " + " | ".join(families) + " |", "|---" * (len(families) + 1) + "|"]
        for name, scored in results.items():
            cells = []
            for family in families:
                of_family = scored[family]
                low, high = of_family["interval"]
                cells.append(f"{of_family['right'] / of_family['total']:.1%} ({low:.1%} to {high:.1%})")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def install(self, target=ROOT / "nano"):
        """Put the aligned model's own files (not the code, which nano/ links to) into nano/."""
        source = self.folder / "final"
        for path in source.iterdir():
            destination = target / path.name
            if path.is_file() and not destination.is_symlink():
                shutil.copyfile(path, destination)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps of every stage")
    parser.add_argument("--install", action="store_true", help="put the result into nano/")
    arguments = parser.parse_args()
    try:
        pipeline = Pipeline(arguments.folder, SMOKE if arguments.smoke else FULL, arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    pipeline.all()
    if arguments.install:
        pipeline.install()
    print(pipeline.table())
    times = json.loads(pipeline.times_path.read_text())
    print(f"{sum(times.values()) / 60:.0f} minutes: " + ", ".join(f"{name} {value} s" for name, value in times.items()))


if __name__ == "__main__":
    main()
