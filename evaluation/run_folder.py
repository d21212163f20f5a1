"""The folder of a run: one process at a time writes there, and only with the settings of the first.

    with folder_of_run(folder, settings):
        ...

Evaluation and distillation share it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

import durable

SETTINGS = "run.json"


@contextlib.contextmanager
def folder_of_run(folder: Path, settings: dict[str, Any], option: str = "--out") -> Iterator[None]:
    """Claim the folder of a run for this process; its first process writes the settings.

    Args:
        folder: that is made where it is not there.
        settings: everything that decides what is asked and how it is judged.
        option: how the user names another folder, for the errors.

    Raises:
        ValueError: the folder belongs to a run with other settings, or another process uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"{folder}: another process is writing there. Wait, or name another {option}."
        ) from error
    try:
        earlier = durable.read_json(folder / SETTINGS)
        if earlier is None:
            durable.write_json(folder / SETTINGS, settings)
        elif earlier != settings:
            changed = [name for name in settings if earlier.get(name) != settings[name]]
            raise ValueError(
                f"{folder} has a run with other settings ({_changes(earlier, settings, changed)}). "
                f"Give those, or name another {option}."
            )
        yield
    finally:
        lock.release()


def _changes(earlier: dict[str, Any], settings: dict[str, Any], changed: list[str]) -> str:
    return ", ".join(f"{name} {earlier.get(name)!r}, now {settings[name]!r}" for name in changed)
