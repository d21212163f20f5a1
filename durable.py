"""Files that are whole or not there, whenever a process dies or the power goes.

A file is written under another name, flushed to the disk, and renamed; so is a directory. A file
that is empty or does not parse is one that was never written. Files that grow by lines are read up
to their last whole line.

    durable.write_json(path, content)
    content = durable.read_json(path)  # None where it was never written

A rename is atomic on one file system, but neither its order against the file's content nor the
rename itself is certain to survive a power cut before both are flushed (see fsync(2)).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".tmp"  # the end of the name of what is being written


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path for a writer that opens its file by itself; it is renamed when the block ends.

    The block has to flush the file. After an error in it `path` is what it was.
    """
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY)
    yield temporary
    os.replace(temporary, path)
    flush(path.parent)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which takes its name when the block ends without an error."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory to write to, which takes the place of `path` when it is whole.

    So no file of an earlier directory stays beside new ones.
    """
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    replace_directory(temporary, path)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text in UTF-8."""
    with writing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file. NaN, which is not JSON, is an error: write None for it."""
    text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file, or None where there is none, or none that was written whole."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return None


def whole_lines(path: str | Path) -> list[bytes]:
    """The lines of a file, without their newlines; one that was not written to its end is left out.

    An empty list where there is no file. Bytes, because a line may have been cut inside a
    character.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return lines


def drop_half_line(path: str | Path) -> None:
    """Cut what a process that died has left behind the last whole line of a file.

    What is appended next would otherwise continue it.
    """
    content = Path(path).read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with writing(path) as file:
            file.write(whole)


def replace_directory(temporary: str | Path, path: str | Path) -> None:
    """Give a directory that is complete its name; one that has the name already is removed.

    Between the two neither is there: a process that dies then has to write it again.
    """
    path = Path(path)
    for folder, _, names in os.walk(temporary):
        for name in names:
            flush(Path(folder) / name)
        flush(Path(folder))
    if path.exists():
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)  # in one step: no half of it ever has the name
        os.replace(temporary, path)
        shutil.rmtree(old)
    else:
        os.replace(temporary, path)
    flush(path.parent)


def sizes_of_files(folder: str | Path) -> dict[str, int]:
    """The size in bytes of each file in a directory and below, by its path in it."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def has_files(folder: str | Path, sizes: dict[str, int]) -> bool:
    """Whether a directory has these files, and all of them whole."""
    found = sizes_of_files(folder)
    return all(found.get(name) == size for name, size in sizes.items())


def flush(path: str | Path) -> None:
    """Have a file, or the names in a directory, written to the disk."""
    if os.name == "nt" and Path(path).is_dir():
        return  # Windows opens no directories, and flushes their entries by itself
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
