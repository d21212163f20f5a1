"""The record of a run: machine, settings and rows of figures, as a table and as JSON."""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.measure import ROOT, peak_memory, ratio

TABLE_HEAD = (
    "| benchmark | case | contender | value | ours against it | limit |",
    "|---|---|---|---|---|---|",
)


def machine(device: str) -> dict[str, Any]:
    """Commit, versions and hardware, for the record."""
    is_cuda = torch.device(device).type == "cuda"
    return {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if is_cuda else None,
    }


def _commit() -> str | None:
    """The commit of this checkout, or None where there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _cpu_name() -> str:
    """The CPU's name as Linux knows it, or else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


class Report:
    """Rows of figures: progress while they come, then a table, a file and a last line of JSON.

    Attributes:
        record: machine, settings and rows.
        path: of the file, or None. What is measured so far is in a file beside it, so that an error
            later does not lose it.
    """

    def __init__(
        self, device: str, settings: dict[str, Any], path: str | Path | None = None
    ) -> None:
        """Start a record.

        Args:
            device: that is measured.
            settings: of the run.
            path: of the file, or None for none.
        """
        self.record: dict[str, Any] = {
            "machine": machine(device),
            "settings": settings,
            "rows": [],
        }
        self.path = path

    def progress(self, text: str) -> None:
        """Show what is going on: on a terminal in one line, else in a line of its own."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text[:150]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def add(
        self, benchmark: str, case: str, contender: str, value: float, unit: str, **more: Any
    ) -> None:
        """Add one figure.

        Args:
            benchmark, case, contender: name the figure.
            value: the figure.
            unit: of the figure.
            more: may hold `ratio`, `limit` and `share` of the limit that is reached.
        """
        row = {
            "benchmark": benchmark,
            "case": case,
            "contender": contender,
            "value": value,
            "unit": unit,
            **more,
        }
        self.record["rows"].append(row)
        self._keep()
        self.progress(f"{benchmark}, {case}, {contender}: {value:.4g} {unit}")

    def add_times(
        self,
        benchmark: str,
        case: str,
        seconds: Mapping[str, Sequence[float]],
        ours: str,
        amount: float = 1,
        unit: str = "s",
    ) -> dict[str, float]:
        """Add a row for each contender: the median in seconds, or `amount` per second.

        Args:
            benchmark, case: name the figures.
            seconds: of each contender, round by round.
            ours: the contender that is compared with each other one.
            amount: what a call works through.
            unit: "s", or that of `amount` per second.

        Returns:
            The median seconds, by contender.
        """
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            value = median if unit == "s" else amount / median
            more = {}
            if name != ours:
                more["ratio"] = ratio(seconds, ours, name)
            self.add(benchmark, case, name, round(value, 5), unit, **more)
        return medians

    def add_memory(
        self,
        benchmark: str,
        case: str,
        contenders: Mapping[str, Callable[[], Any]],
        device: str = "cpu",
    ) -> None:
        """Add a row for each contender: what a call of it takes at its highest."""
        for name, function in contenders.items():
            peak = round(peak_memory(function, device) / 2**20, 1)
            self.add(f"{benchmark}, extra memory", case, name, peak, "MiB")

    def table(self) -> str:
        """All rows as a table in Markdown."""
        lines: list[str] = list(TABLE_HEAD)
        for row in self.record["rows"]:
            lines.append("| " + " | ".join(_cells(row)) + " |")
        return "\n".join(lines)

    def finish(self) -> None:
        """Print the table and the JSON, and keep the record in its file."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        print(self.table())
        if self.path:
            self._keep()
            self._partial_path().replace(self.path)
        print(json.dumps(self.record))

    def _keep(self) -> None:
        """Write the record so far into a file beside the one that it will be in."""
        if not self.path:
            return
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._partial_path().write_text(json.dumps(self.record, indent=1) + "\n")

    def _partial_path(self) -> Path:
        return Path(f"{self.path}.partial")


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A row's cells of the table."""
    comparison = ""
    if row.get("ratio"):
        compared = row["ratio"]
        comparison = f"{compared['median']:.2f} ({compared['low']:.2f} to {compared['high']:.2f})"
    limit = ""
    if "limit" in row:
        limit = f"{row['limit']:.4g} ({row['share']:.0%} reached)"
    value = f"{row['value']:.4g} {row['unit']}"
    return [row["benchmark"], row["case"], row["contender"], value, comparison, limit]
