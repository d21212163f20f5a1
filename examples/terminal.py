"""A conversation in a terminal: `make chat` without a question.

    terminal = Terminal(Dialogue(model, tokenizer, options))
    terminal.run()

Lines are questions, or commands that begin with a slash (`COMMANDS`). Ctrl-C stops an answer, which
is kept as far as it was written; Ctrl-C or Ctrl-D at the prompt ends the conversation. Thinking is
dimmed, unless NO_COLOR is set (https://no-color.org) or the terminal has no styles.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import durable
from examples import line_editing
from examples.dialogue import Dialogue
from remote_code import conversation

PROMPT = "> "
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
# What a model or a file could make a terminal do besides showing letters
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What a user can put right, or the machine's memory; anything else is a fault of the code
ERRORS = (OSError, ImportError, ValueError, MemoryError, torch.cuda.OutOfMemoryError)
# Each command with what follows it, and what it does
COMMANDS = {
    "/image": ("PATH [PATH...]", "show images with the next question; alone: take them back"),
    "/new": ("", "forget the conversation and begin another"),
    "/think": ("[on|off]", "whether the model thinks before it answers"),
    "/save": ("FILE", "write the conversation to a JSON file"),
    "/help": ("", "this list"),
    "/quit": ("", "end (so do Ctrl-C and Ctrl-D)"),
}
WITH_PATHS = ("/image", "/save")


class ShownAnswer:
    """Prints an answer as it comes, under headings for thinking and answer.

    Args:
        thinks: whether the answer begins with thinking.
        dims: whether the thinking is dimmed.
    """

    def __init__(self, thinks: bool, dims: bool) -> None:
        self._thinks = thinks
        self._dims = dims
        self._held = ""  # what may be the beginning of a `</think>`
        self._heading = "Thinking:\n" if thinks else "Answer:\n"  # until something is written

    def write(self, piece: str) -> None:
        """Print the next piece of the answer."""
        self._show(self._heading)
        self._heading = ""
        text = self._held + piece
        self._held = ""
        if not self._thinks:
            self._show(text)
            return
        thinking, mark, answer = text.partition(conversation.THINK_END)
        if mark:
            self._show(thinking)
            self._thinks = False
            self._show(f"\nFinal answer:{answer}")
            return
        length = common_length(text, conversation.THINK_END)
        self._held = text[len(text) - length :]
        self._show(text[: len(text) - length])

    def end(self) -> None:
        """Print what was held back, and end the line."""
        self._show(self._held)
        self._held = ""
        print(flush=True)

    def _show(self, text: str) -> None:
        """Print a text; the style ends with it, so that no Ctrl-C leaves the terminal dim."""
        text = printable(text)
        if text and self._thinks and self._dims:
            text = f"{DIM}{text}{NORMAL}"
        print(text, end="", flush=True)


class Terminal:
    """Reads lines, and asks, obeys and prints until there are no more.

    Args:
        dialogue: the conversation.
        dims: whether thinking is dimmed; by default where the terminal can.
    """

    def __init__(self, dialogue: Dialogue, dims: bool | None = None) -> None:
        self.dialogue = dialogue
        self.dims = has_styles() if dims is None else dims
        self._saved: set[Path] = set()  # files that are this conversation's own
        self._actions: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/new": self._new,
            "/think": self._think,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self) -> None:
        """Read lines until the end; errors are said in a sentence, and the conversation goes on."""
        line_editing.enable(list(COMMANDS), WITH_PATHS)
        while True:
            try:
                line = input(PROMPT).strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line == "/quit":
                return
            self.obey(line)

    def obey(self, line: str) -> None:
        """Do what a line says; an error is printed as one sentence."""
        try:
            if re.match(r"/\w", line):
                self._command(line)
            elif line:
                self.ask(line)
        except ERRORS as error:
            print(f"error: {one_line(error)}")
        except KeyboardInterrupt:
            print("\n(stopped)")

    def ask(self, question: str) -> None:
        """Ask, print the answer as it comes, and keep it, also where Ctrl-C stops it.

        Raises:
            OSError, ValueError: what `chat()` raises; nothing is kept then.
        """
        # a terminal may send bytes that are no letters
        question = question.encode("utf-8", "replace").decode("utf-8")
        stream = self.dialogue.ask(question)
        answer = ShownAnswer(self.dialogue.thinks, self.dims)
        was_stopped = print_pieces(stream, answer)
        turn = self.dialogue.keep(question, stream)
        if turn is None:
            print("(stopped before the answer began; the question is not kept)")
        elif was_stopped:
            print("(stopped; the answer is kept as far as it is written)")
        elif not turn.is_whole:
            print("(cut: the answer reached its longest length, --max-new-tokens of chat.py)")

    # -- commands ----------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        action = self._actions.get(name)
        if action is None:
            raise ValueError(f"{name} is no command; /help lists them, and /image shows an image.")
        action(rest.strip())

    def _image(self, rest: str) -> None:
        if not rest:
            self.dialogue.drop_waiting()
            print("(no image goes with the next question)")
            return
        self.dialogue.add_images(paths_in(rest))
        print(f"(with the next question: {', '.join(self.dialogue.waiting)})")

    def _new(self, rest: str) -> None:
        check_nothing("/new", rest)
        self.dialogue.start_anew()
        self._saved.clear()
        print("(a new conversation)")

    def _think(self, rest: str) -> None:
        if rest not in ("", "on", "off"):
            raise ValueError(f"/think {rest}: expected on or off, or nothing to change it.")
        if not self.dialogue.can_think:
            raise ValueError("this model answers without thinking, and cannot do otherwise.")
        self.dialogue.thinks = rest == "on" if rest else not self.dialogue.thinks
        print("(the model thinks)" if self.dialogue.thinks else "(the model does not think)")

    def _save(self, rest: str) -> None:
        names = paths_in(rest)
        if len(names) != 1:
            raise ValueError("/save takes one file, such as /save conversation.json.")
        path = Path(names[0])
        if not self.dialogue.turns:
            raise ValueError(f"/save {path}: nothing has been asked yet.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder.")
        if path.exists() and path.resolve() not in self._saved:
            raise FileExistsError(f"{path} exists: save under another name.")
        durable.write_json(path, self.dialogue.record())
        self._saved.add(path.resolve())
        print(f"(saved to {path})")

    def _help(self, rest: str) -> None:
        check_nothing("/help", rest)
        for name, (arguments, words) in COMMANDS.items():
            print(f"{f'{name} {arguments}':24}{words}")
        print("Anything else is a question. Ctrl-C stops an answer, which is kept.")


def print_pieces(stream: Any, answer: ShownAnswer) -> bool:
    """Print the pieces of a stream to its end; returns whether Ctrl-C stopped it."""
    was_stopped = False
    while True:
        try:
            for piece in stream:
                answer.write(piece)
            answer.end()
            return was_stopped
        except KeyboardInterrupt:
            was_stopped = True
            with contextlib.suppress(KeyboardInterrupt):  # of those who press it again
                stream.close()


def has_styles() -> bool:
    """Whether text may be dimmed: in a terminal, unless the user or the terminal says no."""
    is_wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return sys.stdout.isatty() and is_wanted


def common_length(text: str, mark: str) -> int:
    """How many characters at the end of a text are the beginning of a mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


def printable(text: str) -> str:
    """A text without the characters that a terminal takes for orders."""
    return CONTROL_CHARACTERS.sub("", text)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def check_nothing(command: str, rest: str) -> None:
    """Check that nothing follows a command.

    Raises:
        ValueError: something does.
    """
    if rest:
        raise ValueError(f"{command} stands alone; after it came {rest!r}.")


def paths_in(text: str) -> list[str]:
    """The paths and URLs of a command, with spaces in quotes or behind backslashes, as in a shell.

    A text that is the path of a file as it stands is that one path.

    Raises:
        ValueError: a quote that is not closed.
    """
    if os.path.exists(os.path.expanduser(text)):
        return [os.path.expanduser(text)]
    try:
        return [os.path.expanduser(word) for word in shlex.split(text)]
    except ValueError as error:
        raise ValueError(f"{text}: {error}; put a path with spaces in quotes.") from error
