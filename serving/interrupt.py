"""Leaves at once when the user presses Ctrl-C, though requests are on their way."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130  # the exit status that a shell gives a program that Ctrl-C ended


@contextlib.contextmanager
def exit_at_interrupt() -> Iterator[None]:
    """Within this context Ctrl-C ends the process.

    Python would wait for every thread, and a request may take hours. What has been answered is on
    the disk, as it has to be for a process that is killed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(*arguments: Any) -> None:
    print("\nstopped; run it again to go on", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
