"""Lines with history and completed paths, where Python has readline (Windows has not).

    line_editing.enable(("/image", "/help"), ("/image",))
    input("> ")

Lines are remembered until the program ends; no file is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DELIMITERS = " \t\n\"'"  # what begins a word, for readline
TO_ESCAPE = re.compile(r"([\s'\"\\])")


class LastWord(NamedTuple):
    """The word that a line ends in.

    Attributes:
        text: without quotes and backslashes; empty where the line ends in a space.
        quote: the quote that is still open, or an empty text.
    """

    text: str
    quote: str


def enable(commands: Sequence[str], with_paths: Sequence[str]) -> None:
    """Let `input()` remember lines and complete commands and paths on the tab key.

    Args:
        commands: the words that a line may begin with.
        with_paths: those of them that are followed by paths.
    """
    try:
        import readline
    except ImportError:
        return

    def complete(text: str, state: int) -> str | None:
        line = readline.get_line_buffer()[: readline.get_endidx()]
        found = completions(line, commands, with_paths)
        # readline replaces what stands between its last delimiter and the cursor
        return found[state][readline.get_begidx() :] if state < len(found) else None

    readline.set_completer_delims(DELIMITERS)
    readline.set_completer(complete)
    is_editline = "libedit" in (readline.__doc__ or "")  # as on macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_editline else "tab: complete")


def completions(line: str, commands: Sequence[str], with_paths: Sequence[str]) -> list[str]:
    """What a line may become: with a whole command, or with a longer path as its last word."""
    command, space, _ = line.partition(" ")
    if not space:
        return [f"{name} " for name in commands if line and name.startswith(line)]
    if command not in with_paths:
        return []
    word = last_word(line)
    folder, stem = os.path.split(word.text)
    found = []
    for path in sorted(entries(Path(os.path.expanduser(folder or ".")))):
        is_hidden = path.name.startswith(".") and not stem.startswith(".")
        if path.name.startswith(stem) and not is_hidden:
            found.append(line + ending(path, path.name[len(stem) :], word.quote))
    return found


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def ending(path: Path, rest: str, quote: str) -> str:
    """The rest of a path's name as it is typed, and what follows a folder or a file."""
    if quote:
        typed = rest.replace(quote, f"{quote}\\{quote}{quote}")  # closed, escaped, opened again
    else:
        typed = TO_ESCAPE.sub(r"\\\1", rest)
    if path.is_dir():
        return typed + "/"
    return f"{typed}{quote} "


def last_word(line: str) -> LastWord:
    """The last word of a line, in which quotes and backslashes keep spaces, as in a shell."""
    text = ""
    quote = ""
    is_escaped = False
    for letter in line:
        if is_escaped:
            text += letter
            is_escaped = False
        elif letter == "\\" and quote != "'":
            is_escaped = True
        elif letter == quote:
            quote = ""
        elif not quote and letter in "\"'":
            quote = letter
        elif not quote and letter.isspace():
            text = ""
        else:
            text += letter
    return LastWord(text, quote)
