"""What a run leaves: the table on the terminal, the same as JSON, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import durable
from evaluation import page, table
from evaluation.results import Results

NAME = "results.json"


def write(out: Path, results: Sequence[Results], strategy: str, model: str) -> None:
    """Print the table of a run, and write its files.

    Args:
        out: the folder of the run.
        results: of its benchmarks.
        strategy: by which answers were judged.
        model: its name.
    """
    lines = table.summaries(results)
    notes = table.notes_on(results, lines, strategy)
    rows = []
    for summary, stated in lines:
        row = summary._asdict()
        row["estimate"] = summary.estimate._asdict() if summary.estimate else None
        rows.append({**row, "stated": stated})
    durable.write_json(out / NAME, {"model": model, "strategy": strategy, "table": rows})
    page.write(out, results, lines, notes, model)
    print(table.text_of(lines, notes))
    print(f"Every answer: {out / page.NAME}")
