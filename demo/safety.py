"""Keeps the page to its own visitors: which requests are answered, and what a browser may load.

The page listens on loopback alone. That does not keep out other sites, whose pages a visitor's
browser also shows: their scripts can send requests to 127.0.0.1, or give a name of their own its
address (DNS rebinding). `Gate` stands in front of the whole application and answers neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
# Gradio fetches other addresses for these; the page has no use for them.
CLOSED_ROUTES = ("/proxy=", "/file=http", "/gradio_api/component_server", "/monitoring")
BYTES_OF_MESSAGE = 8 * 2**20  # of a request that is no upload
# A browser loads nothing from elsewhere, whatever a model or a visitor writes. Gradio's own page
# needs inline scripts and evaluated ones.
CONTENT_POLICY = "; ".join((
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "media-src 'self' data: blob:",
    "font-src 'self' data:",
    "connect-src 'self' data: blob:",
    "worker-src 'self' blob:",
    "object-src 'none'",
    "frame-ancestors 'none'",
    "form-action 'self'",
))  # fmt: skip
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def refusal(headers: Headers, path: str, method: str) -> str | None:
    """Why a request is not answered, or None if it is.

    Args:
        headers: of the request.
        path: that it asks for.
        method: of HTTP.
    """
    host = headers.get("host", "")
    if _without_port(host) not in OWN_NAMES:
        return f"The page is not served as {host!r}: open it as http://127.0.0.1 with its port."
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return f"A page of {origin!r} may not use this one."
    is_opened = headers.get("sec-fetch-mode") == "navigate" and method == "GET"
    is_from_elsewhere = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
    if is_from_elsewhere and not is_opened:
        return "Another site's page may not use this one."
    if any(route in path for route in CLOSED_ROUTES):
        return "There is nothing at this address."
    return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


class TooLargeError(ValueError):
    """A request has more bytes than are accepted."""


class Gate:
    """An ASGI application in front of another, which gets only what `refusal` lets through.

    Args:
        app: the other application.
        folder: where it keeps uploads.
        bytes_of_upload: that one request with uploads may have.
        bytes_of_folder: that all uploads together may have.
    """

    def __init__(
        self, app: Application, folder: Path, bytes_of_upload: int, bytes_of_folder: int
    ) -> None:
        self.app = app
        self.folder = folder
        self.bytes_of_upload = bytes_of_upload
        self.bytes_of_folder = bytes_of_folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        reason = refusal(headers, scope["path"], scope.get("method", "GET"))
        if scope["type"] != "http" or reason is not None:
            await _refuse(403, reason or "Only HTTP is spoken here.", scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        most = self.bytes_of_upload if is_upload else BYTES_OF_MESSAGE
        if is_upload and size_of_folder(self.folder) > self.bytes_of_folder:
            reason = "The page has no room for more pictures: restart it to empty its folder."
            await _refuse(507, reason, scope, receive, send)
            return
        if int(headers.get("content-length") or 0) > most:
            await _refuse(413, _too_large(most), scope, receive, send)
            return
        await self._hand_on(scope, receive, send, most)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        """Let the application answer, with at most so many bytes of the request."""
        received = 0
        is_refused = False
        has_begun = False

        async def counted() -> Message:
            nonlocal received, is_refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > most and not is_refused:
                is_refused = True
                if not has_begun:
                    await _refuse(413, _too_large(most), scope, receive, send)
            if is_refused:
                raise TooLargeError(_too_large(most))
            return message

        async def with_headers(message: Message) -> None:
            nonlocal has_begun
            if is_refused:  # what the application makes of the error
                return
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        with contextlib.suppress(TooLargeError):
            await self.app(scope, counted, with_headers)


def size_of_folder(folder: Path) -> int:
    """Bytes of all files under a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # cleaned up meanwhile
            continue
    return total


def _too_large(most: int) -> str:
    return f"This is too large: at most {most / 2**20:.0f} MiB can be sent at once."


async def _refuse(status: int, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    await PlainTextResponse(reason, status, dict(HEADERS))(scope, receive, send)
