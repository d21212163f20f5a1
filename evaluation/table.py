"""The table of a run, and the estimate before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.benchmarks import BENCHMARKS
from evaluation.results import Results, Summary, groups_of, summarize

Line = tuple[Summary, float | None]  # of the table, with the report's figure in percent
COLUMNS = ("benchmark", "questions", "score", "runs ±", "95 % interval", "cut", "failed", "stated")


def summaries(results: Sequence[Results]) -> list[Line]:
    """The lines of the table, each with the report's figure where it has one, in percent.

    The families of the nano tasks are lines of their own, since nobody asks for their mean.
    """
    lines: list[Line] = []
    for result in results:
        if result.name in BENCHMARKS:
            benchmark = BENCHMARKS[result.name]
            lines.append((summarize(result, benchmark.title), benchmark.stated))
            continue
        for group in groups_of(result.items):
            lines.append((summarize(result, group, group), None))
    return lines


def cells(summary: Summary, stated: float | None) -> list[str]:
    """A line of the table as text, in the order of COLUMNS."""
    estimate = summary.estimate
    score, spread, interval = "-", "", ""
    if estimate is not None:
        score = f"{100 * estimate.mean:.1f}"
        interval = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
        if estimate.spread is not None:
            spread = f"{100 * estimate.spread:.1f}"
        elif summary.wanted == summary.questions:
            score += f" ({summary.right} of {summary.judged})"
    return [
        summary.label,
        str(summary.questions),
        score,
        spread,
        interval,
        str(summary.truncated),
        str(summary.failed),
        "" if stated is None else f"{stated:.1f}",
    ]


def text_of(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """The table with what is to be known of it, for a terminal.

    Args:
        lines: see `summaries`.
        notes: see `notes_on`.
    """
    rows = [list(COLUMNS), *(cells(*line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    texts = []
    for row in rows:
        texts.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return "\n".join([*texts, "", *notes])


def notes_on(results: Sequence[Results], lines: Sequence[Line], strategy: str) -> list[str]:
    """What is to be known of the table, a sentence each.

    Args:
        results: of the benchmarks.
        lines: see `summaries`.
        strategy: by which answers were judged.
    """
    how = {
        "rule": "Judged by rule alone (answers/).",
        "judge-wrong": "Judged by rule, and by the judge model where the rule says wrong.",
        "both": "The score is by rule; the judge model was asked about every answer.",
    }
    sentences = [how[strategy]]
    if any(result.name in BENCHMARKS for result in results):
        sentences.append(
            "Scores are percent. 'Stated' are the figures of the technical report, which judged "
            "with a model; they were not measured here."
        )
    for summary, _ in lines:
        if summary.by_judge is not None and summary.agreement is not None:
            sentences.append(
                f"{summary.label}: {100 * summary.by_judge:.1f} by the judge, who agrees with the "
                f"rule on {100 * summary.agreement:.1f} % of the answers."
            )
        if summary.failed:
            sentences.append(
                f"{summary.label}: {summary.failed} of {summary.wanted} answers are missing and "
                "do not count; run the command again to ask for them."
            )
    for result in results:
        reason = missing_thinking(result)
        if reason is not None:
            sentences.append(reason)
    return sentences


def missing_thinking(results: Results) -> str | None:
    """A warning where no answer shows any thinking, though it was said to be opened."""
    answers = list(results.answers.values())
    if answers and all(answer.reason == "the thinking was never closed" for answer in answers):
        return (
            f"{results.name}: no answer has an end of its thinking. If the model does not think, "
            "or the server keeps the thinking to itself, give --thinking absent."
        )
    return None
