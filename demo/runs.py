"""Which visitor's answer is being written, so that it can be stopped."""

from __future__ import annotations

import threading

from demo.backend import Reply

SECONDS_TO_END = (
    60.0  # that a stopped answer has to end; the first token of a long prompt takes long
)


class Runs:
    """The answers that are being written, one for each visitor at most.

    A visitor is an open page; its name is that of the session.
    """

    def __init__(self) -> None:
        self._replies: dict[str, Reply] = {}
        self._changed = threading.Condition()

    def begin(self, session: str, reply: Reply) -> None:
        """Note that a reply is being written for a visitor."""
        with self._changed:
            self._replies[session] = reply

    def end(self, session: str, reply: Reply) -> None:
        """Note that it is complete."""
        with self._changed:
            if self._replies.get(session) is reply:
                del self._replies[session]
            self._changed.notify_all()

    def stop(self, session: str) -> bool:
        """End what is being written for a visitor, if anything is, and wait until it has ended.

        Returns:
            Whether there was anything.
        """
        with self._changed:
            reply = self._replies.get(session)
        if reply is None:
            return False
        reply.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._replies.get(session) is not reply, SECONDS_TO_END)
        return True

    def leave(self, session: str) -> None:
        """End what is being written for a visitor who has closed the page."""
        with self._changed:
            reply = self._replies.pop(session, None)
        if reply is not None:
            reply.stop()

    @property
    def number(self) -> int:
        """How many answers are being written."""
        with self._changed:
            return len(self._replies)
