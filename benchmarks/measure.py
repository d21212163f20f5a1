"""Timing, memory and growth: what every benchmark here measures with."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


# -- time ------------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given; nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def alternate(
    contenders: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each contender, by name.

    They run one after another in every round, so that a slow moment of the machine hits all.

    Args:
        contenders: name to function; each runs once before the clock starts.
        repeats: number of rounds.
        device: on which they compute.

    Returns:
        A list of `repeats` seconds for each name.
    """
    for function in contenders.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, peer: str) -> dict[str, Any]:
    """How many times faster `name` is than `peer`, round by round: median, lowest and highest."""
    ratios = [theirs / ours for ours, theirs in zip(seconds[name], seconds[peer])]
    return {
        "peer": peer,
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


# -- memory ----------------------------------------------------------------------------------------


def peak_memory(function: Callable[[], Any], device: str = "cpu") -> float:
    """Bytes that a call takes at its highest, beyond what was there before it.

    Returns:
        NaN where the kernel does not tell.
    """
    if torch.device(device).type == "cuda":
        return _peak_memory_of_gpu(function)
    # Memory that the allocator keeps would hide a peak
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        # The high-water mark starts again at what is resident now
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # a kernel without it, as some virtual machines have
        return math.nan
    before = resident_memory("VmRSS")
    function()
    return max(0, resident_memory("VmHWM") - before)


def _peak_memory_of_gpu(function: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_memory(field: str) -> int:
    """Bytes of this process as Linux counts them: `VmRSS` now, `VmHWM` at most.

    Raises:
        OSError: the kernel does not count that.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}.")


def release(device: str) -> None:
    """Give back the memory that the last benchmark's models hold.

    A compiled model refers to itself, and a CUDA graph to memory.
    """
    torch.compiler.reset()
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


# -- growth and limits -----------------------------------------------------------------------------


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent k of values ~ sizes^k.

    It is the slope of a line through the logarithms (least squares).
    """
    log_sizes = [math.log(size) for size in sizes]
    log_values = [math.log(max(value, 1e-12)) for value in values]
    mean_size = statistics.mean(log_sizes)
    mean_value = statistics.mean(log_values)
    covariance = 0.0
    variance = 0.0
    for size, value in zip(log_sizes, log_values):
        covariance += (size - mean_size) * (value - mean_value)
        variance += (size - mean_size) ** 2
    return covariance / variance


def measured_limits(
    device: str, dtype: torch.dtype = torch.bfloat16, seconds: float = 1.0
) -> dict[str, float]:
    """What the device reaches at best: bytes per second of a copy, operations of a large product.

    Args:
        device: that is measured.
        dtype: of the product.
        seconds: that each of the two is repeated for.
    """
    num_bytes = 2**30
    side = 2048
    if torch.device(device).type == "cuda":  # which is too fast for such sizes
        num_bytes = 4 * 2**30
        side = 8192
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    copies = _calls_per_second(lambda: target.copy_(source), seconds, device)
    products = _calls_per_second(lambda: left @ right, seconds, device)
    return {
        "bytes_per_second": copies * 2 * num_bytes,  # a copy reads and writes
        "operations_per_second": products * 2 * side**3,
    }


def _calls_per_second(function: Callable[[], Any], seconds: float, device: str) -> float:
    function()
    synchronize(device)
    calls = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        function()
        synchronize(device)
        calls += 1
    return calls / (time.perf_counter() - start)
