"""Which directions Compare steers with, and how a visitor changes that."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.directions import RefusalDirections
from ace_core.lab import Look
from ace_core.ui.directions import views as show
from ace_core.ui.handlers import Handlers
from ace_core.ui.sessions import Session
from ace_core.ui.sidebar import Sidebar
from ace_core.ui.status import status

__all__ = ["DirectionsInUse"]

Update = dict[Any, Any]


class DirectionsInUse:
    """Event handlers of *Use in Compare* and of the way back.

    Args:
        handlers: of the page.
        line, back: of Compare, which directions are in use and the way back.
        said: status line of the directions tab.
        tabs: of the page.
        side: for the layer.
    """

    def __init__(
        self, handlers: Handlers, line: gr.HTML, back: gr.Button, said: gr.HTML, tabs: gr.Tabs, side: Sidebar
    ) -> None:
        self.page, self._host, self.status, self.tabs = handlers, handlers.host, said, tabs
        self.line, self.back_button, self.side = line, back, side
        self._shipped: tuple[RefusalDirections | None, Look | None] = (None, None)

    def use(self, request: gr.Request) -> Update:
        """Let Compare steer with the fit, at its recommended block."""
        session, state = self._session(request), self._host.state
        bench = session.bench
        directions = bench.directions
        if not bench.current(state) or directions is None or bench.fit is None or not bench.fit.steers:
            return {self.status: status("error", "There is nothing to use yet: press Fit first.")}
        session.use(directions, bench.fit.name, state.info)
        session.block = block = directions.recommended_layer
        return {
            **self.told(session),
            self.side.layer: gr.Slider(value=block),
            self.side.spark: self.page.sparkline(session, block),
            self.tabs: gr.Tabs(selected="compare"),
        }

    def back(self, request: gr.Request) -> Update:
        """Let Compare steer with the model's own directions again."""
        session = self._session(request)
        session.use(None)
        look = self.shipped_look()
        if look is None:
            return self.told(session)
        session.block = block = look.recommended
        return {
            **self.told(session),
            self.side.layer: gr.Slider(value=block),
            self.side.spark: self.page.sparkline(session, block),
        }

    def told(self, session: Session) -> Update:
        """Which directions are in use."""
        own = session.own(self._host.state)
        return {
            self.line: show.in_use(own, self.shipped_look()),
            self.back_button: gr.Button(visible=own is not None),
        }

    def shipped_look(self) -> Look | None:
        """The model's own directions, computed once a model."""
        directions = self._host.state.directions
        if self._shipped[0] is not directions:
            self._shipped = (directions, None if directions is None else lab.look_at(directions))
        return self._shipped[1]

    def _session(self, request: gr.Request) -> Session:
        return self.page.sessions.get(request.session_hash)
