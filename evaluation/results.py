"""What a run has answered: its files of answers and verdicts, put together and summed up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import durable
from evaluation import statistics
from evaluation.items import Item


class Answer(NamedTuple):
    """An answer to a question, with its verdict.

    Attributes:
        number: of the question in its benchmark, from 0.
        run: from 0.
        text: of the answer; with the thinking, where the server has left it there.
        reasoning: the thinking, where it came apart.
        is_truncated: whether it was cut at the largest number of tokens.
        tokens: of thinking and answer.
        seconds: that it took.
        is_right: what it counts, or None where it could not be judged.
        rule: whether it is right by rule.
        judge: whether the judge model calls it right, or None where it was not asked.
        said: what was taken for the answer.
        reason: of the verdict.
    """

    number: int
    run: int
    text: str
    reasoning: str
    is_truncated: bool
    tokens: int
    seconds: float
    is_right: bool | None
    rule: bool | None
    judge: bool | None
    said: str
    reason: str


class Results(NamedTuple):
    """A benchmark of a run.

    Attributes:
        name: of the benchmark.
        items: its questions.
        repeats: answers that each question is to have.
        answers: that are there, by (number of the question, run).
        failures: why others are not, by the same.
    """

    name: str
    items: list[Item]
    repeats: int
    answers: dict[tuple[int, int], Answer]
    failures: dict[tuple[int, int], str]

    @property
    def is_complete(self) -> bool:
        """Whether every answer is there, with its verdict."""
        judged = [answer for answer in self.answers.values() if answer.is_right is not None]
        return len(judged) == self.repeats * len(self.items)


class Summary(NamedTuple):
    """A line of the table.

    Attributes:
        label: of the line.
        questions: how many there are.
        wanted: answers that they are to have.
        right: answers that are right.
        judged: answers with a verdict.
        estimate: of the score, or None where nothing was judged.
        truncated: answers that were cut.
        failed: answers that are missing, or were not judged.
        by_judge: the share that the judge calls right, or None where it did not see all.
        agreement: the share of answers on which rule and judge agree, likewise.
        tokens: of all answers.
    """

    label: str
    questions: int
    wanted: int
    right: int
    judged: int
    estimate: statistics.Estimate | None
    truncated: int
    failed: int
    by_judge: float | None
    agreement: float | None
    tokens: int


def read_answers(folder: Path, repeats: int) -> dict[tuple[int, int], Answer]:
    """The answers of a benchmark that are on the disk; of several to one question, the last.

    Args:
        folder: of the benchmark in its run.
        repeats: answers that each question is to have.
    """
    verdicts = {row["index"]: row["sample_score"]["score"] for row in _rows(folder / "reviews")}
    answers = {}
    for row in _rows(folder / "predictions"):
        index = row["index"]
        key = (index // repeats, index % repeats)
        answers[key] = _answer(*key, row["model_output"], verdicts.get(index))
    return answers


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all files below a folder that were written whole."""
    rows = []
    for path in sorted(folder.rglob("*.jsonl")):
        rows += [json.loads(line) for line in durable.whole_lines(path) if line.strip()]
    return rows


def _answer(number: int, run: int, output: dict[str, Any], score: dict[str, Any] | None) -> Answer:
    """An answer from EvalScope's rows.

    Args:
        number: of the question.
        run: from 0.
        output: EvalScope's output of the model.
        score: EvalScope's score of it, or None where it was not judged.
    """
    choice = output["choices"][0]
    content = choice["message"]["content"]
    text, reasoning = content, ""
    if not isinstance(content, str):
        text = "".join(part["text"] for part in content if part["type"] == "text")
        reasoning = "".join(part["reasoning"] for part in content if part["type"] == "reasoning")
    verdict: dict[str, Any] = {}
    if score is not None:
        verdict = {
            "is_right": bool(score["value"]["accuracy"]),
            "said": score["extracted_prediction"],
            "reason": score["explanation"],
            **score["metadata"],
        }
    return Answer(
        number=number,
        run=run,
        text=text,
        reasoning=reasoning,
        is_truncated=choice["stop_reason"] == "max_tokens",
        tokens=(output["usage"] or {}).get("output_tokens", 0),
        seconds=output["time"] or 0.0,
        is_right=verdict.get("is_right"),
        rule=verdict.get("rule"),
        judge=verdict.get("judge"),
        said=verdict.get("said", ""),
        reason=verdict.get("reason", "was not judged"),
    )


def summarize(results: Results, label: str, group: str | None = None) -> Summary:
    """A line of the table: all questions of a benchmark, or those of a group."""
    numbers = [
        number for number, item in enumerate(results.items) if group is None or item.group == group
    ]
    runs = [
        [_is_right(results, number, run) for number in numbers] for run in range(results.repeats)
    ]
    verdicts = [right for run in runs for right in run if right is not None]
    asked = set(numbers)
    answers = [answer for answer in results.answers.values() if answer.number in asked]
    by_judge = [answer for answer in answers if answer.judge is not None]
    agreement, share = None, None
    if by_judge and len(by_judge) == len(verdicts):
        share = sum(bool(answer.judge) for answer in by_judge) / len(by_judge)
        agreement = sum(answer.judge == answer.rule for answer in by_judge) / len(by_judge)
    return Summary(
        label=label,
        questions=len(numbers),
        wanted=len(numbers) * results.repeats,
        right=sum(verdicts),
        judged=len(verdicts),
        estimate=statistics.estimate(runs),
        truncated=sum(answer.is_truncated for answer in answers),
        failed=len(numbers) * results.repeats - len(verdicts),
        by_judge=share,
        agreement=agreement,
        tokens=sum(answer.tokens for answer in answers),
    )


def groups_of(items: Sequence[Item]) -> list[str]:
    """The groups of a benchmark, in the order of its questions."""
    return list(dict.fromkeys(item.group for item in items if item.group))


def _is_right(results: Results, number: int, run: int) -> bool | None:
    answer = results.answers.get((number, run))
    return None if answer is None else answer.is_right
