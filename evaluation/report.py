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
    lines = []
    for summary, stated in table.summaries(results):
        line = summary._asdict()
        line["estimate"] = summary.estimate._asdict() if summary.estimate else None
        lines.append({**line, "stated": stated})
    durable.write_json(out / NAME, {"model": model, "strategy": strategy, "table": lines})
    page.write(out, results, strategy, model)
    print(table.text_of(results, strategy))
    print(f"Every answer: {out / page.NAME}")
