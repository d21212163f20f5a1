"""Iterative SFT: on what a reward model rates high, and on the model's own errors (report, 2.2).

    python -m training.iterate --config training/recipes/nano/iterate.yaml

For t = 1 … T, with D the data and M_0 the model after SFT on all of it:

    D_t = {(x, y) ∈ D : R(x, y) ≥ τ_t} ∪ {(x, y) ∈ D : M_{t−1} answers x wrongly}
    M_t = M_{t−1}, trained on D_t for an epoch

with τ = 2, 3, 4, 5. The output directory has `ratings.jsonl`, and of each iteration a directory
with the model's answers, `selection.jsonl` (which sample, its rating, how the model erred),
`data.jsonl` (D_t), `rated_high.jsonl` (the samples of a rating of at least τ_t: the last
iteration's are the data of GRPO), the training, and a row of `report.json`. Run again after an
interruption it goes on: nothing is rated, answered or trained twice.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import durable
from answers.judging import Judge
from training.command_line import argument_parser, exit_code
from training.raters import Rated, RatingError, RewardSettings, make_rater
from training.solved_rows import (
    SolvedRow,
    question_fields,
    question_with_history,
    read_solved_rows,
    row_with_absolute_images,
)

REPORT = "report.json"
RATED_HIGH = "rated_high.jsonl"


@dataclasses.dataclass
class IterationRecipe:
    """What a recipe of iterations says.

    Attributes:
        model: M_0, a directory.
        data: JSONL files of conversations, with a `solution` or a box in the last answer.
        output_dir: of all iterations.
        sft: recipe of the trainings, but for model, data, output_dir and learning rate.
        thresholds: τ_t, one for each iteration; with None no rating counts, and D_t is the errors
            alone.
        learning_rates: one for each iteration.
        steps: of the training of each iteration, in optimizer steps; by default an epoch of D_t.
        reward: see training/raters.py.
        answers: arguments of serving.offline, by which M_{t−1} answers.
        launch: what starts a Python module; `accelerate launch …  -m` for several GPUs.
        image_root: that image paths are relative to; by default each data file's directory.

    Raises:
        ValueError: lists of different lengths, or thresholds that are none.
    """

    model: str
    data: list[str]
    output_dir: str
    sft: str
    reward: dict[str, Any]
    thresholds: list[float | None] = dataclasses.field(default_factory=lambda: [2.0, 3.0, 4.0, 5.0])
    learning_rates: list[float] = dataclasses.field(
        default_factory=lambda: [1e-4, 2e-5, 2e-5, 2e-5]
    )
    answers: list[str] = dataclasses.field(default_factory=list)
    launch: list[str] = dataclasses.field(default_factory=lambda: [sys.executable, "-m"])
    image_root: str | None = None
    steps: list[int] | None = None

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.learning_rates) or not self.thresholds:
            raise ValueError(
                f"thresholds {self.thresholds} and learning_rates {self.learning_rates}: expected "
                "one of each for every iteration."
            )
        for value in self.thresholds:
            if value is not None and not 0 <= value <= 5:
                raise ValueError(f"thresholds: {value} is no rating; expected 0 to 5.")
        if self.steps is not None and len(self.steps) != len(self.thresholds):
            raise ValueError(
                f"steps {self.steps}: expected one number for each of {len(self.thresholds)} "
                "iterations, or none for an epoch each."
            )
        self.reward_settings = RewardSettings(**self.reward)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample of the data.

    Attributes:
        row: as the data have it, its images as absolute paths.
        asked: the fields of a question for serving.offline.
        rated: what a reward model sees.
    """

    row: dict[str, Any]
    asked: dict[str, Any]
    rated: Rated


class Iterations:
    """All iterations of a recipe.

    Args:
        recipe: what is done.

    Raises:
        FileNotFoundError, ValueError: data, or an output directory, that do not fit.
    """

    def __init__(self, recipe: IterationRecipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.samples = load_samples(recipe.data, recipe.image_root)
        self._check_same_run()

    def run(self) -> list[dict[str, Any]]:
        """Run what is left of all iterations; returns the rows of the report."""
        ratings = self.rate()
        model = self.recipe.model
        rows = []
        for number in range(1, len(self.recipe.thresholds) + 1):
            folder = self.folder / f"iteration_{number}"
            folder.mkdir(exist_ok=True)
            selection = self.select(number, model, ratings)
            summary = self.train(number, model)
            model = str(folder / "sft" / "model")
            rows.append(self._row(number, selection, summary))
            durable.write_json(self.folder / REPORT, rows)
        return rows

    def rate(self) -> list[float]:
        """The rating of each sample, which does not depend on the iteration."""
        path = self.folder / "ratings.jsonl"
        lines = durable.whole_lines(path)
        ratings: dict[int, float] = {}
        for line in lines:
            entry = json.loads(line)
            ratings[entry["number"]] = entry["rating"]
        missing = [number for number in range(len(self.samples)) if number not in ratings]
        if not missing:
            return [ratings[number] for number in range(len(self.samples))]
        if path.exists():
            durable.drop_half_line(path)
        rater = make_rater(self.recipe.reward_settings, self.folder / "ratings.sqlite")
        failed = []
        with path.open("a", encoding="utf-8") as file:
            for place, rating in rater.rate([self.samples[number].rated for number in missing]):
                if isinstance(rating, RatingError):
                    failed.append(f"sample {missing[place]}: {rating}")
                    continue
                ratings[missing[place]] = rating
                file.write(json.dumps({"number": missing[place], "rating": rating}) + "\n")
                file.flush()
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(self.samples)} samples have no rating ({failed[0]}). Run "
                "the command again to ask for them."
            )
        return [ratings[number] for number in range(len(self.samples))]

    def select(self, number: int, model: str, ratings: Sequence[float]) -> list[dict[str, Any]]:
        """The samples of D_t, each with why it is there, and those that are not.

        Args:
            number: t, from 1.
            model: M_{t−1}.
            ratings: of all samples.
        """
        folder = self.folder / f"iteration_{number}"
        path = folder / "selection.jsonl"
        if path.exists():
            return [json.loads(line) for line in durable.whole_lines(path)]
        answers = self._answer(folder, model)
        threshold = self.recipe.thresholds[number - 1]
        entries, chosen, rated_high = [], [], []
        with Judge() as judge:
            for place, sample in enumerate(self.samples):
                is_rated_high = threshold is not None and ratings[place] >= threshold
                # Without its thinking; of one that was never closed nothing is left.
                verdict = judge.judge(sample.rated.right, answers[str(place)]["answer"])
                entry = {
                    "number": place,
                    "rating": ratings[place],
                    "is_rated_high": is_rated_high,
                    "is_error": not verdict.is_right,
                    "said": verdict.answer,
                    "reason": verdict.reason,
                }
                entries.append(entry)
                if is_rated_high:
                    rated_high.append(sample.row)
                if is_rated_high or entry["is_error"]:
                    chosen.append(sample.row)
        if not chosen:
            raise ValueError(
                f"iteration {number}: no sample is rated {threshold} or answered wrongly."
            )
        _write_lines(folder / RATED_HIGH, rated_high)
        _write_lines(folder / "data.jsonl", chosen)
        _write_lines(path, entries)  # last: it says that the data are there
        return entries

    def train(self, number: int, model: str) -> dict[str, Any]:
        """Train M_t for an epoch; returns the summary.

        Args:
            number: t, from 1.
            model: M_{t−1}.
        """
        folder = self.folder / f"iteration_{number}"
        options = {
            "--config": self.recipe.sft,
            "--model": model,
            "--data": folder / "data.jsonl",
            "--output_dir": folder / "sft",
            "--learning_rate": self.recipe.learning_rates[number - 1],
        }
        if self.recipe.steps is not None:
            options["--max_steps"] = self.recipe.steps[number - 1]
        line = [*self.recipe.launch, "training.sft"]
        for name, value in options.items():
            line += [name, str(value)]
        _run(line)
        return durable.read_json(folder / "sft" / "summary.json")

    def _answer(self, folder: Path, model: str) -> dict[str, dict[str, Any]]:
        """What a model answers to all questions, by the number of the sample."""
        questions, answers = folder / "questions.jsonl", folder / "answers.jsonl"
        asked = [{"id": str(place), **sample.asked} for place, sample in enumerate(self.samples)]
        _write_lines(questions, asked)
        line = [sys.executable, "-m", "serving.offline", str(questions), str(answers)]
        _run([*line, "--model", model, *self.recipe.answers])
        entries = {}
        for written in durable.whole_lines(answers):
            entry = json.loads(written)
            entries[entry["id"]] = entry
        return entries

    def _row(
        self, number: int, selection: list[dict[str, Any]], summary: dict[str, Any]
    ) -> dict[str, Any]:
        """The row of an iteration in the report."""
        high = [entry for entry in selection if entry["is_rated_high"]]
        errors = [entry for entry in selection if entry["is_error"]]
        added = [entry for entry in errors if not entry["is_rated_high"]]
        return {
            "iteration": number,
            "threshold": self.recipe.thresholds[number - 1],
            "samples": len(selection),
            "rated high": len(high),
            "errors of the model before": len(errors),
            "errors that were added": len(added),
            "trained on": len(high) + len(added),
            "steps": summary["steps"],
            "first loss": summary["first_loss"],
            "last loss": summary["last_loss"],
        }

    def _check_same_run(self) -> None:
        """Check that the output directory is of this recipe and data, and record them."""
        described = json.loads(json.dumps(dataclasses.asdict(self.recipe), default=str))
        described["rows"] = len(self.samples)
        for free in ("answers", "launch"):
            del described[free]
        path = self.folder / "run.json"
        before = durable.read_json(path)
        if before is not None and before != described:
            changed = [name for name in described if before.get(name) != described[name]]
            raise ValueError(
                f"output_dir={self.folder} has other iterations ({', '.join(changed)} changed). "
                "Use another output_dir, or delete that one."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        durable.write_json(path, described)


def load_samples(paths: Sequence[str], image_root: str | None) -> list[Sample]:
    """The samples of JSONL files.

    Args:
        paths: of the files.
        image_root: that image paths are relative to; by default each file's directory.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a row without an answer or a solution.
    """
    samples = [sample_of(row) for _, row in read_solved_rows(paths, image_root)]
    if not samples:
        raise ValueError(f"data {list(paths)}: no row.")
    return samples


def sample_of(read: SolvedRow) -> Sample:
    """A row as a sample.

    Raises:
        ValueError: a row without an answer.
    """
    if not read.answer:
        raise ValueError(f"a row has no answer to train on: {read.sample.turns[-1][0][:60]!r}")
    images = [str(path.resolve()) for path in read.images]
    return Sample(
        row=row_with_absolute_images(read),
        asked=question_fields(read),
        rated=Rated(
            question=question_with_history(read.sample),
            images=images,
            answer=read.answer,
            solution=read.right.gold,
            kind=read.right.kind,
            options=read.right.options,
        ),
    )


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    durable.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _run(line: Sequence[str]) -> None:
    """Run a command to its end.

    Raises:
        ValueError: it failed; what it printed says why.
    """
    done = subprocess.run(line)
    if done.returncode:
        raise ValueError(f"{' '.join(line[:6])} … failed with exit status {done.returncode}.")


def read_recipe(path: str) -> IterationRecipe:
    """The recipe in a YAML file.

    Raises:
        ValueError: an unknown key, a missing one, or a value that does not fit.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values.")
    known = {field.name for field in dataclasses.fields(IterationRecipe)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; expected some of {sorted(known)}.")
    try:
        return IterationRecipe(**content)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


def main() -> int:
    """Run the recipe of the command line, and print the rows of the report."""
    parser = argument_parser("training.iterate", __doc__)
    parser.add_argument("--config", required=True, help="YAML file")
    arguments = parser.parse_args()

    def action() -> None:
        """Run the iterations."""
        for row in Iterations(read_recipe(arguments.config)).run():
            print(json.dumps(row))

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
