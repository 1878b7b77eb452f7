"""What stands before Gradio's routes for programs: requests that would fail inside Gradio are answered here.

Gradio answers a wrong number of arguments, an unknown name or a body nested too deep with an error 500 and a traceback,
and takes objects that look like files for files. Here each gets one sentence, under ``detail``: status 400 for a body
or an argument that can't be used, 404 for a name or an event that does not exist, 413 for a body that is too large.
What an endpoint itself refuses arrives later, as the stream's ``error`` event.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.utils import get_function_params
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ace_core.ui.api.events import Events

__all__ = ["Guard", "guarded"]

_MOST_BYTES = 1_000_000
_DEEPEST = 16
_SHOWN = 40
_POSTED = re.compile(r"/gradio_api/(call/v2|call|run|api|queue/join)(?:/([^/]*))?/?$")
_STREAMED = re.compile(r"/gradio_api/(?:call/(?:v2/)?[^/]+/([^/]+)|queue/data)/?$")
_EVENT = re.compile(rb'"event_id":\s*"([^"]+)"')


def guarded(page: gr.Blocks, **arguments: Any) -> Middleware:
    """The guard of a page, for ``launch(app_kwargs={"middleware": [...]})``."""
    return Middleware(Guard, page=page, **arguments)


@dataclass(frozen=True)
class _Refusal(Exception):
    status: int
    sentence: str


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands before.
        page: whose public events are the endpoints.
        unfollowed: how many calls may be asked for whose stream nobody follows; older ones are ended.
    """

    def __init__(self, app: ASGIApp, page: gr.Blocks, unfollowed: int = 128) -> None:
        self._app, self._page, self._events = app, page, Events(page, unfollowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if method == "POST" and (posted := _POSTED.search(scope["path"])):
            try:
                payload = _parsed(await _body(scope, receive))
                path, payload = self._checked(posted[1], posted[2] or "", payload)
            except _Refusal as refusal:
                await JSONResponse({"detail": refusal.sentence}, refusal.status)(scope, receive, send)
                return
            named, body = path is not None, json.dumps(payload).encode()
            path = scope["path"] if path is None else scope["path"][: posted.start()] + path
            await self._app(*_replayed(scope, receive, path, body), self._noting(send) if named else send)
        elif method == "GET" and (streamed := _STREAMED.search(scope["path"])):
            await self._streamed(scope, receive, send, streamed[1])
        else:
            await self._app(scope, receive, send)

    def _checked(self, route: str, name: str, payload: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Where the request goes, None for where it came, and the body that arrives there."""
        functions = self._page.fns
        if route.startswith("call"):
            function = self._public().get(name)
            if function is None:
                raise _Refusal(404, f"There is no endpoint '{name[:_SHOWN]}': call {', '.join(self._public())}.")
            arguments = payload if route == "call/v2" else payload.get("data")
            # no session: a call must not write into somebody's page
            return f"/gradio_api/call/{name}", {"data": _arguments(function, arguments)}
        index = payload.get("fn_index")
        function = functions.get(index) if isinstance(index, int) else None
        if function is None:
            raise _Refusal(404, "There is no such event on this page: reload it, or call a named endpoint.")
        if function.api_visibility == "public":
            return None, {
                "data": _arguments(function, payload.get("data")),
                "fn_index": index,
                "session_hash": payload.get("session_hash"),
            }
        data = payload.get("data")
        if not isinstance(data, list) or len(data) < len(function.inputs):
            raise _Refusal(400, "The page sent too little for this event: reload it.")
        return None, payload

    def _public(self) -> Mapping[str, BlockFunction]:
        functions = self._page.fns.values()
        return {str(f.api_name): f for f in functions if f.api_visibility == "public" and f.fn is not None}

    def _noting(self, send: Send) -> Send:
        async def noted(message: Message) -> None:
            if event := _EVENT.search(message.get("body", b"")):
                await self._events.asked(event[1].decode())
            await send(message)

        return noted

    async def _streamed(self, scope: Scope, receive: Receive, send: Send, event: str | None) -> None:
        """An unknown event ends its stream with an error event; what Gradio raises after that would only be logged.

        The event is forgotten at the end; None is the stream of a whole session, which has a page.
        """
        begun = False
        if event is not None:
            self._events.followed(event)

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if not (begun and _of_http(error)):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if event is not None:
                self._events.forget(event)


def _of_http(error: BaseException | None) -> bool:
    """Whether an exception is, holds or comes from one that stands for a status."""
    if error is None or isinstance(error, HTTPException):
        return error is not None
    return any(map(_of_http, getattr(error, "exceptions", ()))) or _of_http(error.__cause__)


async def _body(scope: Scope, receive: Receive) -> bytes:
    too_large = _Refusal(413, f"The body is larger than {_MOST_BYTES:,} bytes: send less.")
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > _MOST_BYTES:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MOST_BYTES:
            raise too_large
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(body)


def _parsed(body: bytes) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise _Refusal(400, f"The body holds {word}, which JSON has no word for: send a number.")

    try:
        payload = json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise _Refusal(400, "The body is not JSON that can be read: send an object.") from None
    if not isinstance(payload, dict):
        raise _Refusal(400, "The body must be a JSON object.")
    _check_parts(payload)
    return payload


def _check_parts(payload: dict[str, Any]) -> None:
    """No nesting that breaks Gradio, and no text that can't be written down again."""
    level: list[Any] = [payload]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii() and not _encodable(value):
                raise _Refusal(400, "The body holds half a character (a lone surrogate): send whole ones.")
        level = below
    if level:
        raise _Refusal(400, f"The body is nested deeper than {_DEEPEST} levels: send plain values.")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _arguments(function: BlockFunction, given: object) -> list[Any]:
    """All arguments of an endpoint in order, from a list or by name, defaults filled in."""
    assert function.fn is not None
    wanted = get_function_params(function.fn)
    names = [name for name, *_ in wanted]
    if isinstance(given, list):
        if len(given) > len(names):
            raise _Refusal(400, f"{function.api_name} takes at most {len(names)} arguments: {', '.join(names)}.")
        given = dict(zip(names, given, strict=False))
    if not isinstance(given, dict):
        raise _Refusal(400, f"The body must hold 'data', a list of arguments in order: {', '.join(names)}.")
    if extra := [name for name in given if name not in names]:
        raise _Refusal(
            400, f"{function.api_name} has no argument '{extra[0][:_SHOWN]}': choose among {', '.join(names)}."
        )
    if missing := [name for name, has_default, *_ in wanted if not has_default and name not in given]:
        raise _Refusal(400, f"{function.api_name} needs '{missing[0]}': send it.")
    for name, value in given.items():
        # Gradio would take some for files
        if _holds_object(value):
            raise _Refusal(400, f"'{name}' holds an object, and no argument does: send plain values.")
    return [given.get(name, default) for name, _, default, _ in wanted]


def _holds_object(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_object, value)))


def _replayed(scope: Scope, receive: Receive, path: str, body: bytes) -> tuple[Scope, Receive]:
    """The request with another body, to be read once more."""
    kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [*kept, (b"content-length", str(len(body)).encode())]
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}, again
