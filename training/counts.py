"""How many samples were read, broken, too long or given fewer tiles, over all dataloader workers.

`datasets` has nothing that counts across workers, so the counts are a tensor in shared memory.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils.data import get_worker_info

from training.rows import SampleError

READ = "read"
BROKEN = "broken"
TOO_LONG = "too_long"
FEWER_TILES = "fewer_tiles"  # of those read
KINDS = (READ, BROKEN, TOO_LONG, FEWER_TILES)

MAX_WORKERS = 256  # workers of a process that can count what they read of a stream
# The share of broken samples of a stream is taken over at least so many samples, so that an early
# broken one does not always end the run.
SMALLEST_STREAM = 1000


class Counts:
    """Counts of samples, by all workers of a process.

    A sample of a file counts once, however often it is read. Workers read ahead, so a few more
    samples may be counted as read than were trained on.

    Args:
        lines: number of samples of the data set, or None if it is a stream.
        broken: number of lines that were found broken before.
        max_broken_share: largest share of broken samples among all; exceeding this share raises
            SampleError. Each process of a training counts what it reads.
    """

    def __init__(
        self, lines: int | None = None, broken: int = 0, max_broken_share: float = 0.0
    ) -> None:
        if lines is None:
            # A row for the main process and each worker, which alone writes to it
            rows = torch.zeros(1 + MAX_WORKERS, len(KINDS), dtype=torch.int64)
        else:
            # A row for each line, with 1 for what it was found to be
            rows = torch.zeros(lines, len(KINDS), dtype=torch.uint8)
        self._rows = rows.share_memory_()
        self.lines = lines
        self.broken = broken
        self.max_broken_share = max_broken_share

    def add(self, kind: str, line: int | None = None) -> None:
        """Count a sample.

        Args:
            kind: one of `KINDS`.
            line: its number in the data set; None in a stream.
        """
        column = KINDS.index(kind)
        if line is not None:
            self._rows[line, column] = 1
            return
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id
        self._rows[row, column] += 1

    def is_unusable(self, line: int) -> bool:
        """Whether a line was found broken or too long."""
        found = self._rows[line]
        return bool(found[KINDS.index(BROKEN)] or found[KINDS.index(TOO_LONG)])

    def as_dict(self) -> dict[str, int]:
        """The counts of this process and its workers."""
        return self._sums(self._rows)

    def over_processes(self, accelerator: Any) -> dict[str, int]:
        """The counts of all processes of a training, in which a line counts once."""
        rows = accelerator.reduce(self._rows.to(accelerator.device, torch.int64), "sum")
        if self.lines is not None:
            rows = rows.clamp(max=1)
        return self._sums(rows)

    def report_broken(self, where: str, error: Exception | str, line: int | None = None) -> None:
        """Count a broken sample and warn of it.

        Args:
            where: what messages call the sample.
            error: what is wrong with it.
            line: its number in the data set; None in a stream.

        Raises:
            SampleError: the share of broken samples exceeds `max_broken_share`.
        """
        self.add(BROKEN, line)
        counts = self.as_dict()
        total = self._total(counts)
        if counts[BROKEN] > self.max_broken_share * total:
            cause = error if isinstance(error, Exception) else None
            raise SampleError(
                f"{where}: {error}. Broken samples: {counts[BROKEN]} of {total}; max_broken_share "
                f"allows a share of {self.max_broken_share:g}. Mend the data or raise it."
            ) from cause
        warnings.warn(f"{where}: {error}; skipped", stacklevel=2)

    def _total(self, counts: dict[str, int]) -> int:
        """The number of samples of which broken ones are a share."""
        if self.lines is not None:
            return self.lines + self.broken
        return max(SMALLEST_STREAM, counts[READ] + counts[BROKEN] + counts[TOO_LONG])

    def _sums(self, rows: torch.Tensor) -> dict[str, int]:
        sums: dict[str, int] = dict(zip(KINDS, rows.sum(0, dtype=torch.int64).tolist()))
        sums[BROKEN] += self.broken
        return sums
