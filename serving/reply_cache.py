"""Replies of an endpoint on disk, so that nothing is asked, or paid, twice.

One SQLite file, which survives a process that dies at any moment.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.client import Client, Message, Reply
from serving.sampling import Sampling


class ReplyCache:
    """Replies by model, messages and settings; it may be used from any number of threads.

    Args:
        path: of its file, which is made where there is none.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False)
        with self._connection:
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
            )

    def ask(
        self,
        client: Client,
        messages: Sequence[Message],
        sampling: Sampling,
        seed: int | None = None,
        number: int = 0,
        accept: Callable[[Reply], bool] = bool,
    ) -> Reply:
        """The reply to a conversation: the one on disk, or else a new one.

        Args:
            client: that is asked.
            messages: of the conversation.
            sampling: how the answer is drawn.
            seed: of this answer, or None.
            number: of the answer, where several to one conversation are wanted.
            accept: whether a reply is worth keeping; another one is asked for again next time.

        Raises:
            RequestFailed: no endpoint has answered; that is not kept.
        """
        key = _key(client.model, messages, sampling, seed, number)
        with self._lock:
            row = self._connection.execute(
                "SELECT reply FROM replies WHERE key = ?", (key,)
            ).fetchone()
        if row is not None:
            return Reply(*json.loads(row[0]))
        reply = client.ask(messages, sampling, seed)
        if not accept(reply):
            return reply
        with self._lock, self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply))
            )
        return reply


def _key(
    model: str, messages: Sequence[Message], sampling: Sampling, seed: int | None, number: int
) -> str:
    """What tells a request from others; the bytes of images are in the messages."""
    settings = {"max_new_tokens": sampling.max_new_tokens, **sampling.recorded, "seed": seed}
    content = json.dumps([model, list(map(dict, messages)), settings, number], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
