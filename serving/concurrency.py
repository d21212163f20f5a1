"""Runs a function over many things, several at a time, and gives the results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

QUEUED = 2  # things in memory for each that is worked on

Given = TypeVar("Given")
Made = TypeVar("Made")


def as_finished(
    function: Callable[[Given], Made], things: Iterable[Given], workers: int
) -> Iterator[Made]:
    """The results of a function, as they are finished; with one worker, in the order of the things.

    Args:
        function: that is called in any thread; what it raises is raised here.
        things: that it is called with, of which few are taken ahead.
        workers: calls at a time.
    """
    remaining = iter(things)
    pool = ThreadPoolExecutor(workers)
    try:
        running = [pool.submit(function, thing) for thing in islice(remaining, QUEUED * workers)]
        while running:
            done = wait(running, return_when=FIRST_COMPLETED).done
            # A set has no order: those that are finished together come in that of the things
            finished = [future for future in running if future in done]
            running = [future for future in running if future not in done]
            for thing in islice(remaining, len(finished)):
                running.append(pool.submit(function, thing))
            for future in finished:
                yield future.result()
    finally:
        # Whoever has stopped taking results wants no further calls
        pool.shutdown(cancel_futures=True)
