"""Downloads images from http(s) URLs that a stranger may have written.

A download has a largest size and a total deadline, and reaches public addresses only, so that a
service which opens its users' URLs cannot be made to wait, to fill its memory, or to read from the
network that it is in.

This file imports no sibling: before 5.9 transformers copies only the files that the image processor
imports itself.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import urllib.parse
import urllib.request
from typing import Any

TOTAL_SECONDS = 30.0
LARGEST_DOWNLOAD = 64 * 2**20  # bytes
CHUNK = 2**16  # bytes
# What an URL may have beside letters and digits; anything else is percent-encoded.
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"


class Deadline:
    """Shuts connections down when the time is over, whatever they are waiting for.

    Args:
        seconds: from the start of the `with` block.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._shut_down)

    def __enter__(self) -> Deadline:
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._timer.cancel()

    def watch(self, connection: socket.socket) -> None:
        """Shut this connection down as well, at once if the time is over already."""
        with self._lock:
            self._sockets.append(connection)
        if self.is_over:
            self._shut_down()

    def _shut_down(self) -> None:
        self.is_over = True
        with self._lock:
            for connection in self._sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # it is closed already
                    continue


def download(
    url: str,
    allow_internal: bool = False,
    seconds: float = TOTAL_SECONDS,
    largest: int = LARGEST_DOWNLOAD,
) -> bytes:
    """What is at an URL.

    Args:
        allow_internal: reach addresses that are not public, too, such as 127.0.0.1 or 10.0.0.1.
        seconds: for the whole download, redirects included.
        largest: in bytes.

    Raises:
        ValueError: whatever goes wrong, with the URL in front.
    """
    with Deadline(seconds) as deadline:
        opener = urllib.request.build_opener(
            _CheckedHTTPHandler(deadline, allow_internal),
            _CheckedHTTPSHandler(deadline, allow_internal),
        )
        try:
            with opener.open(_ascii_url(url), timeout=seconds) as response:
                content = _read(response, deadline, largest)
        # urllib's own errors are OSErrors, and a malformed address raises a ValueError
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"no answer within {seconds:g} s" if deadline.is_over else error
            raise ValueError(f"{url}: could not be downloaded ({reason}).") from error
    return content


def _read(response: Any, deadline: Deadline, largest: int) -> bytes:
    """The whole body of a response.

    Raises:
        ValueError: it is larger, or takes longer, than allowed, or ends early.
    """
    stated = response.headers.get("Content-Length")
    if stated is not None and stated.isdigit() and int(stated) > largest:
        raise ValueError(f"{stated} bytes, and at most {largest} are read")
    chunks = []
    size = 0
    # read1() returns what has arrived; read() would wait for a whole chunk
    while chunk := response.read1(CHUNK):
        size += len(chunk)
        if size > largest:
            raise ValueError(f"more than the {largest} bytes that are read")
        chunks.append(chunk)
    if deadline.is_over:
        raise ValueError("the time is over")
    if stated is not None and stated.isdigit() and size < int(stated):
        raise ValueError(f"it ended after {size} of {stated} bytes")
    return b"".join(chunks)


def _ascii_url(url: str) -> str:
    """The URL with everything percent-encoded that may not stand in one, the host as IDNA."""
    parts = urllib.parse.urlsplit(url.strip())
    if not parts.hostname:
        raise ValueError("the URL has no host")
    netloc = parts.netloc
    if not netloc.isascii():
        netloc = netloc.replace(parts.hostname, parts.hostname.encode("idna").decode("ascii"))
    quoted = [
        urllib.parse.quote(part, safe=URL_CHARACTERS)
        for part in (parts.path, parts.query, parts.fragment)
    ]
    return urllib.parse.urlunsplit((parts.scheme.lower(), netloc, *quoted))


class _Checked:
    """What both handlers share: connections that are watched and checked."""

    def __init__(self, deadline: Deadline, allow_internal: bool) -> None:
        super().__init__()
        self.deadline = deadline
        self.allow_internal = allow_internal

    def connection_class(self, base: Any, request: urllib.request.Request) -> Any:
        """The class of a request's connection."""
        return _checked(base, self.deadline, self.allow_internal or request.has_proxy())


class _CheckedHTTPHandler(_Checked, urllib.request.HTTPHandler):
    """Opens http URLs."""

    def http_open(self, req: urllib.request.Request) -> Any:
        """Called by urllib for each http URL, redirects included."""
        return self.do_open(self.connection_class(http.client.HTTPConnection, req), req)


class _CheckedHTTPSHandler(_Checked, urllib.request.HTTPSHandler):
    """Opens https URLs."""

    def https_open(self, req: urllib.request.Request) -> Any:
        """Called by urllib for each https URL, redirects included."""
        return self.do_open(self.connection_class(http.client.HTTPSConnection, req), req)


def _checked(connection_class: Any, deadline: Deadline, allow_internal: bool) -> Any:
    """A class of connections that reach public addresses only, and end at the deadline.

    Args:
        allow_internal: reach any address. It is on for a proxy of the environment, whose policy
            decides what it reaches.
    """

    class Connection(connection_class):
        """Of one download."""

        def connect(self) -> None:
            if not allow_internal:
                _check_public(self.host, self.port)
            super().connect()
            deadline.watch(self.sock)
            if not allow_internal:  # a name may stand for another address the second time
                _check_address(self.sock.getpeername()[0], self.host)

    return Connection


def _check_public(host: str, port: int) -> None:
    """Check that a host's name stands for public addresses only.

    Raises:
        ValueError: it does not.
    """
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        _check_address(str(address[0]), host)


def _check_address(address: str, host: str) -> None:
    found = ipaddress.ip_address(address.split("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if not found.is_global:
        raise ValueError(
            f"{host} is the internal address {address}; the image processor's setting "
            "allow_internal_urls=True allows it"
        )
