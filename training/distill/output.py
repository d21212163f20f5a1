"""What a distillation leaves: data for training.sft, what was set aside, a report and a page.

A line of distilled.jsonl is the row of the data with the new chain as its last answer, its images
as absolute paths, and "distillation": how the chain came about.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import durable
from training.distill import page
from training.distill.check import Chain
from training.distill.recipe import DistillRecipe
from training.distill.records import SET_ASIDE, Data, Entry, Sample, reasons

# The stages whose lines say what a judge was asked
JUDGED = ("necessity", "text", "integration", "check", "revision")
# What a line tells of the stages
TOLD = {
    "clarity": ("clarity",),
    "necessity": ("necessity", "changes_without_image", "relevance"),
    "text": ("quality", "difficulty", "reasoning"),
    "integration": ("integration", "cues"),
}
USER_ROLES = ("human", "user")


class Finished(NamedTuple):
    """All stages of a distillation.

    Attributes:
        recipe: of it.
        data: that was read.
        lines: of each stage that has one for each sample, by name and number.
        tries: the lines of the chains, by the number of the sample.
    """

    recipe: DistillRecipe
    data: Data
    lines: Mapping[str, Mapping[int, Entry]]
    tries: Mapping[int, Sequence[Entry]]


def write(finished: Finished) -> dict[str, Any]:
    """Write the results into the folder of the shard; returns the report, which comes last."""
    folder = finished.recipe.folder
    rows = []
    for sample in finished.data.samples:
        row = row_of(finished, sample)
        if row is not None:
            rows.append(row)
    aside = set_aside_of(finished)
    report = report_of(finished, rows, aside)
    durable.write_text(folder / "distilled.jsonl", as_lines(rows))
    durable.write_text(folder / "set_aside.jsonl", as_lines(aside))
    page.write(folder / page.NAME, page_samples(finished, rows), report)
    durable.write_json(folder / "report.json", report)
    return report


def as_lines(entries: Iterable[Mapping[str, Any]]) -> str:
    """Entries as a JSONL file."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def row_of(finished: Finished, sample: Sample) -> dict[str, Any] | None:
    """The line of a sample in the data; None where it was set aside."""
    number = sample.number
    checked = finished.lines["check"].get(number, {SET_ASIDE: ""})
    if SET_ASIDE in checked:
        return None
    tries = finished.tries[number]
    tokens = None
    revised = None
    if checked["kept"] is not None:
        kept = next(entry for entry in tries if entry["try"] == checked["kept"])
        tokens = kept["tokens"]
    else:
        kept = finished.lines["revision"].get(number, {SET_ASIDE: ""})
        if SET_ASIDE in kept:
            return None
        revised = kept["by"]
    chain = Chain(kept["thinking"], kept["answer"])
    length = finished.lines["length"][number]
    told = {
        "number": number,
        "prompts": prompts_of(finished, number),
        "scores": scores_of(finished, number),
        "normalised": length["normalised"],
        "P": length["P"],
        "tokens": tokens,
        "characters": len(chain.text),
        "tries": len(tries),
        "right_tries": sum(verdict["is_right"] is True for verdict in checked["verdicts"]),
        "tokens_of_tries": [entry.get("tokens") for entry in tries],
        "revised_by": revised,
    }
    row = with_answer(sample.row, chain.text)
    row.setdefault("solution", sample.right.gold)
    return {**row, "distillation": told}


def with_answer(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """A row with another last answer, or with one where it ends with its question."""
    key = "conversations" if row.get("conversations") else "messages"
    messages = list(row[key])
    last = messages[-1]
    if last.get("role", last.get("from")) not in USER_ROLES:
        messages.pop()
    message = {"role": "assistant", "content": answer}
    if "from" in last:
        message = {"from": "gpt", "value": answer}
    return {**row, key: [*messages, message]}


def prompts_of(finished: Finished, number: int) -> dict[str, str]:
    """The prompts that a judge was given for a sample, by stage."""
    prompts = {}
    for stage in JUDGED:
        for record in records_of(finished.lines[stage].get(number, {})):
            prompts[stage] = record["prompt"]
    return prompts


def records_of(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a line of a stage says of requests to the judge: of the line's own, or its verdicts'."""
    asked = [line, *line.get("verdicts", ())]
    return [entry["judge"] for entry in asked if entry.get("judge")]


def scores_of(finished: Finished, number: int) -> dict[str, Any]:
    """All that was scored of a sample, S_v, S_t and S_I, and by whom."""
    scores: dict[str, Any] = {}
    for stage, names in TOLD.items():
        line = finished.lines[stage][number]
        for name in names:
            if name in line:
                scores[name] = line[name]
        if "by" in line:
            scores[f"{stage}_by"] = line["by"]
    return {**scores, **finished.lines["length"][number]["scores"]}


def set_aside_of(finished: Finished) -> list[dict[str, Any]]:
    """The samples that were set aside, with stage and reason, in the order of the stages."""
    where = {sample.number: sample.where for sample in finished.data.samples}
    found = [{**entry, "stage": "reading"} for entry in finished.data.broken]
    for stage, lines in finished.lines.items():
        for entry in reasons(lines.values()):
            number = entry["number"]
            # A file may have lines of earlier starts about samples that were set aside since
            if number in where:
                found.append({**entry, "where": where.pop(number), "stage": stage})
    return found


def report_of(
    finished: Finished, rows: Sequence[Mapping[str, Any]], aside: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The figures of a distillation; those of tries are of all, kept or not."""
    told = [row["distillation"] for row in rows]
    own = [line["tokens"] for line in told if line["revised_by"] is None]
    every = [
        entry["tokens"] for tries in finished.tries.values() for entry in tries if "tokens" in entry
    ]
    verdicts = [
        float(bool(verdict["is_right"]))
        for line in finished.lines["check"].values()
        for verdict in line.get("verdicts", ())
    ]
    samples = len(finished.data.samples) + len(finished.data.broken)
    return {
        "samples": samples,
        "distilled": len(rows),
        "revised": dict(Counter(line["revised_by"] for line in told if line["revised_by"])),
        "set aside": dict(Counter(entry["stage"] for entry in aside)),
        "mean P": _mean([line["P"] for line in told]),
        "P": _limits([line["P"] for line in told]),
        "right share of tries": _mean(verdicts),
        "mean tokens of the tries": _mean(every),
        "mean tokens of the tries that are kept": _mean(own),
        "mean characters": _mean([line["characters"] for line in told]),
        "tokens of the judge": tokens_of_judge(finished),
        "shard": finished.recipe.shard,
    }


def tokens_of_judge(finished: Finished) -> dict[str, int]:
    """Tokens that the judge has read and written, as far as its server says them."""
    tokens = {"read": 0, "written": 0}
    for stage in JUDGED:
        for line in finished.lines[stage].values():
            for record in records_of(line):
                tokens["read"] += record["read"]
                tokens["written"] += record["written"]
    return tokens


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def _limits(values: Sequence[float]) -> list[float] | None:
    return [min(values), max(values)] if values else None


def page_samples(finished: Finished, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the page shows of each sample that was distilled."""
    samples = {sample.number: sample for sample in finished.data.samples}
    shown = []
    for row in rows:
        told = row["distillation"]
        sample = samples[told["number"]]
        key = "conversations" if row.get("conversations") else "messages"
        last = row[key][-1]
        shown.append(
            {
                "told": told,
                "where": sample.where,
                "question": sample.question,
                "solution": sample.right.gold,
                "images": sample.images,
                "chain": last.get("value", last.get("content")),
                "tries": _tries_of(finished, told["number"]),
            }
        )
    return shown


def _tries_of(finished: Finished, number: int) -> list[dict[str, Any]]:
    """The chains that the model wrote about a sample, each with its verdict."""
    verdicts = {line["try"]: line for line in finished.lines["check"][number]["verdicts"]}
    shown = []
    for entry in finished.tries[number]:
        if "error" in entry:
            continue
        verdict = verdicts.get(entry["try"], {"is_right": None, "reason": "was not judged"})
        shown.append(
            {
                "chain": Chain(entry["thinking"], entry["answer"]).text,
                "tokens": entry["tokens"],
                "right": verdict["is_right"],
                "reason": verdict["reason"],
                "kept": entry["try"] == finished.lines["check"][number]["kept"],
            }
        )
    return shown
