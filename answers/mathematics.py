"""Compares mathematical expressions with math-verify, within a limit of time.

math-verify limits its time by the alarm signal, which works in the main thread alone and not in
compiled code. Here the comparison runs in another process (`answers.math_worker`), which is ended
when its time is over. So it works in any thread, and in worker processes of any kind.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 10.0  # for one comparison
SECONDS_TO_START = 60.0  # for the imports of sympy, on a busy machine


class Comparison(NamedTuple):
    """Whether two expressions are the same, and why or why not."""

    is_right: bool
    reason: str


class ClosedAtExit:
    """A context that calls `close` at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError


class MathComparer(ClosedAtExit):
    """Compares expressions in processes of its own, one for each thread that asks at a time.

    Use it as a context, or call `close`.

    Args:
        seconds: that a comparison may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._process_id = os.getpid()

    def close(self) -> None:
        """End the processes that wait for questions."""
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                return
            worker.end()

    def compare(self, gold: str, answer: str) -> Comparison:
        """Whether an answer is the same expression as the right one, both in LaTeX or plain."""
        worker = self._take_worker()
        reply = worker.ask({"gold": gold, "answer": answer})
        if reply is None:
            worker.end()
            return Comparison(False, f"was not understood within {self.seconds:g} seconds")
        self._idle.put(worker)
        return Comparison(bool(reply["right"]), str(reply["reason"]))

    def _take_worker(self) -> _Worker:
        """A process that waits, or a new one."""
        if self._process_id != os.getpid():
            # After a fork the processes are the parent's.
            self._idle = queue.SimpleQueue()
            self._process_id = os.getpid()
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _Worker(self.seconds)


class _Worker:
    """A process of `answers.math_worker`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "answers.math_worker", str(seconds)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._replies.get(timeout=SECONDS_TO_START):
            raise RuntimeError(
                f"`{sys.executable} -m answers.math_worker` ended at once: run it to see why, or "
                "install math-verify (make dev)."
            )

    def _read(self) -> None:
        """Put the lines of the process into the queue; an empty one when it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")

    def ask(self, question: dict[str, str]) -> dict[str, Any] | None:
        """The reply to a question; None where there is none in time, or the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            reply = self._replies.get(timeout=self.seconds)
        except (BrokenPipeError, queue.Empty):
            return None
        if not reply:
            return None
        return json.loads(reply)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
