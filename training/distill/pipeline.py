"""The stages of a distillation, one after another, each with its file.

    clarity.jsonl, necessity.jsonl   the halves of S_v
    text.jsonl                       S_t
    integration.jsonl                S_I
    ranges.json, length.jsonl        the smallest and largest scores; P of each sample
    tries.jsonl                      the chains that the model wrote under P
    check.jsonl                      which are right, and which is kept
    revision.jsonl                   right chains in place of wrong ones
    distilled.jsonl                  data for training.sft
    set_aside.jsonl, report.json, page.html

A sample that a stage sets aside is not seen by the next ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import durable
from evaluation.run_folder import folder_of_run
from serving.client import Client
from serving.concurrency import as_finished
from serving.sampling import Sampling
from training.distill import check, generate, integration, necessity, output, revise, text
from training.distill.clarity import clarity_of_files
from training.distill.fields import scores_of_row
from training.distill.judge import JsonJudge
from training.distill.length import (
    Ranges,
    Scores,
    exact_penalty,
    joined,
    normalised,
    penalty_of,
    ranges_of,
)
from training.distill.prompt_files import read_prompts
from training.distill.recipe import DistillRecipe, JudgeSettings
from training.distill.records import (
    SET_ASIDE,
    Entry,
    Sample,
    SetAside,
    Shard,
    StageFile,
    Unanswered,
    forget_set_aside,
    read_data,
)

STAGES = (
    "clarity",
    "necessity",
    "text",
    "integration",
    "length",
    "tries",
    "check",
    "revision",
)
SECONDS_BETWEEN_LOOKS = 2.0  # at the files of other shards
NO_IMAGE = "no image"  # "by" of a score that needs no request, since the question has no image
UNANSWERED = "unanswered"  # marks a line of a sample that is asked about again at the next start
# What may change between two starts of one run
FREE = ("urls", "concurrency", "timeout", "batch_size", "tensor_parallel", "vllm_options")
FREE_OF_RECIPE = ("output_dir", "cost", "workers", "max_failures_in_a_row", "shard", "data")

Function = Callable[[Sample], dict[str, Any]]
Lines = Mapping[int, Entry]  # of a stage, by the number of the sample


class Distillation:
    """A distillation by a recipe, or the part of it that this machine works on.

    Args:
        recipe: what is done.

    Raises:
        FileNotFoundError, ValueError: data or prompts that are not there.
    """

    def __init__(self, recipe: DistillRecipe) -> None:
        self.recipe = recipe
        self.folder = recipe.folder
        self.prompts = read_prompts(recipe.prompts)
        self.data = read_data(recipe.data, recipe.image_root, recipe.part)
        self.lines: dict[str, Lines] = {}
        self.tries: dict[int, list[Entry]] = {}
        self._judge: JsonJudge | None = None
        self._checker: check.Checker | None = None
        self._lock = threading.Lock()

    def run(self, until: str = "", retry: bool = False) -> dict[str, Any] | None:
        """Do what is left.

        Args:
            until: the last stage to be done; "" for all, and the results.
            retry: whether samples that were set aside are tried again.

        Returns:
            The report; None where it ends before.

        Raises:
            ValueError: a folder of another run, an endpoint that cannot be asked, or one that does
                not answer any more.
        """
        with folder_of_run(self.folder, self.settings(), "output_dir"):
            if retry:
                for name in STAGES:
                    forget_set_aside(self.path(name))
            try:
                for name, do in self._steps().items():
                    do()
                    if name == until:
                        return None
            finally:
                if self._checker is not None:
                    self._checker.close()
            return output.write(output.Finished(self.recipe, self.data, self.lines, self.tries))

    def settings(self) -> dict[str, Any]:
        """Everything that decides what comes out."""
        described: dict[str, Any] = dataclasses.asdict(self.recipe)
        for name in FREE_OF_RECIPE:
            del described[name]
        for part in ("generator", "judge"):
            for name in FREE:
                described[part].pop(name, None)
        for use, prompt in self.prompts.items():
            described["prompts"][use] = f"{prompt.name} {prompt.digest}"
        described["data"] = self.data.digest
        return json.loads(json.dumps(described))

    def path(self, stage: str) -> Path:
        """The file of a stage."""
        return self.folder / f"{stage}.jsonl"

    def judge(self) -> JsonJudge:
        """The judge, with its endpoints checked when it is first needed."""
        with self._lock:
            if self._judge is None:
                self._judge = make_judge(self.recipe.judge)
            return self._judge

    def checker(self) -> check.Checker:
        """What says whether chains are right, the same for all stages."""
        if self._checker is None:
            judge = None
            if self.recipe.check == "judge-wrong":
                judge = self.judge()
            self._checker = check.Checker(judge, self.prompts["verdict"], self.recipe.workers)
        return self._checker

    def _steps(self) -> dict[str, Callable[[], None]]:
        """What does each of STAGES."""
        return {
            "clarity": self._do_clarity,
            "necessity": self._do_necessity,
            "text": self._do_text,
            "integration": self._do_integration,
            "length": self._do_length,
            "tries": self._do_tries,
            "check": self._do_check,
            "revision": self._do_revision,
        }

    # -- the stages, in their order ----------------------------------------------------------------

    def _do_clarity(self) -> None:
        tiling = self.recipe.tiling

        def clarity(sample: Sample) -> dict[str, Any]:
            """The clarity of each image, and of the least clear one."""
            try:
                found = clarity_of_files(sample.images, tiling.tile_size, tiling.max_tiles)
            except (ValueError, OSError) as error:
                raise SetAside(f"an image cannot be read: {error}") from error
            images = [image._asdict() for image in found]
            values = [image.value for image in found]
            return {"images": images, "clarity": min(values, default=None)}

        self._run("clarity", self.data.samples, clarity, self.recipe.workers)

    def _do_necessity(self) -> None:
        function = self._scorer("necessity", necessity.by_judge, ("necessity",))

        def score(sample: Sample) -> dict[str, Any]:
            """A question without an image has nothing that could be necessary."""
            if not sample.images:
                return {"necessity": None, "by": NO_IMAGE}
            return function(sample)

        self._run("necessity", self._left("clarity"), score, self._judge_workers())

    def _do_text(self) -> None:
        function = self._scorer("text", text.by_judge, text.NAMES)
        self._run("text", self._left("necessity"), function, self._judge_workers())

    def _do_integration(self) -> None:
        function: Function = integration.by_rules
        if self.recipe.integration == "judge":
            function = self._scorer("integration", integration.by_judge, ("integration",))

        def score(sample: Sample) -> dict[str, Any]:
            """A question without an image has nothing to integrate."""
            if not sample.images:
                return {"integration": None, "by": NO_IMAGE}
            return function(sample)

        self._run("integration", self._left("text"), score, self._judge_workers())
        # Once, since chains are written under what follows from them; other shards wait for it
        own = self.folder / "ranges.json"
        if durable.read_json(own) is None:
            durable.write_json(own, ranges_of(self._scored().values()))

    def _do_length(self) -> None:
        """P of each sample; the file is written anew, and says the same as before."""
        scored = self._scored()
        ranges = self._ranges()
        settings = self.recipe.length
        entries = {}
        for number, scores in scored.items():
            unit = normalised(scores, ranges)
            entries[number] = {
                "number": number,
                "scores": scores._asdict(),
                "normalised": unit._asdict(),
                "P": penalty_of(unit, settings),
                "P_exact": exact_penalty(unit, settings),
            }
        durable.write_text(self.path("length"), output.as_lines(entries.values()))
        self.lines["length"] = entries

    def _do_tries(self) -> None:
        """The chains of each sample; failed ones are asked for again until they are checked."""
        samples = self._left("length")
        checked = self._done("check")
        waiting = [sample for sample in samples if sample.number not in checked]
        penalties = {number: entry["P"] for number, entry in self.lines["length"].items()}
        with StageFile(self.path("tries"), generate.KEY) as file:
            questions = generate.questions_of(waiting, penalties, self.recipe.tries, file.entries)
            if questions:
                self._write_chains(file, questions, len(samples) * self.recipe.tries)
            self.tries = {}
            for (number, _), entry in sorted(file.entries.items()):
                self.tries.setdefault(number, []).append(entry)

    def _write_chains(self, file: StageFile, questions: Sequence[Any], total: int) -> None:
        """Have the generator write what is missing."""
        most_images = max(len(question["images"]) for question in questions)
        engine = generate.make_engine(self.recipe.generator, self.recipe.sampling, most_images)
        fuse = Fuse("tries", self.recipe.max_failures_in_a_row)
        with progress("tries", total, total - len(questions), "chain") as bar:
            for entry in generate.chains(engine, questions):
                file.add(entry)
                bar.update()
                fuse.see("error" in entry, entry.get("error", ""))

    def _do_check(self) -> None:
        checker = self.checker()

        def verdicts(sample: Sample) -> dict[str, Any]:
            """The verdicts on all chains of a sample."""
            return checker.check(sample, self.tries[sample.number])

        self._run("check", self._left("length"), verdicts, self._judge_workers())

    def _do_revision(self) -> None:
        wrong = []
        for sample in self._left("check"):
            if self.lines["check"][sample.number]["kept"] is None:
                wrong.append(sample)
        function: Function = _set_aside_wrong
        if wrong:
            function = self._revision()
        self._run("revision", wrong, function, self._judge_workers())

    def _revision(self) -> Function:
        """What takes the place of a wrong chain."""
        checker = self.checker()
        if self.recipe.revise == "none":
            return _set_aside_wrong
        if self.recipe.revise == "data":
            return functools.partial(revise.from_data, checker=checker)
        reviser = revise.Reviser(
            self.judge(), self.prompts["revision"], checker, self.recipe.revisions
        )

        def by_judge(sample: Sample) -> dict[str, Any]:
            """A revised chain of a sample."""
            written = [entry for entry in self.tries[sample.number] if "error" not in entry]
            entry = check.shortest(written)
            chain = check.Chain(entry["thinking"], entry["answer"])
            return {**reviser.revise(sample, chain), "revised_try": entry["try"]}

        return by_judge

    # -- what they share ---------------------------------------------------------------------------

    def _scorer(
        self, use: str, by_judge: Callable[..., dict[str, Any]], names: Sequence[str]
    ) -> Function:
        """What scores a sample: the judge, or the row's own fields.

        Args:
            use: of the prompt.
            by_judge: of the stage.
            names: of the scores.
        """
        settings = self.recipe.judge
        if settings.kind == "solution":
            return functools.partial(scores_of_row, sources=settings.scores, names=names)

        def ask(sample: Sample) -> dict[str, Any]:
            """What the judge says."""
            return by_judge(sample, self.judge(), self.prompts[use])

        return ask

    def _judge_workers(self) -> int:
        """Samples that are judged at a time."""
        settings = self.recipe.judge
        if settings.kind == "solution":
            return self.recipe.workers
        return settings.concurrency * len(settings.urls)

    def _done(self, stage: str) -> set[int]:
        """The samples that need not pass a stage again, by number."""
        done = set()
        with StageFile(self.path(stage)) as file:
            for entry in file.entries.values():
                if UNANSWERED not in entry:
                    done.add(entry["number"])
        return done

    def _left(self, stage: str) -> list[Sample]:
        """The samples that a stage has not set aside."""
        lines = self.lines[stage]
        left = []
        for sample in self.data.samples:
            if SET_ASIDE not in lines.get(sample.number, {SET_ASIDE: ""}):
                left.append(sample)
        return left

    def _run(self, name: str, samples: Sequence[Sample], function: Function, workers: int) -> None:
        """Do what is left of a stage that has a line for each sample.

        Args:
            name: of the stage.
            samples: that it is about.
            function: what it finds of a sample; may raise SetAside.
            workers: samples at a time.

        Raises:
            ValueError: too many requests in a row had no reply.
        """
        done = self._done(name)
        with StageFile(self.path(name)) as file:
            todo = [sample for sample in samples if sample.number not in done]
            fuse = Fuse(name, self.recipe.max_failures_in_a_row)
            work = functools.partial(_line, function, file)
            with progress(name, len(samples), len(samples) - len(todo)) as bar:
                for entry in as_finished(work, todo, workers):
                    bar.update()
                    if entry.get("by") != NO_IMAGE:
                        fuse.see(UNANSWERED in entry, entry.get(SET_ASIDE, ""))
            self.lines[name] = file.by_number()

    def _scored(self) -> dict[int, Scores]:
        """The scores of each sample that has passed all stages of scoring."""
        scored = {}
        for sample in self._left("integration"):
            scored[sample.number] = self._scores(sample.number)
        return scored

    def _scores(self, number: int) -> Scores:
        """S_v, S_t and S_I of a sample."""
        clarity = self.lines["clarity"][number]["clarity"]
        needed = self.lines["necessity"][number]["necessity"]
        said = self.lines["text"][number]
        tied = self.lines["integration"][number]["integration"]
        vision, tie = None, None
        if clarity is not None:
            vision = necessity.score(clarity, needed)
            tie = integration.score(tied)
        return Scores(vision, text.score(*(said[name] for name in text.NAMES)), tie)

    def _ranges(self) -> Ranges:
        """The ranges of the scores over all shards, for which this waits where P needs them."""
        own = durable.read_json(self.folder / "ranges.json")
        count = self.recipe.part.count
        if not self.recipe.length.is_adaptive:
            return own
        ranges = own
        for index in range(count):
            folder = Path(self.recipe.output_dir) / Shard(index, count).folder
            ranges = joined(ranges, wait_for(folder / "ranges.json"))
        return ranges


class Fuse:
    """Stops a stage whose endpoints do not answer any more, before it sets aside all samples.

    Args:
        stage: its name.
        limit: failures in a row.
    """

    def __init__(self, stage: str, limit: int) -> None:
        self.stage = stage
        self.limit = limit
        self.in_a_row = 0

    def see(self, has_failed: bool, reason: str) -> None:
        """Count the result of a request.

        Raises:
            ValueError: too many have failed in a row.
        """
        if not has_failed:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise ValueError(
                f"{self.stage}: {self.in_a_row} failures in a row ({reason}). What was "
                "done is kept; run the command again when the endpoints answer."
            )


def _line(function: Function, file: StageFile, sample: Sample) -> Entry:
    """The line of a sample, which is on the disk when this returns."""
    entry: Entry = {"number": sample.number}
    try:
        entry |= function(sample)
    except Unanswered as error:
        entry |= {SET_ASIDE: str(error), UNANSWERED: True}
    except SetAside as error:
        entry[SET_ASIDE] = str(error)
    file.add(entry)
    return entry


def _set_aside_wrong(sample: Sample) -> dict[str, Any]:
    raise SetAside("no try is right, and the recipe revises none")


def make_judge(settings: JudgeSettings) -> JsonJudge:
    """The judge that a recipe names, with its endpoints checked.

    Raises:
        ValueError: one cannot be reached, does not serve the model, or has no room.
    """
    client = Client(settings.urls, str(settings.model), settings.concurrency, settings.timeout)
    client.check(settings.max_new_tokens)
    sampling = Sampling(settings.max_new_tokens, temperature=settings.temperature)
    return JsonJudge(client, sampling, settings.tries, settings.json_schema)


def wait_for(path: Path) -> Any:
    """The content of a JSON file that another machine writes, as soon as it is there."""
    content = durable.read_json(path)
    if content is None:
        print(f"waiting for {path}, the scores of another shard", file=sys.stderr)
    while content is None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        content = durable.read_json(path)
    return content


def progress(stage: str, total: int, done: int, unit: str = "sample") -> tqdm:
    """The bar of a stage, with its rate; none where all is done."""
    return tqdm(
        desc=stage, total=total, initial=done, unit=unit, mininterval=1, disable=done == total
    )
