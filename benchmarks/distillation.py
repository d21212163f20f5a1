"""What distillation adds to the requests that it makes: its throughput against bare requests.

    python -m benchmarks.distillation --samples 200 --seconds 0.5 --concurrency 16

A server on loopback answers generator and judge after a fixed time. All stages run once over
drawn pictures; then the same requests are sent again by threads that do nothing else. The last line
is JSON: requests a second of both, and their ratio. That of a real server is nearer to 1, since its
answers take longer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import yaml

from training.distill import pipeline
from training.distill.recipe import read_recipe
from training.nano import data

SCORE = {"reason": "So.", "quality": 7, "difficulty": 5, "reasoning": 4}
NECESSITY = {
    "reason": "So.", "changes_without_image": True, "relevance": "essential", "necessity": 8,
}  # fmt: skip
INTEGRATION = {"reason": "So.", "cues": [], "integration": 5}
REVISION = {"thinking": "I look again.", "answer": "\\boxed{1}"}
REPLIES = {
    "necessity": NECESSITY, "quality": SCORE, "integration": INTEGRATION, "revision": REVISION,
}  # fmt: skip
CHAIN = "I look.\n</think>\n\n\\boxed{1}"
MODEL = "loopback"


class Server:
    """An endpoint for generator and judge.

    Args:
        seconds: that each answer takes.

    Attributes:
        bodies: of the requests, while it records them.
        is_recording: whether it does.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.bodies: list[dict[str, Any]] = []
        self.is_recording = True

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL, while it runs."""
        handler = type("BoundHandler", (Handler,), {"server_of": self})
        http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        finally:
            http.shutdown()
            http.server_close()

    def reply(self, body: dict[str, Any]) -> str:
        """The text that answers a request."""
        if "response_format" not in body:
            return CHAIN
        return json.dumps(REPLIES[body["response_format"]["json_schema"]["name"]])


class Handler(BaseHTTPRequestHandler):
    """A request to a `Server`."""

    server_of: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The list of models."""
        self._send({"object": "list", "data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        """A completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server_of.is_recording:
            self.server_of.bodies.append(body)
        time.sleep(self.server_of.seconds)
        message = {"role": "assistant", "content": self.server_of.reply(body)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        self._send({"id": "1", "object": "chat.completion", "created": 1, "model": MODEL,
                    "choices": [choice], "usage": usage})  # fmt: skip

    def _send(self, content: dict[str, Any]) -> None:
        written = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)


def distil(folder: Path, url: str, samples: int, concurrency: int) -> float:
    """Run all stages; returns the seconds that they take, without the drawing of the pictures.

    Args:
        folder: for data and results.
        url: of the server.
        samples: number of them.
        concurrency: requests at a time.
    """
    path = data.write("alignment", folder, samples)
    endpoint = {"kind": "endpoint", "urls": [url], "model": MODEL, "concurrency": concurrency}
    recipe = {
        "data": [str(path)],
        "output_dir": str(folder / "out"),
        "generator": endpoint,
        "judge": endpoint,
        "sampling": {"max_new_tokens": 64, "temperature": 0.6},
        "tries": 2,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    begun = time.perf_counter()
    pipeline.Distillation(read_recipe(str(folder / "recipe.yaml"))).run()
    return time.perf_counter() - begun


def send(url: str, bodies: list[dict[str, Any]], concurrency: int) -> float:
    """Send requests and drop the replies; returns the seconds that they take."""
    client = openai.OpenAI(base_url=url, api_key="none")

    def ask(body: dict[str, Any]) -> None:
        """Send a request; fields that are vLLM's alone go beside the API's."""
        known = dict(body)
        own = {name: known.pop(name) for name in ("repetition_penalty",) if name in known}
        client.chat.completions.create(**known, extra_body=own)

    begun = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(ask, bodies))
    return time.perf_counter() - begun


def main() -> None:
    """Measure by the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.5, help="that each answer takes")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time")
    arguments = parser.parse_args()
    server = Server(arguments.seconds)
    with tempfile.TemporaryDirectory() as folder, server.serving() as url:
        piped = distil(Path(folder), url, arguments.samples, arguments.concurrency)
        server.is_recording = False
        bare = send(url, server.bodies, arguments.concurrency)
    requests = len(server.bodies)
    measured = {
        **vars(arguments),
        "requests": requests,
        "distillation": round(requests / piped, 2),
        "bare": round(requests / bare, 2),
        "ratio": round(bare / piped, 3),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
