"""Shows what adaptive-length distillation does to the nano model (report, section 2.3).

    python -m training.nano.lengths runs/nano                # after training.nano.pipeline
    python -m training.nano.lengths runs/nano --only sweep   # what alpha, beta and gamma do
    python -m training.nano.lengths runs/nano --smoke --out runs/lengths_smoke

The model that thinks is the child `rechecking`, whose chains check themselves again any number of
times. Its own chains are distilled three times: under the adaptive P, under P = 1, and under one P
for all, the mean of the adaptive one. On each of the three the same model is trained by the same
recipe for as many steps. All answer the same fresh questions, at a temperature, as reasoning models
are used. What is there already is kept:

    swapped             the encoder and the projector of the aligned nano + rechecking
    start               the projector aligned to it, on chains whose checks vary
    sweep_…             tries under other α, β and γ, without a training
    distilled_…         the distillations: adaptive, one, constant
    sft_…               the trainings, of language model and projector
    answers_….jsonl     what is measured of each answer
    sweep.json, results.json, lengths.png
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import durable
from evaluation import nano as evaluation
from evaluation.families import FamilySet
from evaluation.local import load
from tasks import samples
from training.distill import output
from training.distill.length import ADAPTIVE, LengthSettings
from training.distill.pipeline import Distillation
from training.distill.recipe import DistillRecipe, read_recipe
from training.nano import data, length_results
from training.nano.length_results import GROUPS, Measured, Models, group_of
from training.nano.loop import FAST_DTYPE_NAME
from training.nano.rechecking import CHECKS
from training.nano.stages import BATCH, RECIPES, Stages, train_in_a_process
from training.nano.targets import Target, as_list

# Samples of each data set, of the sweep and of each family of the evaluation; steps of 16 samples
# of each training; and tokens of an answer: those of the longest chain, checked five times.
FULL = {
    "rechecked": 4000,
    "distillation": 2000,
    "steps": 200,
    "sweep": 200,
    "evaluation": 500,
    "tokens": 640,
}
# A few of each, for tests.
SMOKE = {
    "rechecked": 16,
    "distillation": 8,
    "steps": 1,
    "sweep": 4,
    "evaluation": 1,
    "tokens": 64,
}
PENALTIES: dict[str, str | float | None] = {
    "adaptive": ADAPTIVE,
    "one": 1.0,
    "constant": None,  # the mean of the adaptive run
}
START = "start"
MODELS = {
    START: "before distillation",
    "adaptive": "adaptive P",
    "one": "P = 1",
    "constant": "constant P",
}
DECODINGS: dict[str, dict[str, Any]] = {
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
}
# (α, β, γ): α with equal weights, where 0 is P = 1 for all; the weights; α with other weights.
TRIED = (
    *((alpha, 1.0, 1.0) for alpha in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)),
    *((0.4, *weights) for weights in ((1.0, 0.0), (4.0, 1.0), (4.0, 0.0))),
    *((alpha, 4.0, 0.0) for alpha in (1.0, 2.0)),
)
SWEEP = tuple(LengthSettings(alpha=alpha, beta=beta, gamma=gamma) for alpha, beta, gamma in TRIED)


class Proof(Stages):
    """The stages that show what adaptive length does.

    Args:
        nano: the folder of `training.nano.pipeline`, with its stages `final` and `rechecking`.
        folder: of all results.
        sizes: of the stages; FULL or SMOKE.
        seed: of everything random.
        train: runs `training.sft` with a list of arguments.
        sweep: the settings of the length controller that are tried.
        decodings: options of transformers' `generate` by the name of the way of decoding.

    Raises:
        FileNotFoundError: a stage of the nano pipeline is not done.
        ValueError: the folder is of another run.
    """

    def __init__(
        self,
        nano: str | Path,
        folder: str | Path,
        sizes: dict[str, int],
        seed: int = 0,
        train: Callable[[list[str]], Any] = train_in_a_process,
        sweep: Sequence[LengthSettings] = SWEEP,
        decodings: Mapping[str, dict[str, Any]] = DECODINGS,
    ) -> None:
        self.aligned = Path(nano) / "final"
        self.child = Path(nano) / "rechecking"
        self.settings = sweep
        self.decodings = decodings
        made_from = {}
        for source in (self.aligned, self.child):
            made_from[source.name] = digest_of(source / "model.safetensors")
        super().__init__(folder, sizes, seed, train, made_from)

    def all(self) -> None:
        """Do every stage that is not done yet."""
        for stage in STAGES:
            stage(self)

    # -- the stages, each of which does those that it needs ----------------------------------------

    def start(self) -> None:
        """The model before distillation: the rechecking child with an aligned projector."""
        self.assemble("swapped", self.aligned, self.child, self.aligned)
        rechecked = self._data_set("rechecked")
        self.train_by_recipe(START, "alignment_sft", self.folder / "swapped", rechecked)

    def sweep(self) -> None:
        """What α, β and γ do to tries."""
        self.start()
        questions = self._data_set("distillation")
        few = questions.with_name("sweep.jsonl")
        lines = durable.whole_lines(questions)[: self.sizes["sweep"]]
        durable.write_text(few, "".join(line.decode("utf-8") + "\n" for line in lines))
        for settings in self.settings:
            name = f"sweep_{settings.alpha}_{settings.beta}_{settings.gamma}"
            action = functools.partial(self._try, name, few, settings)
            self.run(name, self.folder / name / "scores.json", action)
        scores = []
        for settings in self.settings:
            name = f"sweep_{settings.alpha}_{settings.beta}_{settings.gamma}"
            scores.append(durable.read_json(self.folder / name / "scores.json"))
        durable.write_json(self.folder / "sweep.json", scores)

    def distill(self) -> None:
        """The three distillations."""
        self.start()
        for name, penalty in PENALTIES.items():
            action = functools.partial(self._distill, name, penalty)
            self.run(f"distilled_{name}", self._distilled(name) / "report.json", action)

    def training(self) -> None:
        """The three trainings, alike but for their data."""
        self.distill()
        for name in PENALTIES:
            self.train_by_recipe(
                f"sft_{name}",
                "lengths_sft",
                self.folder / START / "model",
                self._distilled(name) / "distilled.jsonl",
                max_steps=self.sizes["steps"],
            )

    def evaluate(self) -> None:
        """What each model thinks and answers, and how they compare."""
        self.training()
        for model in MODELS:
            for decoding in self.decodings:
                action = functools.partial(self._measure, model, decoding)
                self.run(f"answers_{model}_{decoding}", self._answers(model, decoding), action)
        durable.write_json(self.folder / "results.json", self._results())
        length_results.plot(self._measured(), self.folder / "lengths.png")

    # -- where things are --------------------------------------------------------------------------

    def _data_set(self, stage: str) -> Path:
        """A data set, which is written where it is not there."""
        path = self.folder / "data" / f"{stage}.jsonl"
        action = functools.partial(data.write, stage, path.parent, self.sizes[stage], self.seed)
        self.run(f"data {stage}", path, action)
        return path

    def _distilled(self, name: str) -> Path:
        return self.folder / f"distilled_{name}"

    def _model(self, name: str) -> Path:
        folder = f"sft_{name}"
        if name == START:
            folder = START
        return self.folder / folder / "model"

    def _answers(self, model: str, decoding: str) -> Path:
        return self.folder / f"answers_{model}_{decoding}.jsonl"

    # -- what they do ------------------------------------------------------------------------------

    def _recipe(self, questions: Path, folder: Path) -> DistillRecipe:
        """The recipe of a distillation by the model before distillation."""
        changes = {"data": [str(questions)], "output_dir": str(folder)}
        recipe = read_recipe(str(RECIPES / "lengths_distill.yaml"), changes)
        generator = dataclasses.replace(
            recipe.generator,
            model=str(self._model(START)),
            dtype=FAST_DTYPE_NAME,
            batch_size=BATCH,
        )
        sampling = dataclasses.replace(recipe.sampling, max_new_tokens=self.sizes["tokens"])
        return dataclasses.replace(recipe, generator=generator, sampling=sampling)

    def _try(self, name: str, questions: Path, settings: LengthSettings) -> None:
        """Tries under settings of the length controller, and their scores."""
        recipe = self._recipe(questions, self.folder / name)
        distillation = Distillation(dataclasses.replace(recipe, length=settings))
        distillation.run(until="check")
        scores = {"alpha": settings.alpha, "beta": settings.beta, "gamma": settings.gamma}
        groups = scores_of_tries(distillation)
        durable.write_json(self.folder / name / "scores.json", {**scores, "groups": groups})

    def _distill(self, name: str, penalty: str | float | None) -> None:
        """Distil under a P, as `python -m training.distill` does."""
        if penalty is None:
            penalty = durable.read_json(self._distilled("adaptive") / "report.json")["mean P"]
        recipe = self._recipe(self._data_set("distillation"), self._distilled(name))
        length = dataclasses.replace(recipe.length, penalty=penalty)
        Distillation(dataclasses.replace(recipe, length=length)).run()

    def _measure(self, name: str, decoding: str) -> None:
        """Ask a model about fresh samples of all families, and write what is measured."""
        path = self._answers(name, decoding)
        model, tokenizer = load(str(self._model(name)), FAST_DTYPE_NAME)
        families = FamilySet(self.sizes["evaluation"], families=tuple(samples.ALL_FAMILIES))
        results = evaluation.score(
            model,
            tokenizer,
            families,
            path.with_suffix(""),
            batch_size=BATCH,
            options={"max_new_tokens": self.sizes["tokens"], **self.decodings[decoding]},
        )
        measured = measured_of(evaluation.thoughts(results, tokenizer), families)
        durable.write_text(path, output.as_lines(answer._asdict() for answer in measured))

    def _measured(self) -> dict[str, Models]:
        """What is measured, by the way of decoding and the name of the model."""
        found: dict[str, Models] = {}
        for decoding in self.decodings:
            models = {}
            for name, title in MODELS.items():
                lines = durable.whole_lines(self._answers(name, decoding))
                models[title] = [Measured(**json.loads(line)) for line in lines]
            found[decoding] = models
        return found

    def _results(self) -> dict[str, Any]:
        """The content of results.json."""
        scores: dict[str, Any] = {}
        targets = {}
        for decoding, models in self._measured().items():
            scores[decoding] = {}
            for title, answers in models.items():
                parts = length_results.parts_of(answers)
                scores[decoding][title] = {
                    part: length_results.summary(of_part) for part, of_part in parts.items()
                }
            found = length_results.targets(*(models[MODELS[name]] for name in PENALTIES))
            targets[decoding] = [target._asdict() for target in found]
        distilled = {}
        for name in PENALTIES:
            distilled[MODELS[name]] = scores_of_distilled(self._distilled(name))
        facts = {"seed": self.seed, "sizes": self.sizes}
        return {**facts, "distilled": distilled, "scores": scores, "targets": targets}

    # -- the results -------------------------------------------------------------------------------

    def report(self) -> str:
        """What was found, in Markdown."""
        results = durable.read_json(self.folder / "results.json")
        parts = ["The data:", length_results.table_of_tries(results["distilled"])]
        for decoding, models in results["scores"].items():
            parts += [f"{decoding.capitalize()} answers:", length_results.table(models)]
            found = [Target(**target) for target in results["targets"][decoding]]
            parts.append(as_list(found))
        return "\n\n".join(parts)

    def report_of_sweep(self) -> str:
        """What α, β and γ do, as a Markdown table."""
        rows = {}
        for scores in durable.read_json(self.folder / "sweep.json"):
            settings = [f"{name} = {scores[name]}" for name in ("alpha", "beta", "gamma")]
            rows[", ".join(settings)] = scores["groups"]
        return length_results.table_of_tries(rows)


STAGES = (Proof.start, Proof.sweep, Proof.distill, Proof.training, Proof.evaluate)


# -- what is measured ------------------------------------------------------------------------------


def digest_of(path: Path) -> str:
    """What tells the content of a file from others.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: run python -m training.nano.pipeline {path.parents[1]} first."
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def measured_of(thoughts: Sequence[evaluation.Thought], families: FamilySet) -> list[Measured]:
    """What is measured of answers to samples of families."""
    difficulties = {}
    for family in families.families:
        difficulties[family] = [data.difficulty_of(sample) for sample in families.drawn(family)]
    measured = []
    for thought in thoughts:
        difficulty = difficulties[thought.family][thought.number]
        checks = checks_in(thought.thinking)
        is_right, is_truncated = thought.is_right, thought.is_truncated
        measured.append(
            Measured(thought.family, difficulty, is_right, is_truncated, thought.tokens, checks)
        )
    return measured


def checks_in(thinking: str) -> int:
    """The number of sentences that begin a check."""
    return sum(thinking.count(sentence) for sentence in CHECKS)


def scores_of_tries(distillation: Distillation) -> dict[str, Any]:
    """Of each group of questions: how many tries are right, how long they are, and under which P.

    Args:
        distillation: that has done its stage `check`; failed tries are left out.
    """
    found: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for sample in distillation.data.samples:
        checked = distillation.lines["check"].get(sample.number, {})
        verdicts = {line["try"]: line["is_right"] for line in checked.get("verdicts", ())}
        for entry in distillation.tries.get(sample.number, ()):
            if entry["try"] in verdicts:
                facts = {
                    "P": distillation.lines["length"][sample.number]["P"],
                    "right": bool(verdicts[entry["try"]]),
                    "tokens": entry["tokens"],
                    "checks": checks_in(entry["thinking"]),
                }
                found[group_of(sample.row["difficulty"])].append(facts)
    return {group: length_results.means_of(facts) for group, facts in found.items() if facts}


def scores_of_distilled(folder: Path) -> dict[str, Any]:
    """The same of the chains that were kept for a training, which all are right."""
    found: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for line in durable.whole_lines(folder / "distilled.jsonl"):
        row = json.loads(line)
        told = row["distillation"]
        facts = {
            "P": told["P"],
            "right": True,
            "tokens": told["tokens"],
            "checks": checks_in(row["conversations"][-1]["value"]),
        }
        found[group_of(row["difficulty"])].append(facts)
    return {group: length_results.means_of(facts) for group, facts in found.items() if facts}


# -- command line ----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nano", type=Path, help="the directory of training.nano.pipeline")
    parser.add_argument("--out", type=Path, help="all results; by default lengths/ in that one")
    parser.add_argument("--seed", type=int, default=0, help="the seed of everything random")
    parser.add_argument("--smoke", action="store_true", help="do a few steps of every stage")
    names = [stage.__name__ for stage in STAGES]
    parser.add_argument(
        "--only", choices=names, nargs="+", help="do these stages and what they need"
    )
    return parser.parse_args()


def main() -> None:
    """Do the stages that the command line names, and print what was found."""
    arguments = parse_arguments()
    sizes = SMOKE if arguments.smoke else FULL
    out = arguments.out or arguments.nano / "lengths"
    proof = Proof(arguments.nano, out, sizes, arguments.seed)
    stages = {stage.__name__: stage for stage in STAGES}
    for name in arguments.only or stages:
        stages[name](proof)
    if (out / "sweep.json").exists():
        print(proof.report_of_sweep(), end="\n\n")
    if (out / "results.json").exists():
        print(proof.report())
    print(proof.times_in_words())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
