"""Speed and memory against peers in the same process, on the same weights, alternating.

    python -m benchmarks                          # everything at CPU sizes, minutes
    python -m benchmarks decoding vision          # only these
    python -m benchmarks --preset gpu             # the 38B shapes in bf16 with random weights

Peers are transformers' own InternVL, with our tensors under its names, and the model card's
preprocessing functions. Prints a table and, as the last line, JSON; keeps the JSON in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

from benchmarks import measure
from benchmarks.conversation import first_token, turns
from benchmarks.decoding import decoding, traces
from benchmarks.growth import growth
from benchmarks.loading import loading
from benchmarks.preprocessing import preprocessing
from benchmarks.presets import PRESETS
from benchmarks.report import Report
from benchmarks.vision import vision

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    "preprocessing": preprocessing,
    "vision": vision,
    "first-token": first_token,
    "decoding": decoding,
    "traces": traces,
    "turns": turns,
    "loading": loading,
    "growth": growth,
}


def main() -> None:
    """Run the chosen benchmarks, print their table and keep their record."""
    arguments = _parse_arguments()
    preset = PRESETS[arguments.preset]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = {"preset": arguments.preset, "repeats": arguments.repeats}
    report = Report(preset.device, settings, _record_path(arguments))
    for name in arguments.benchmarks or BENCHMARKS:
        BENCHMARKS[name](preset, report, arguments.repeats)
        measure.release(preset.device)
    report.finish()


def _parse_arguments() -> argparse.Namespace:
    """The checked command line."""
    parser = argparse.ArgumentParser(
        description="Speed and memory against peers in the same process, on the same weights, "
        "alternating."
    )
    names = ", ".join(BENCHMARKS)
    parser.add_argument(
        "benchmarks", nargs="*", metavar="benchmark", help=f"of {names}; default: all"
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the medians are of these")
    parser.add_argument(
        "--output",
        help="file of the record; default: benchmarks/results/<preset>.json for a full run",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {names}")
    if PRESETS[arguments.preset].device == "cuda" and not torch.cuda.is_available():
        parser.error("--preset gpu needs a CUDA GPU with 90 GB; there is none here")
    return arguments


def _record_path(arguments: argparse.Namespace) -> str | Path | None:
    """Where the record is kept; a part of the benchmarks, or a smoke test, is not kept unasked."""
    if arguments.output:
        return arguments.output
    if arguments.benchmarks or arguments.preset == "smoke":
        return None
    return RESULTS / f"{arguments.preset}.json"


if __name__ == "__main__":
    main()
