"""Iterative SFT: on what a reward model rates high, and on the model's own errors (report, 2.2).

    python -m training.iterate --config training/recipes/nano/iterate.yaml
    python -m training.iterate --config training/recipes/38b/iterate.yaml --until rating

For t = 1 … T, with D the data and M_0 the model after SFT on all of it:

    D_t = {(x, y) ∈ D : R(x, y) ≥ τ_t} ∪ {(x, y) ∈ D : M_{t−1} answers x wrongly}
    M_t = M_{t−1}, trained on D_t for an epoch

with τ = 2, 3, 4, 5. The output directory has `ratings.jsonl`, and of each iteration a directory
with the model's answers, `selection.jsonl` (which sample, its rating, how the model erred),
`data.jsonl` (D_t), `rated_high.jsonl` (the samples of a rating of at least τ_t: the last
iteration's are the data of GRPO), the training, and a row of `report.json`. Run again after an
interruption it goes on: nothing is rated, answered or trained twice. With `--until rating` it ends
when all is rated, and the reward model is not asked again. While a command that it has
started still runs, a second start is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import durable
from answers.judging import Judge
from training.command_line import argument_parser, exit_code
from training.raters import Rated, RatingError, make_rater, settings_of
from training.resume import has_results
from training.settings import settings_from
from training.solved_rows import (
    SolvedRow,
    question_fields,
    question_with_history,
    read_solved_rows,
    row_with_absolute_images,
)

REPORT = "report.json"
RATED_HIGH = "rated_high.jsonl"
SOME_FAILED = 1  # exit status of serving.offline where a question failed and the others did not


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
        max_broken_share: largest share of samples that the reward model does not rate, or that
            M_{t−1} cannot be asked, for instance since an image is damaged. They are left out of
            D_t, and `selection.jsonl` says why. A larger share is an error.
        reward: see training/raters.py.
        answers: arguments of serving.offline, by which M_{t−1} answers.
        launch: what starts a Python module; `accelerate launch …  -m` for several GPUs.
        image_root: that image paths are relative to; by default each data file's directory.

    Raises:
        ValueError: lists of different lengths, or thresholds or a share that are none.
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
    max_broken_share: float = 0.001

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
        if not 0 <= self.max_broken_share < 1:
            raise ValueError(f"max_broken_share={self.max_broken_share} must be in [0, 1).")
        self.reward_settings = settings_of(self.reward)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample of the data.

    Attributes:
        row: as the data have it, its images as absolute paths.
        asked: the fields of a question for serving.offline.
        rated: what a reward model sees.
        digest: of the bytes of its line.
    """

    row: dict[str, Any]
    asked: dict[str, Any]
    rated: Rated
    digest: bytes


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
        self.launch = _launch(recipe.launch)
        if not Path(recipe.sft).is_file():
            raise FileNotFoundError(f"sft: {recipe.sft} does not exist.")
        self.samples = load_samples(recipe.data, recipe.image_root)
        self._check_same_run()
        self._lock: int | None = None

    def run(self, only_rating: bool = False) -> list[dict[str, Any]]:
        """Run what is left of all iterations.

        Args:
            only_rating: whether to stop when all is rated.

        Returns:
            The rows of the report.

        Raises:
            ValueError: a stage fails, or another start of these iterations still runs.
        """
        with _alone(self.folder) as self._lock:
            ratings = self.rate()
            return [] if only_rating else self._iterate(ratings)

    def _iterate(self, ratings: Sequence[float | None]) -> list[dict[str, Any]]:
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

    def rate(self) -> list[float | None]:
        """The rating of each sample, which does not depend on the iteration; None without one."""
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
        self._check_broken(failed, "have no rating")
        return [ratings.get(number) for number in range(len(self.samples))]

    def _check_broken(self, reasons: Sequence[str], problem: str) -> None:
        """Raise ValueError where more samples are broken than the recipe allows."""
        if len(reasons) > self.recipe.max_broken_share * len(self.samples):
            raise ValueError(
                f"{len(reasons)} of {len(self.samples)} samples {problem} ({reasons[0]}); "
                f"max_broken_share allows a share of {self.recipe.max_broken_share:g}. Run the "
                "command again to ask for them, mend the data, or raise it."
            )

    def select(
        self, number: int, model: str, ratings: Sequence[float | None]
    ) -> list[dict[str, Any]]:
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
                found = _judged(judge, sample, ratings[place], threshold, answers[str(place)])
                entry = {"number": place, **found}
                entries.append(entry)
                if entry["is_rated_high"]:
                    rated_high.append(sample.row)
                if entry["is_rated_high"] or entry["is_error"]:
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
        summary = durable.read_json(folder / "sft" / "summary.json")
        if summary is not None and has_results(folder / "sft", summary):
            return summary
        options = {
            "--config": self.recipe.sft,
            "--model": model,
            "--data": folder / "data.jsonl",
            "--output_dir": folder / "sft",
            "--learning_rate": self.recipe.learning_rates[number - 1],
        }
        if self.recipe.steps is not None:
            options["--max_steps"] = self.recipe.steps[number - 1]
        line = [*self.launch, "training.sft"]
        for name, value in options.items():
            line += [name, str(value)]
        self._run(line)
        return durable.read_json(folder / "sft" / "summary.json")

    def _answer(self, folder: Path, model: str) -> dict[str, dict[str, Any]]:
        """What a model answers to all questions, or why it does not, by the sample's number."""
        questions, answers = folder / "questions.jsonl", folder / "answers.jsonl"
        asked = [{"id": str(place), **sample.asked} for place, sample in enumerate(self.samples)]
        _write_lines(questions, asked)
        line = [sys.executable, "-m", "serving.offline", str(questions), str(answers)]
        self._run([*line, "--model", model, *self.recipe.answers], allowed=(0, SOME_FAILED))
        entries = {}
        for written in durable.whole_lines(answers):
            entry = json.loads(written)
            entries[entry["id"]] = entry
        if len(entries) < len(asked):
            raise ValueError(
                f"{folder}: serving.offline answered {len(entries)} of {len(asked)} questions; "
                "what it printed says why."
            )
        failed = [entry["error"] for entry in entries.values() if "error" in entry]
        self._check_broken(failed, f"cannot be asked of {model}")
        return entries

    def _run(self, line: Sequence[str], allowed: Sequence[int] = (0,)) -> None:
        """Run a command to its end.

        Args:
            line: of the command.
            allowed: exit statuses that are no failure.

        Raises:
            ValueError: it failed; what it printed says why.
        """
        # It keeps the folder locked while it runs, also where this process is killed
        inherited = () if self._lock is None else (self._lock,)
        done = subprocess.run(line, pass_fds=inherited)
        if done.returncode not in allowed:
            raise ValueError(f"{' '.join(line[:6])} … failed with exit status {done.returncode}.")

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
        """Check that the output directory is of these recipes and data, and record them."""
        described = json.loads(json.dumps(dataclasses.asdict(self.recipe), default=str))
        content = hashlib.sha256(b"".join(sample.digest for sample in self.samples))
        described["data_fingerprint"] = content.hexdigest()[:16]
        # Iterations that are done are not trained again, so the rest has to be trained as they were
        described["content of sft"] = Path(self.recipe.sft).read_text(encoding="utf-8")
        for free in ("answers", "launch", "max_broken_share"):
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
    rows = read_solved_rows(paths, image_root, with_answers=True)
    samples = [sample_of(row, line) for line, row in rows]
    if not samples:
        raise ValueError(f"data {list(paths)}: no row.")
    return samples


def sample_of(read: SolvedRow, line: bytes) -> Sample:
    """A row as a sample.

    Args:
        read: the row.
        line: the bytes of its line.
    """
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
        digest=hashlib.sha256(line).digest(),
    )


def _launch(words: Sequence[str]) -> list[str]:
    """The words that start a module, of which the first may be a program beside this Python.

    Raises:
        ValueError: there is no such program.
    """
    beside = str(Path(sys.executable).parent)
    program = shutil.which(words[0]) or shutil.which(words[0], path=beside)
    if program is None:
        raise ValueError(f"launch: {words[0]} is not installed: it has to start the trainings.")
    return [program, *words[1:]]


def _judged(
    judge: Judge,
    sample: Sample,
    rating: float | None,
    threshold: float | None,
    answered: dict[str, Any],
) -> dict[str, Any]:
    """The line of `selection.jsonl` of a sample, without its number.

    Args:
        judge: of answers.
        sample: that is judged.
        rating: of the sample, or None.
        threshold: τ_t, or None where no rating counts.
        answered: what the model before answers, or an error; see serving/question_file.py.
    """
    left_out = {
        "rating": rating,
        "is_rated_high": False,
        "is_error": False,
        "said": None,
        "reason": None,
    }
    if rating is None:
        return {**left_out, "problem": "it has no rating"}
    if "error" in answered:
        return {**left_out, "problem": answered["error"]}
    # Without its thinking; of one that was never closed nothing is left.
    verdict = judge.judge(sample.rated.right, answered["answer"])
    return {
        "rating": rating,
        "is_rated_high": threshold is not None and rating >= threshold,
        "is_error": not verdict.is_right,
        "said": verdict.answer,
        "reason": verdict.reason,
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Lock a folder for this process, and for those that get the descriptor that this gives.

    Raises:
        ValueError: another process has locked it.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"output_dir={folder}: a command of these iterations still runs. Wait for it, or "
                "end it."
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    durable.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_recipe(path: str) -> IterationRecipe:
    """The recipe in a YAML file.

    Raises:
        ValueError: an unknown key, a missing one, or a value that does not fit.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return settings_from(path, IterationRecipe, content)


def main() -> int:
    """Run the recipe of the command line, and print the rows of the report."""
    parser = argument_parser("training.iterate", __doc__)
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--until", choices=["rating"], help="stop when all samples are rated")
    arguments = parser.parse_args()

    def action() -> None:
        """Run the iterations."""
        iterations = Iterations(read_recipe(arguments.config))
        for row in iterations.run(only_rating=arguments.until is not None):
            print(json.dumps(row))

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
