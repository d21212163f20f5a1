"""Rebuilds the nano checkpoint from a seed, on a GPU (minutes) or two CPU cores (hours).

    python -m training.nano.pipeline runs/nano                   # make nano
    python -m training.nano.pipeline runs/nano --install         # and put the result into nano/
    python -m training.nano.pipeline runs/nano --only encoder    # some stages, beside others

It is the report's method from end to end. The stages run in this order, each in a folder of its
own; what is there already is kept, and an interrupted stage of TRL's goes on from its last
checkpoint:

    encoder          vision encoder, with throw-away heads, then frozen
    base             text model; instruct, reasoning and rechecking: its children, text only;
                     reasoning_2: the second of them, more of it about colours
    substitute       assembly: encoder + new mlp1 + instruct
    words            only mlp1 trains: it learns the words of visual tokens; taught: the substitute
                     with it
    mlp_init_1 … 3   only mlp1 trains, against the frozen instruct child; the second on what a
                     judge selected
    swapped          re-assembly: the same encoder and mlp1 + reasoning_2
    alignment_sft    only mlp1 trains, against the frozen reasoning child; final: the result as a
                     repository
    control          mlp1 trained against the reasoning child from nothing, on the data and the
                     budget of alignment_sft
    results.json     every row of the table in docs/nano.md
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

import durable
from training import select
from training.nano import code, data, encoder, projector, text
from training.nano.loop import DEVICE, FAST_DTYPE_NAME
from training.nano.stages import ROOT, Stages

# Steps of 256 tiles (encoder) and of 64 texts (base and children); samples of each data set, and of
# each family of the evaluation.
FULL = {
    "encoder": 6500,
    "base": 2400,
    "instruct": 450,
    "reasoning": 1100,
    "reasoning_2": 250,
    "rechecking": 1100,
    "words": 300,
    "init_1": 3200,
    "init_2": 2000,
    "init_3": 1000,
    "alignment": 5000,
    "evaluation": 500,
}
# A few steps of each, for tests.
SMOKE = {
    "encoder": 2,
    "base": 2,
    "instruct": 2,
    "reasoning": 2,
    "reasoning_2": 2,
    "rechecking": 2,
    "words": 2,
    "init_1": 8,
    "init_2": 16,
    "init_3": 8,
    "alignment": 16,
    "evaluation": 1,
}
# Tiles or texts of a step in such a run: a step of full size takes a slow CPU most of a minute.
SMALL_STEPS = {"batch_size": 8}
REASONING = "reasoning_2"  # the language model that is swapped in
DATA_SETS = ("init_1", "init_2", "init_3", "alignment")
SELECTED_SHARE = 0.5  # of init_2, by the judge


class Row(NamedTuple):
    """A row of the table in docs/nano.md.

    Attributes:
        name: what it says.
        checkpoint: the folder of what is evaluated.
        in_words: whether the pictures are put into words.
    """

    name: str
    checkpoint: str
    in_words: bool


ROWS = (
    Row("substitute VLM (instruct child, after MLP initialisation)", "mlp_init_3/model", False),
    Row("right after the swap, nothing trained", "swapped", False),
    Row("after alignment SFT of the MLP", "final", False),
    Row("control: MLP from nothing, same budget", "control/model", False),
    Row("reasoning child alone, pictures in words", REASONING, True),
    Row("the same within the aligned model", "final", True),
)


class Pipeline(Stages):
    """The stages of the replica; for the arguments see `Stages`."""

    @property
    def _compiles(self) -> bool:
        """Whether compiled code pays: on a GPU such small networks wait for their samples."""
        return self.sizes is not SMOKE and DEVICE.type == "cpu"

    @property
    def _small_steps(self) -> dict[str, int]:
        """What the trainings that are not on TRL are told in a run of a few steps."""
        if self.sizes is SMOKE:
            return SMALL_STEPS
        return {}

    def all(self) -> None:
        """Do every stage that is not done yet."""
        for stage in STAGES:
            stage(self)

    # -- the stages --------------------------------------------------------------------------------

    def encoder(self) -> None:
        """The vision encoder, which stays frozen afterwards."""
        self._train_encoder()

    def base(self) -> None:
        """The language model from which the others come."""
        self._train_text("base")

    def instruct(self) -> None:
        """The child that answers at once."""
        self._train_text("instruct", start="base")

    def reasoning(self) -> None:
        """The child that thinks first."""
        self._train_text("reasoning", start="base")
        self._train_text(REASONING, start="reasoning")

    def rechecking(self) -> None:
        """The child that checks its thinking again, for adaptive-length distillation."""
        self._train_text("rechecking", start="base")

    def data(self) -> None:
        """The training sets of all stages."""
        for stage in DATA_SETS:
            self._write_data(stage)

    def transfer(self) -> None:
        """MLP initialisation against the substitute, swap, alignment."""
        self._assemble("substitute", vision="encoder", language_model="instruct")
        self._teach_words("words", model="substitute")
        self._assemble("taught", vision="encoder", language_model="instruct", mlp1="words")
        self._train_mlp("mlp_init_1", data_set="init_1", model="taught")
        self._select_data("init_2", "init_2_selected", judge="mlp_init_1/model")
        self._train_mlp("mlp_init_2", data_set="init_2_selected", model="mlp_init_1/model")
        self._train_mlp("mlp_init_3", data_set="init_3", model="mlp_init_2/model")
        self._swap("swapped", model="mlp_init_3/model")
        self._train_mlp("alignment_sft", data_set="alignment", model="swapped")
        # Once more, so that its files are the same whatever the version of transformers.
        self._swap("final", model="alignment_sft/model")

    def control(self) -> None:
        """The same reasoning child, with a projector from nothing."""
        self._assemble("control_start", vision="encoder", language_model=REASONING)
        self._train_mlp(
            "control", data_set="alignment", model="control_start", recipe="alignment_sft"
        )

    def evaluate(self) -> None:
        """Score every row of the table."""
        self.run("evaluation", self.folder / "results.json", self._score_rows)

    # -- what they do ------------------------------------------------------------------------------

    def _train_encoder(self) -> None:
        folder = self.folder / "encoder"
        train = functools.partial(
            encoder.train,
            folder,
            self.sizes["encoder"],
            self.seed,
            **self._small_steps,
            compile_encoder=self._compiles,
        )
        self.run("encoder", folder / "model.safetensors", train)

    def _train_text(self, role: str, start: str | None = None) -> None:
        folder = self.folder / role
        start_folder = None
        if start is not None:
            start_folder = self.folder / start
        train = functools.partial(
            text.train,
            role,
            folder,
            self.sizes[role],
            self.seed,
            start_folder,
            **self._small_steps,
            compile_layers=self._compiles,
        )
        self.run(role, folder / "model.safetensors", train)

    def _teach_words(self, name: str, model: str) -> None:
        """Teach the projector of a model the words of visual tokens."""
        folder = self.folder / name
        train = functools.partial(
            projector.train,
            folder,
            self.folder / model,
            self.sizes[name],
            self.seed,
            **self._small_steps,
        )
        self.run(name, folder / "model.safetensors", train)

    def _swap(self, name: str, model: str) -> None:
        """A model's vision encoder and projector on the reasoning child."""
        self._assemble(name, vision=model, language_model=REASONING, mlp1=model)

    def _assemble(
        self, name: str, vision: str, language_model: str, mlp1: str | None = None
    ) -> None:
        """A repository of parts, each named by its stage; without `mlp1` a new projector."""
        mlp1_folder = None
        if mlp1 is not None:
            mlp1_folder = self.folder / mlp1
        self.assemble(name, self.folder / vision, self.folder / language_model, mlp1_folder)

    def _data_set(self, name: str) -> Path:
        return self.folder / "data" / f"{name}.jsonl"

    def _write_data(self, stage: str) -> None:
        path = self._data_set(stage)
        action = functools.partial(data.write, stage, path.parent, self.sizes[stage], self.seed)
        self.run(f"data {stage}", path, action)

    def _select_data(self, pool: str, selected: str, judge: str) -> None:
        """The better part of a data set, as a model judges it."""
        path = self._data_set(selected)
        action = functools.partial(
            select.select,
            self._data_set(pool),
            path,
            self.folder / judge,
            SELECTED_SHARE,
            select.JudgingSettings(dtype=FAST_DTYPE_NAME),
        )
        self.run("select", path, action)

    def _train_mlp(self, name: str, data_set: str, model: str, recipe: str | None = None) -> None:
        """Train the projector of a model by a recipe, which by default is named as the stage."""
        data_file = self._data_set(data_set)
        self.train_by_recipe(name, recipe or name, self.folder / model, data_file)

    def _score_rows(self) -> None:
        """Score the rows; after an interruption only those that are not scored yet."""
        # Nothing else here needs EvalScope.
        from evaluation import nano as evaluation

        partial = self.folder / "results.partial.json"
        results = _read_json_if_there(partial)
        for row in ROWS:
            if row.name in results:
                continue
            print(f"   {row.name}", flush=True)
            results[row.name] = evaluation.evaluate(
                str(self.folder / row.checkpoint), self.sizes["evaluation"], text=row.in_words
            )
            durable.write_json(partial, results)
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        record = {"seed": self.seed, "machine": machine, "rows": results}
        durable.write_json(self.folder / "results.json", record)
        partial.unlink()

    # -- the results -------------------------------------------------------------------------------

    def table(self) -> str:
        """The table in docs/nano.md, in Markdown."""
        results = json.loads((self.folder / "results.json").read_text())["rows"]
        families = list(next(iter(results.values())))
        lines = ["| | " + " | ".join(families) + " |", "|---" * (len(families) + 1) + "|"]
        for name, scores in results.items():
            cells = [_percentages(scores[family]) for family in families]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def install(self, target: Path = ROOT / "nano") -> None:
        """Put the aligned model's own files, and the code as it is now, into nano/."""
        source = self.folder / "final"
        for path in source.iterdir():
            if path.is_file():
                shutil.copyfile(path, target / path.name)
        code.copy_to(target)


# In the order in which one run does them. The first five and the data do not need each other, but
# for the children, which need the base.
STAGES = (
    Pipeline.encoder,
    Pipeline.base,
    Pipeline.instruct,
    Pipeline.reasoning,
    Pipeline.rechecking,
    Pipeline.data,
    Pipeline.transfer,
    Pipeline.control,
    Pipeline.evaluate,
)


def _read_json_if_there(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or an empty dict."""
    if not path.exists():
        return {}
    return json.loads(path.read_text())


def _percentages(score: dict[str, Any]) -> str:
    """The share of right answers with its interval."""
    low, high = score["interval"]
    return f"{score['right'] / score['total']:.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    """Run the pipeline as the command line asks, and print the table and the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the directory of all results")
    parser.add_argument("--seed", type=int, default=0, help="the seed of everything random")
    parser.add_argument("--smoke", action="store_true", help="do a few steps of every stage")
    stages = {stage.__name__: stage for stage in STAGES}
    parser.add_argument("--only", choices=stages, nargs="+", help="do these stages alone")
    parser.add_argument("--install", action="store_true", help="put the result into nano/")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else FULL
    try:
        pipeline = Pipeline(arguments.folder, sizes, arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    if arguments.only:
        for name in arguments.only:
            stages[name](pipeline)
        return
    pipeline.all()
    if arguments.install:
        pipeline.install()
    print(pipeline.table())
    print(pipeline.times_in_words())


if __name__ == "__main__":
    main()
