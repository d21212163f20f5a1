"""The page of a run: one HTML file that needs no network, with every question and answer.

Pictures are small copies. Answers are compressed, each question's by itself, and a browser unpacks
them when they are opened: five long chains of thought to each of thousands of questions fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import durable
from evaluation import table
from evaluation.items import Item
from evaluation.page_parts import filled, packed, small_copy
from evaluation.results import Answer, Results
from remote_code import conversation

NAME = "page.html"
TEMPLATE = Path(__file__).with_name("page.html")


def write(
    out: Path,
    results: Sequence[Results],
    lines: Sequence[table.Line],
    notes: Sequence[str],
    model: str,
) -> None:
    """Write the page of a run into its folder.

    Args:
        out: the folder of the run.
        results: of its benchmarks.
        lines: of their table.
        notes: on it.
        model: its name.
    """
    images = {}
    questions = []
    for result in results:
        for number, item in enumerate(result.items):
            for image in item.images:
                images.setdefault(image, small_copy(out / result.name / image))
            questions.append(_question(result, number, item))
    content = {
        "model": model,
        "table": [list(table.COLUMNS), *(table.cells(*line) for line in lines)],
        "notes": list(notes),
        "images": images,
        "questions": questions,
    }
    durable.write_text(out / NAME, filled(TEMPLATE, content))


def _question(result: Results, number: int, item: Item) -> dict[str, Any]:
    """A question as the page knows it."""
    runs, details = [], []
    for run in range(result.repeats):
        answer = result.answers.get((number, run))
        reason = result.failures.get((number, run), "was not asked, or its endpoint failed")
        runs.append(_verdict(answer))
        details.append(_detail(answer, reason))
    return {
        "benchmark": result.name,
        "group": item.group,
        "id": item.id,
        "text": item.text,
        "golds": list(item.golds),
        "images": list(item.images),
        "runs": runs,
        "details": packed(details),
    }


def _verdict(answer: Answer | None) -> dict[str, Any]:
    """What the filters look at."""
    if answer is None:
        return {"right": None, "rule": None, "judge": None, "cut": False}
    return {
        "right": answer.is_right,
        "rule": answer.rule,
        "judge": answer.judge,
        "cut": answer.is_truncated,
    }


def _detail(answer: Answer | None, reason: str) -> dict[str, Any]:
    """What is shown of an answer.

    Args:
        answer: or None where there is none.
        reason: why there is none.
    """
    if answer is None:
        return {"thinking": "", "answer": "", "said": "", "reason": reason, "tokens": 0}
    thinking, text = answer.reasoning, answer.text
    if not thinking:
        thinking, _, text = answer.text.rpartition(conversation.THINK_END)
    return {
        "thinking": thinking.strip(),
        "answer": text.strip(),
        "said": answer.said,
        "reason": answer.reason,
        "tokens": answer.tokens,
    }
