"""What the directions tab shows, of a visitor's fit or of the model's own directions."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.lab import LabFit, Look
from ace_core.ui.directions import views as show
from ace_core.ui.directions.in_use import DirectionsInUse
from ace_core.ui.directions.tab import DirectionsTab
from ace_core.ui.handlers import Handlers
from ace_core.ui.sessions import Session

__all__ = ["Looking"]

Update = dict[Any, Any]

_SHIPPED = "the model's own"


class Looking:
    """Event handlers that need no model thread; an update maps components to their new values.

    Args:
        handlers: of the page.
        tab: components of the tab.
        in_use: what Compare steers with.
    """

    def __init__(self, handlers: Handlers, tab: DirectionsTab, in_use: DirectionsInUse) -> None:
        self.page, self._host, self.tab, self.in_use = handlers, handlers.host, tab, in_use

    def open(self, request: gr.Request) -> Update:
        """Draw the model's own directions until there is a fit, and say which ones are in use."""
        session, state = self.session(request), self._host.state
        session.bench.opened = True
        told = self.in_use.told(session)
        if session.bench.current(state):
            return told
        shipped = self.in_use.shipped_look()
        drawn = {} if shipped is None else self.drawn(session, shipped.recommended)
        return {**told, **drawn, self.tab.use: gr.Button(interactive=False)}

    def tell(self, request: gr.Request) -> Update:
        """Which directions are in use; the tab is drawn only for those who look at it."""
        session = self.session(request)
        return self.open(request) if session.bench.opened else self.in_use.told(session)

    def look(self, request: gr.Request, block: Any) -> Update:
        """Both plots of another layer, and its table if that is known."""
        session = self.session(request)
        look, fit = self.seen(session)
        if look is None or not self.turn(session, block):
            return {self.tab.classes: gr.skip()}
        number = session.bench.block or 0
        return {
            self.tab.classes: show.classes(look, number),
            self.tab.plane: show.plane(fit, number),
            **self.table(session),
        }

    def keep(self, request: gr.Request) -> Update:
        """Put the directions that are shown aside, to compare others with them."""
        session = self.session(request)
        shown = self._shown(session)
        if shown is None:
            return {self.tab.beside: gr.skip()}
        session.bench.kept = (*shown, self._host.state.info)
        return self._beside(session)

    def compare_with(self, request: gr.Request, which: object) -> Update:
        """The plot of two directions with another second one."""
        session = self.session(request)
        session.bench.beside = "kept" if which == "kept" else "shipped"
        return self._beside(session)

    def seen(self, session: Session) -> tuple[Look | None, LabFit | None]:
        """What is shown: a fit, or the model's own directions and no fit."""
        bench = session.bench
        if bench.current(self._host.state):
            return bench.look, bench.fit
        return self.in_use.shipped_look(), None

    def drawn(self, session: Session, block: int) -> Update:
        """Everything that is shown, at a block."""
        tab, (look, fit) = self.tab, self.seen(session)
        if look is None:
            return {}
        session.bench.block = block
        choice = session.bench.choice if fit is not None else None
        return {
            tab.shown: show.shown(fit, look),
            tab.recommendation: show.recommendation(look, fit, choice),
            tab.candidates: show.candidates(choice),
            tab.layers: show.layers(look),
            tab.cosines: show.cosines(look),
            **self._beside(session),
            tab.block: gr.Slider(maximum=look.blocks - 1, value=block),
            tab.classes: show.classes(look, block),
            tab.plane: show.plane(fit, block),
            **self.table(session),
        }

    def turn(self, session: Session, block: Any) -> bool:
        """Look at a block from now on; False, and nothing changes, for anything that is none of the model's."""
        look, _ = self.seen(session)
        if look is None or isinstance(block, bool) or not isinstance(block, (int, float)):
            return False
        if not 0 <= block < look.blocks or block != int(block):
            return False
        session.bench.block = int(block)
        return True

    def table(self, session: Session) -> Update:
        """Which coordinates ACE reaches at the block looked at, or why that is not known."""
        fit, possible = self.seen(session)[1], False
        bench, block = session.bench, session.bench.block
        try:
            self._host.policy.check_work()
            if fit is None or block is None:
                shown = show.never_achieved()
            elif block in bench.tables:
                shown = show.achieved(bench.tables[block])
            else:
                lab.check_block_table(fit)
                possible = not bench.busy
                told = f"Block {block} is not measured yet."
                if bench.words is not None and bench.words[0] == block:
                    told = bench.words[1]
                elif bench.busy:
                    told = f"Block {block} must wait: something else is running."
                classes = zip(lab.KINDS, lab.table_prompts(fit), strict=True)
                shown = show.not_achieved(told, [kind for kind, texts in classes if texts])
        except EngineError as error:
            shown = show.never_achieved(str(error))
        return {self.tab.achieved: shown, self.tab.measure: gr.Button(interactive=possible)}

    def _shown(self, session: Session) -> tuple[RefusalDirections, str] | None:
        bench, own = session.bench, self._host.state.directions
        if bench.current(self._host.state) and bench.fit is not None and bench.directions is not None:
            return bench.directions, bench.fit.name
        return None if own is None else (own, _SHIPPED)

    def _beside(self, session: Session) -> Update:
        """The shown directions beside the model's own or the kept ones."""
        shown, own, kept = self._shown(session), self._host.state.directions, session.bench.kept
        other = None if own is None else (own, _SHIPPED)
        if session.bench.beside == "kept":
            other = None if kept is None else (kept[0], f"kept: {kept[1]}")
        found = None
        if shown is not None and other is not None and shown[0] is not other[0]:
            found = lab.beside(shown[0], other[0], (shown[1], other[1]))
        told = "" if kept is None else kept[1]
        return {self.tab.beside: show.beside(found), self.tab.beside_words: show.beside_words(found, told)}

    def session(self, request: gr.Request) -> Session:
        """Of the page that asks."""
        return self.page.sessions.get(request.session_hash)
