"""Putting the tokens of the visitor's own prompt on the map of the geometry tab."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

import gradio as gr

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.host import ModelInfo
from ace_core.lab import PlaneReading, PromptPlane
from ace_core.runs import Run
from ace_core.ui.handlers import Handlers
from ace_core.ui.packing import pack
from ace_core.ui.reading import PromptReading
from ace_core.ui.waiting import loading

__all__ = ["MOST", "TokensReader", "wire"]

MOST = 128
"""Tokens shown, the last ones of a longer prompt."""

_POLL_SECONDS = 0.25
_READINGS_AT_ONCE = 16
_PROMPT_CHARACTERS = 60
_NO_PROMPT = "There is no prompt yet: run one on the Compare tab, then press again."
_OWN = (
    "The directions in use are your own, and this map is drawn along the model's: press “Back to shipped” on the "
    "Compare tab, then press again."
)
_OTHER = (
    "The vectors of the loaded model are not those that this map was drawn along: start the page with the model's own "
    "to put tokens on it."
)


class TokensReader:
    """Event handlers of the tokens on the map.

    Args:
        handlers: of the page.
        data: what the geometry tab shows, see :func:`ace_core.ui.geometry.tab.load_map`.
        path: the file it came from.
    """

    def __init__(self, handlers: Handlers, data: dict[str, Any], path: Path) -> None:
        self._page, self._data, self._path = handlers, data, path

    @cached_property
    def _reading(self) -> PlaneReading:
        return PlaneReading.of_file(self._path)

    def put(self, request: gr.Request) -> Iterator[str]:
        """Read the prompt of the visitor's last run, or of the recorded one: values of the tab's component."""
        yield self._value("waiting", "Waiting for the model…")
        try:
            yield from self._put(request.session_hash)
        except EngineError as error:
            yield self._value("error", str(error))

    def _put(self, visitor: str | None) -> Iterator[str]:
        host, session = self._page.host, self._page.sessions.get(visitor)
        host.policy.check_run()
        run = session.run or self._page.recorded
        if run is None:
            raise EngineError(_NO_PROMPT)
        while (state := host.wait_ready(_POLL_SECONDS)).status == "loading":
            yield self._value("waiting", loading(state))
        if state.info is None:
            raise EngineError(state.message)
        self._check(state.info, state.directions, session.directions(state))
        runs = []
        for axis in self._reading.axes(state.info.blocks):
            reading = PromptReading(host, run.prompt, axis, visitor)
            for words_of_waiting in reading:
                yield self._value("waiting", words_of_waiting)
            runs.append(reading.run())
        found = self._reading.places(runs)
        yield self._value("done", words(run, found), found)

    def _check(self, info: ModelInfo, shipped: RefusalDirections | None, used: RefusalDirections | None) -> None:
        self._reading.check_model(info.model_id, info.name)
        if shipped is None or not self._reading.agrees(shipped):
            raise EngineError(_OTHER)
        if used is None or not self._reading.agrees(used):
            raise EngineError(_OWN)

    def _value(self, kind: str, text: str, found: PromptPlane | None = None) -> str:
        """Without tokens, those on the map stay. A new key each time, so that an equal answer arrives as well."""
        said: dict[str, Any] = {"key": uuid.uuid4().hex, "kind": kind, "text": text}
        if found is not None:
            shown = zip(found.tokens[-MOST:], found.places[-MOST:].tolist(), strict=True)
            said["tokens"] = [{"text": _visible(text), "x": x, "y": y} for text, (x, y) in shown]
        return pack({**self._data, "put": said})


def wire(tab: gr.HTML, reader: TokensReader) -> None:
    """Connect the tab's own button, which the script reports as a submission."""
    tab.submit(
        reader.put,
        None,
        tab,
        concurrency_id="tokens",
        concurrency_limit=_READINGS_AT_ONCE,
        trigger_mode="once",
        show_progress="hidden",
        api_visibility="private",
    )


def words(run: Run, found: PromptPlane) -> str:
    """Which tokens a visitor sees."""
    whose = "the recorded example" if run.recorded else "your last run"
    count = len(found.tokens)
    number = f"The last {MOST} of {count} tokens" if count > MOST else f"All {count} tokens"
    prompt = shorten(run.prompt, _PROMPT_CHARACTERS, placeholder="…")
    return f"{number} of {whose}, “{prompt}”, chat template included, read without any edit."


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace("\t", "⇥")
