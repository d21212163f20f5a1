"""Runs the core of the suite with other CPU kernels, as another machine would choose them.

    python -m tests.portable          # make test-portable: each kernel with 1 thread and with 2
    python -m tests.portable --order  # the default suite three times, in random order

torch and oneDNN choose kernels by the processor, and sums by another kernel or number of threads
differ in the last bits. A test that passes on one machine alone fails here. With `--order` each run
has another order of the tests and another PYTHONHASHSEED, so a test that depends on either fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
)
THREADS = (1, 2)
# What computes with weights; the files of training and serving add processes, not kernels.
CORE = (
    "test_chat.py",
    "test_decoding.py",
    "test_image_processing.py",
    "test_model.py",
    "test_processor.py",
    "test_vision.py",
)
RUNS_IN_RANDOM_ORDER = 3


def run(arguments: list[str], settings: dict[str, str], name: str) -> bool:
    """Run pytest; whether all tests passed."""
    command = [sys.executable, "-m", "pytest", "-q", "--durations=0", *arguments]
    environment = {**os.environ, **settings}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    passed = done.returncode == 0
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
    print(f"{name}: {summary}", flush=True)
    if not passed:
        print(done.stdout[-6000:], file=sys.stderr)
    return passed


def run_kernels() -> list[bool]:
    """The core with each kernel and each number of threads."""
    core = [f"tests/{name}" for name in CORE]
    results = []
    for kernel in KERNELS:
        for threads in THREADS:
            # Two processes of one thread each, or one of two threads: both keep two cores busy.
            processes = ["-n", "2", "--dist", "loadfile"] if threads == 1 else []
            settings = {**kernel, "TEST_THREADS": str(threads)}
            name = ", ".join(f"{key}={value}" for key, value in settings.items())
            # inductor would take code from its cache that was compiled for other instructions.
            with tempfile.TemporaryDirectory() as cache:
                settings["TORCHINDUCTOR_CACHE_DIR"] = cache
                results.append(run([*core, *processes], settings, name))
    return results


def run_orders() -> list[bool]:
    """The default suite in several random orders."""
    results = []
    for seed in range(1, RUNS_IN_RANDOM_ORDER + 1):
        settings = {"TEST_ORDER": str(seed), "PYTHONHASHSEED": str(seed)}
        arguments = ["tests", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
        results.append(run(arguments, settings, f"order and hash seed {seed}"))
    return results


def main() -> None:
    """Run and exit with 1 where any run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--order", action="store_true", help="the default suite in random orders")
    arguments = parser.parse_args()
    results = run_orders() if arguments.order else run_kernels()
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
