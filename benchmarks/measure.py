"""Timing, memory, growth and records: what every benchmark here is made of."""

import contextlib
import ctypes
import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def alternate(contenders, repeats, device="cpu"):
    """Seconds of each contender, one after another in every round, so that a slow moment of the machine hits all.

    Args:
        contenders: name to function; each runs once before the clock starts.

    Returns:
        Name to a list of `repeats` seconds.
    """
    for function in contenders.values():
        function()
    seconds = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds, name, peer):
    """How many times faster `name` is than `peer`, round by round: median, lowest and highest."""
    ratios = [theirs / ours for ours, theirs in zip(seconds[name], seconds[peer])]
    return {
        "peer": peer,
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


def peak_memory(function, device="cpu"):
    """Bytes that a call takes at its highest, beyond what was there before it; NaN where the kernel does not tell."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(
        OSError, AttributeError
    ):  # memory that the allocator keeps would hide a peak
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # the high-water mark starts at what is resident now
    except OSError:  # a kernel without it, as some virtual machines have
        return math.nan
    before = resident_memory("VmRSS")
    function()
    return max(0, resident_memory("VmHWM") - before)


def resident_memory(field):
    """Bytes of this process as Linux counts them: `VmRSS` now, `VmHWM` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}.")


def release(device):
    """Give back what the last benchmark's models hold: a compiled model refers to itself, a CUDA graph to memory."""
    torch.compiler.reset()
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def growth(sizes, values):
    """The exponent k of values ~ sizes^k: the slope of a line through the logarithms (least squares)."""
    xs, ys = [math.log(size) for size in sizes], [math.log(max(value, 1e-12)) for value in values]
    middle_x, middle_y = statistics.mean(xs), statistics.mean(ys)
    return sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys)) / sum(
        (x - middle_x) ** 2 for x in xs
    )


def measured_limits(device, dtype=torch.bfloat16, seconds=1.0):
    """What the device does at best here: bytes per second of a copy, operations per second of a large product."""
    on_gpu = torch.device(device).type == "cuda"
    source = torch.empty((4 if on_gpu else 1) * 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if on_gpu else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    copies = _rate(lambda: target.copy_(source), seconds, device)
    products = _rate(lambda: left @ right, seconds, device)
    return {
        "bytes_per_second": copies * 2 * source.numel(),
        "operations_per_second": products * 2 * side**3,
    }


def _rate(function, seconds, device):
    function()
    synchronize(device)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        function()
        synchronize(device)
        calls += 1
    return calls / (time.perf_counter() - start)


def machine(device):
    """Commit, versions and hardware, for the record."""
    commit = None
    with contextlib.suppress(OSError):  # no git
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        commit = (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
        )
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0].split(":")[1].strip() if names else model
    is_cuda = torch.device(device).type == "cuda"
    return {
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": model,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if is_cuda else None,
    }


class Report:
    """Rows of figures: progress while they come, then a table, a file and a last line of JSON.

    Args:
        path: of the file, or None. What is measured so far is beside it, so that an error later does not lose it.
    """

    def __init__(self, device, settings, path=None):
        self.record = {"machine": machine(device), "settings": settings, "rows": []}
        self.path = path

    def progress(self, text):
        if sys.stderr.isatty():
            print(f"\r\033[K{text[:150]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def add(self, benchmark, case, contender, value, unit, **more):
        """One figure; `more` may hold `ratio`, `limit` and `share` of the limit that is reached."""
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

    def add_times(self, benchmark, case, seconds, ours, amount=1, unit="s"):
        """A row for each contender: the median in seconds, or `amount` per second; ours against each other one.

        Returns:
            The medians, by contender.
        """
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            value = median if unit == "s" else amount / median
            compared = {} if name == ours else {"ratio": ratio(seconds, ours, name)}
            self.add(benchmark, case, name, round(value, 5), unit, **compared)
        return medians

    def add_memory(self, benchmark, case, contenders, device="cpu"):
        """A row for each contender: what a call of it takes at its highest."""
        for name, function in contenders.items():
            peak = round(peak_memory(function, device) / 2**20, 1)
            self.add(f"{benchmark}, extra memory", case, name, peak, "MiB")

    def table(self):
        lines = [
            "| benchmark | case | contender | value | ours against it | limit |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.record["rows"]:
            compared = row.get("ratio")
            against = (
                f"{compared['median']:.2f} ({compared['low']:.2f} to {compared['high']:.2f})"
                if compared
                else ""
            )
            limit = f"{row['limit']:.4g} ({row['share']:.0%} reached)" if "limit" in row else ""
            value = f"{row['value']:.4g} {row['unit']}"
            cells = (row["benchmark"], row["case"], row["contender"], value, against, limit)
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _keep(self):
        if self.path:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            Path(f"{self.path}.partial").write_text(json.dumps(self.record, indent=1) + "\n")

    def finish(self):
        """Print the table and the JSON, and keep the record in its file."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        print(self.table())
        if self.path:
            self._keep()
            Path(f"{self.path}.partial").replace(self.path)
        print(json.dumps(self.record))
