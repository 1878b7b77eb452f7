"""What the server does beside the page: health, plotly.js, security headers, refused uploads, an end in good order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import disk_usage
from typing import Any

import gradio as gr
import plotly
from gradio.utils import get_upload_folder
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ace_core.errors import EngineError
from ace_core.host import ModelHost, Policy
from ace_core.journal import tell

__all__ = ["PLOTLY_ROUTE", "app_arguments", "health", "serve_until_told"]

# plotly-py carries the plotly.js it writes for; Gradio's own copy is a major version older.
_PLOTLY_JS = Path(str(plotly.__file__)).parent / "package_data" / "plotly.min.js"
PLOTLY_ROUTE = f"ace/plotly-{plotly.__version__}.min.js"
"""Where a page finds plotly.js, relative to its own address, so that it may be served under any path."""

_YEAR = "public, max-age=31536000, immutable"
_ROOM_FOR_UPLOADS = 2**30
"""Bytes that must be free on the disk for an upload to be taken."""
_DRAIN_SECONDS = 3.0
_LAST_WORDS_SECONDS = 0.7
"""For what the streams said last to reach the browsers."""


def health(host: ModelHost) -> tuple[dict[str, Any], bool, bool]:
    """What a health check is told, whether the server should go on living, and whether it can serve now.

    Nothing here comes from the host's message, which may name a path.
    """
    status, alive = host.state.status, host.alive
    told = {
        "status": status if alive else "dead",
        "running": host.active,
        "waiting": host.waiting,
        "computing": host.computing,
    }
    return told, alive and status != "failed", alive and status in ("ready", "recorded")


def app_arguments(
    host: ModelHost | None, embedders: Sequence[str] = (), more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments for the FastAPI application that Gradio makes.

    Args:
        host: whose health is told, without a sign-in: ``/healthz`` answers 200 unless its thread died or loading
            failed, ``/readyz`` only while it can serve.
        embedders: other sites that may show the page in a frame.
        more: other arguments; their routes and middleware come after these.
    """

    async def plotly_js(_request: Request) -> Response:
        return FileResponse(_PLOTLY_JS, media_type="text/javascript", headers={"Cache-Control": _YEAR})

    routes = [Route(f"/{PLOTLY_ROUTE}", plotly_js)]
    middleware = [Middleware(_Headers, embedders=tuple(embedders))]
    if host is not None:
        known = host

        async def healthz(_request: Request) -> Response:
            told, live, _ = health(known)
            return JSONResponse(told, 200 if live else 503, {"Cache-Control": "no-store"})

        async def readyz(_request: Request) -> Response:
            told, _, ready = health(known)
            return JSONResponse(told, 200 if ready else 503, {"Cache-Control": "no-store"})

        routes += [Route("/healthz", healthz), Route("/readyz", readyz)]
        middleware.append(Middleware(_Uploads, policy=host.policy))
    more = more or {}
    routes += more.get("routes", [])
    middleware += more.get("middleware", [])
    return {**more, "routes": routes, "middleware": middleware}


class _Headers:
    """Adds security headers to every answer.

    Gradio's page needs inline scripts, inline styles and functions made from text, so the policy's worth lies in the
    rest: nothing is loaded from, sent to or framed by other sites.
    """

    def __init__(self, app: ASGIApp, embedders: Sequence[str]) -> None:
        self._app = app
        own = "'self'"
        rules = {
            "default-src": [own],
            "script-src": [own, "'unsafe-inline'", "'unsafe-eval'"],
            "style-src": [own, "'unsafe-inline'"],
            "img-src": [own, "data:", "blob:"],
            "font-src": [own, "data:"],
            "media-src": [own, "data:", "blob:"],
            "connect-src": [own, "data:", "blob:"],
            "worker-src": [own, "blob:"],
            "frame-src": [own],
            "frame-ancestors": [own, *embedders],
            "form-action": [own],
            "base-uri": [own],
            "object-src": ["'none'"],
        }
        self._headers = {
            "Content-Security-Policy": "; ".join(f"{name} {' '.join(values)}" for name, values in rules.items()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers)


class _Uploads:
    """Refuses uploads where the policy takes none, or when the disk is nearly full."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload") and scope["method"] == "POST":
            try:
                self._policy.check_files()
            except EngineError as error:
                await PlainTextResponse(str(error), 403)(scope, receive, send)
                return
            if _free_bytes() < _ROOM_FOR_UPLOADS:
                full = PlainTextResponse("The server's disk is nearly full: try again later.", 507)
                await full(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _free_bytes() -> int:
    folder = Path(get_upload_folder())
    return disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def serve_until_told(page: gr.Blocks, host: ModelHost) -> None:
    """Serve a launched page until SIGTERM or SIGINT, then end every stream with a sentence and close.

    A second signal ends the process at once, as it does without this function.
    """
    told = threading.Event()
    received: list[int] = []

    def hear(number: int, _frame: Any) -> None:
        received.append(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    while not told.wait(0.5):  # a wait without an end would not let handlers run on every system
        pass
    begun = time.monotonic()
    tell("shutting down", signal=signal.Signals(received[0]).name, running=host.active, waiting=host.waiting)
    host.close(_DRAIN_SECONDS)
    time.sleep(_LAST_WORDS_SECONDS)
    page.close(verbose=False)
    tell("shut down", seconds=round(time.monotonic() - begun, 2), model_thread_ended=not host.alive)
