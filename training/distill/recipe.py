"""What a recipe of distillation says, checked; training/recipes/nano/distill.yaml is one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import yaml

from serving.sampling import Sampling
from training.distill.length import LengthSettings
from training.distill.records import Shard
from training.settings import settings_from

GENERATORS = ("local", "vllm", "endpoint")
JUDGES = ("endpoint", "solution")
INTEGRATIONS = ("judge", "rules")
CHECKS = ("rule", "judge-wrong")
REVISIONS = ("judge", "data", "none")
# What the judge scores, each from 0 to 10
JUDGED_SCORES = ("necessity", "quality", "difficulty", "reasoning", "integration")


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
    """The model that is distilled from.

    Attributes:
        kind: local (transformers), vllm (its offline engine), or endpoint.
        model: a directory or an id on the Hub; of endpoints the name that they serve.
        urls: of endpoints.
        concurrency: requests that an endpoint gets at a time.
        timeout: seconds that a request may take.
        dtype: of a model that is loaded.
        batch_size: questions that transformers answers together.
        tensor_parallel: GPUs of vLLM.
        vllm_options: further arguments of vLLM's `LLM`.
        thinks: whether the model behind endpoints thinks before it answers.

    Raises:
        ValueError: values that do not belong together.
    """

    kind: str
    model: str
    urls: list[str] = dataclasses.field(default_factory=list)
    concurrency: int = 32
    timeout: float = 7200.0
    dtype: str = "bfloat16"
    batch_size: int = 8
    tensor_parallel: int = 1
    vllm_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    thinks: bool = True

    def __post_init__(self) -> None:
        _one_of("generator: kind", self.kind, GENERATORS)
        _urls_fit("generator", self.kind, self.urls)


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """What scores, checks and revises.

    Attributes:
        kind: endpoint (a served model), or solution (the rows' own fields, by rule).
        model: that the endpoints serve.
        urls: of endpoints.
        concurrency: requests that an endpoint gets at a time.
        timeout: seconds that a request may take.
        tries: replies that the judge may give until one has its form.
        max_new_tokens, temperature: of its replies.
        json_schema: whether the endpoints take JSON schemas; null finds out.
        scores: of kind solution, where each of JUDGED_SCORES is: the name of a row's field, or the
            number that all rows have.

    Raises:
        ValueError: values that do not belong together.
    """

    kind: str
    model: str | None = None
    urls: list[str] = dataclasses.field(default_factory=list)
    concurrency: int = 32
    timeout: float = 1800.0
    tries: int = 3
    max_new_tokens: int = 8192
    temperature: float = 0.0
    json_schema: bool | None = None
    scores: dict[str, str | float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("judge: kind", self.kind, JUDGES)
        _urls_fit("judge", self.kind, self.urls)
        if self.kind == "endpoint" and (not self.model or self.scores):
            raise ValueError("judge: an endpoint needs model, and has no scores of its own.")
        if self.tries < 1:
            raise ValueError(f"judge: tries {self.tries}: expected at least 1.")
        unknown = sorted(set(self.scores) - set(JUDGED_SCORES))
        if unknown:
            raise ValueError(
                f"judge: scores {unknown[0]!r}: expected some of {', '.join(JUDGED_SCORES)}."
            )


@dataclasses.dataclass(frozen=True)
class TilingSettings:
    """How the generator tiles images, against which their resolution is measured.

    Attributes:
        tile_size: side of a tile, pixels.
        max_tiles: of an image, thumbnail not counted.
        tokens_per_tile: for the estimate.
    """

    tile_size: int = 448
    max_tiles: int = 12
    tokens_per_tile: int = 256


@dataclasses.dataclass(frozen=True)
class CostSettings:
    """What the estimate is made with; what is left out (null) leaves out a line of it.

    Attributes:
        chain_tokens: that a try is expected to have.
        judge_tokens: that a reply of the judge is expected to have.
        wrong_share: of samples without a right try, which are to be revised.
        generator_tokens_per_second, judge_tokens_per_second: that all endpoints write together.
        generator_gpus, judge_gpus: of them.
        gpu_hour: its price.
    """

    chain_tokens: int = 2000
    judge_tokens: int = 300
    wrong_share: float = 0.3
    generator_tokens_per_second: float | None = None
    judge_tokens_per_second: float | None = None
    generator_gpus: int | None = None
    judge_gpus: int | None = None
    gpu_hour: float | None = None


@dataclasses.dataclass(frozen=True)
class DistillRecipe:
    """A recipe.

    Attributes:
        data: JSONL files of conversations, with a `solution` or a box in the last answer.
        output_dir: of all stages.
        generator, judge, length, tiling, cost: see their classes.
        sampling: settings of serving.sampling.Sampling, but for penalty and number of answers.
        tries: chains that the model writes to each question.
        integration: S_I by the judge, or by rules of the question's words.
        check: a chain is right by rule, or where the rule calls it wrong also by the judge.
        revise: a wrong chain is revised by the judge, replaced by the data's own, or set aside.
        revisions: attempts of the judge at a chain.
        prompts: files in place of this package's prompts.
        image_root: that image paths are relative to; by default each data file's directory.
        shard: the part of the data that this machine works on, as 0/2.
        workers: threads of what is computed here.
        max_failures_in_a_row: requests without a reply after which a stage stops.

    Raises:
        ValueError: values that contradict each other.
    """

    data: list[str]
    output_dir: str
    generator: GeneratorSettings
    judge: JudgeSettings
    sampling: Sampling
    length: LengthSettings = dataclasses.field(default_factory=LengthSettings)
    tiling: TilingSettings = dataclasses.field(default_factory=TilingSettings)
    cost: CostSettings = dataclasses.field(default_factory=CostSettings)
    tries: int = 4
    integration: str = "judge"
    check: str = "rule"
    revise: str = "judge"
    revisions: int = 2
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    image_root: str | None = None
    shard: str = "0/1"
    workers: int = dataclasses.field(default_factory=lambda: min(8, os.cpu_count() or 1))
    max_failures_in_a_row: int = 20

    def __post_init__(self) -> None:
        _one_of("integration", self.integration, INTEGRATIONS)
        _one_of("check", self.check, CHECKS)
        _one_of("revise", self.revise, REVISIONS)
        for name in ("tries", "revisions", "workers", "max_failures_in_a_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1.")
        if self.tries > 1 and not self.sampling.temperature:
            raise ValueError(
                f"tries {self.tries} at temperature 0 would all be the same: set a temperature in "
                "sampling (the report has 0.6)."
            )
        if self.judge.kind == "solution":
            self._check_without_model()
        Shard.parse(self.shard)

    def _check_without_model(self) -> None:
        """Check that nothing is asked of a judge that is no model."""
        if self.check != "rule" or self.revise == "judge":
            raise ValueError(
                "judge: kind solution is no model: expected check: rule, and revise: data or none."
            )
        needed = set(JUDGED_SCORES)
        if self.integration == "rules":
            needed.remove("integration")
        missing = sorted(needed - set(self.judge.scores))
        if missing:
            raise ValueError(f"judge: scores has no {missing[0]!r}; expected {sorted(needed)}.")

    @property
    def part(self) -> Shard:
        """The shard."""
        return Shard.parse(self.shard)

    @property
    def folder(self) -> Path:
        """Of the shard's files."""
        return Path(self.output_dir) / self.part.folder


NESTED = {
    "generator": GeneratorSettings,
    "judge": JudgeSettings,
    "sampling": Sampling,
    "length": LengthSettings,
    "tiling": TilingSettings,
    "cost": CostSettings,
}
# Set for each sample, or by `tries`
NOT_OF_THE_RUN = ("repetition_penalty", "answers")


def read_recipe(path: str, changes: dict[str, Any] | None = None) -> DistillRecipe:
    """The recipe in a YAML file.

    Args:
        path: of the file.
        changes: values of the command line in place of the file's; None is none.

    Raises:
        ValueError: an unknown key, a missing one, or a value that does not fit.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values.")
    for name, value in (changes or {}).items():
        if value is not None:
            content[name] = value
    for name, settings in NESTED.items():
        if name in content:
            left_out = NOT_OF_THE_RUN if settings is Sampling else ()
            content[name] = settings_from(f"{path}: {name}", settings, content[name], left_out)
    return settings_from(path, DistillRecipe, content)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r}: expected one of {', '.join(known)}.")


def _urls_fit(name: str, kind: str, urls: list[str]) -> None:
    if (kind == "endpoint") != bool(urls):
        raise ValueError(f"{name}: urls are needed by kind endpoint, and by no other.")
