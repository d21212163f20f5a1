"""A program in a pseudo-terminal, typed at and read as a user does.

    with Program([sys.executable, "-m", "a_program"]) as program:
        program.read_until("> ")
        program.type("a line\\n")

Its input, output and errors are one terminal, which is also its controlling one: a Ctrl-C that is
typed reaches it as SIGINT. Deadlines only end a test that hangs.
"""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time

CTRL_C, CTRL_D = "\x03", "\x04"
SECONDS = 120  # until a program that says nothing is given up


def _begin_session():
    """What a shell in a terminal does for a program, in the program's process."""
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
    # Tests that run in the background inherit that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
    """A program and what it has written so far; `text` is without the terminal's returns."""

    def __init__(self, command, folder=None, stdin=None, **settings):
        self._master, slave = pty.openpty()
        self.text = ""
        self._read = 0  # how much of the text the last `read_until` had passed
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            command,
            stdin=slave if stdin is None else stdin,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**environment, **settings},
            start_new_session=True,
            preexec_fn=_begin_session,
        )
        os.close(slave)

    def type(self, text):
        """Type a text."""
        os.write(self._master, text.encode())

    def read_until(self, mark):
        """What the program wrote since the last call, up to a mark that it writes."""
        deadline = time.monotonic() + SECONDS
        while mark not in self.text[self._read :]:
            if not self._read_more(deadline):
                raise AssertionError(f"{mark!r} did not come: {self.text[self._read :]!r}")
        end = self.text.index(mark, self._read) + len(mark)
        found = self.text[self._read : end]
        self._read = end
        return found

    def end(self):
        """Read to the end of the program; its exit status."""
        deadline = time.monotonic() + SECONDS
        while self._read_more(deadline):
            pass
        return self.process.wait(timeout=SECONDS)

    def interrupt(self):
        """Press Ctrl-C at a prompt until the program takes it, with a new line; its exit status.

        Python's readline keeps one that comes just as the prompt appears until the next key.
        """
        give_up = time.monotonic() + SECONDS
        while "\n" not in self.text[self._read :] and time.monotonic() < give_up:
            self.type(CTRL_C)
            until = time.monotonic() + 3
            while "\n" not in self.text[self._read :] and self._read_more(until):
                pass
        return self.end()

    def _read_more(self, deadline):
        """Read what is there, or wait for it; False at the end of the program."""
        ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            content = os.read(self._master, 65536)
        except OSError:  # Linux, when the program has closed its side
            return False
        self.text += content.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(content)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self._master)
