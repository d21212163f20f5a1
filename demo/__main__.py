"""Opens a page on which a model is asked about images, on this machine alone.

    python -m demo                                        # nano, in this process
    python -m demo --model path/to/checkpoint
    python -m demo --api-url http://127.0.0.1:8000/v1     # a served model; --model is its name

`make demo` calls it with MODEL= and API=. It needs no network besides the endpoint's.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import Any

from demo import server
from examples import command_line

ROOT = Path(__file__).resolve().parents[1]
NANO = str(ROOT / "nano")
PORT = 7860


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model",
        default="",
        help="a directory or Hub id (default: nano); with --api-url the name of the served model "
        "(default: the first that the endpoint lists)",
    )
    parser.add_argument(
        "--api-url", help="an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1"
    )
    parser.add_argument(
        "--processor",
        default=str(ROOT),
        help="with --api-url: the directory whose settings say how the served model cuts pictures "
        "(default: this repository's, those of 38B)",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: a free one")
    return parser.parse_args()


def load(arguments: argparse.Namespace) -> Any:
    """The model that the command line names, as a `Backend`.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: the endpoint cannot be reached or serves no such model.
    """
    # Here, so that --help does not wait for torch
    from demo.endpoint import Endpoint, tiling_of
    from demo.local import LocalModel

    if arguments.api_url:
        tiling = tiling_of(arguments.processor)
        return Endpoint(arguments.api_url, arguments.model, tiling)
    return LocalModel.load(arguments.model or NANO)


def main() -> None:
    """Serve the page until Ctrl-C."""
    arguments = parse_arguments()
    listener = server.listen(arguments.port)  # first: loading takes long
    backend = load(arguments)
    with server.running(backend, listener) as served:
        print(f"{backend.name} answers at {served.address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def _leave(*_: Any) -> None:
    """End as on Ctrl-C, so that uploads are deleted."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    command_line.run(main)
