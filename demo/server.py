"""Serves the page on loopback.

with server.running(backend, port=0) as address:
    print(address)  # http://127.0.0.1:40123
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HOST = "127.0.0.1"
SECONDS_TO_CLOSE = 3  # that open pages get when the server ends


class Served(NamedTuple):
    """A page that is being served.

    Attributes:
        address: its URL.
        handlers: of its events.
        folder: where uploads lie until the server ends.
    """

    address: str
    handlers: Any
    folder: Path


def listen(port: int) -> socket.socket:
    """A socket that listens on loopback.

    Args:
        port: 0 for one that is free.

    Raises:
        OSError: it is taken, or there is none of this number.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise OSError(
            f"port {port} cannot be listened on ({error}): give another as --port."
        ) from error


@contextlib.contextmanager
def running(
    backend: Any, listener: socket.socket | None = None, limits: Any = None
) -> Iterator[Served]:
    """Serve the page for a model while the block runs.

    Args:
        backend: a `Backend`.
        listener: as `listen` gives it, which is closed at the end; None for a port that is free.
        limits: `Limits` on what visitors send; None for the usual ones.
    """
    listener = listener or listen(0)
    with listener, tempfile.TemporaryDirectory(prefix="demo-") as folder, prepared(folder):
        import uvicorn

        app, handlers = make_app(backend, Path(folder), limits)
        config = uvicorn.Config(
            app, log_level="error", lifespan="on", timeout_graceful_shutdown=SECONDS_TO_CLOSE
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="page", daemon=True)
        thread.start()
        try:
            yield Served(f"http://{HOST}:{listener.getsockname()[1]}", handlers, Path(folder))
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def prepared(folder: str) -> Iterator[None]:
    """While the block runs, the environment has Gradio's settings, which it reads from there.

    Args:
        folder: for uploads.
    """
    settings = {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def make_app(backend: Any, folder: Path, limits: Any = None) -> tuple[Any, Any]:
    """(the ASGI application of the page, its handlers).

    Args:
        backend: a `Backend`.
        folder: for uploads, as `prepared` was given it.
        limits: as for `running`.
    """
    import fastapi
    import gradio

    from demo import page
    from demo.pictures import Limits
    from demo.safety import Gate

    limits = limits or Limits()
    blocks, handlers = page.build(backend, limits)
    outer = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gradio.mount_gradio_app(
        outer,
        blocks,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        max_file_size=limits.bytes_of_picture,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=page.THEME,
        css_paths=page.STYLE,
        js=page.SCRIPT.read_text(encoding="utf-8"),
    )
    # Only then does Gradio check that a picture of a question was uploaded here; launch() sets it,
    # mounting does not.
    blocks.has_launched = True
    most = limits.bytes_of_picture * limits.pictures_of_question
    return Gate(app, folder, most, limits.bytes_of_all), handlers
