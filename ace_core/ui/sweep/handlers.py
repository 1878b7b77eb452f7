"""What happens in the sweep tab."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from ace_core import lab
from ace_core.errors import EngineError
from ace_core.lab import LabSweep, SweepLook
from ace_core.ui.handlers import Handlers
from ace_core.ui.sessions import Session
from ace_core.ui.status import status
from ace_core.ui.sweep import views as show
from ace_core.ui.sweep.desk import SweepDesk

if TYPE_CHECKING:
    from ace_core.ui.sweep.tab import SweepTab

__all__ = ["SweepHandlers"]

Update = dict[Any, Any]

_LIVE_SECONDS = 1.0


class SweepHandlers:
    """Event handlers of the tab; an update maps components to their new values.

    Args:
        handlers: of the page.
        tab: components of the tab.
    """

    def __init__(self, handlers: Handlers, tab: SweepTab) -> None:
        self.page, self._host, self.tab = handlers, handlers.host, tab

    def size(self, request: gr.Request, **values: Any) -> Update:
        """How many cells the choice makes, and whether there are answers to set the length of."""
        directions = self._session(request).directions(self._host.state)
        length = {self.tab.tokens: gr.Slider(interactive=values.get("preset") != "layers")}
        try:
            asked = lab.sweep_request(values)
            cells = None if directions is None else asked.cells(directions)
        except EngineError as error:
            return {self.tab.size: show.size(None, None, str(error)), **length}
        return {self.tab.size: show.size(asked, cells), **length}

    def start(self, request: gr.Request, **values: Any) -> Iterator[Update]:
        """Run a new sweep; the last one and its files are gone."""
        session = self._session(request)

        def begin(desk: SweepDesk) -> LabSweep:
            state = self._host.state
            asked, directions = lab.sweep_request(values), session.directions(state)
            if directions is None:
                raise EngineError("The model is still loading: wait until its card says it is ready.")
            return desk.new(asked, directions, state.info, own=session.own(state) is not None)

        yield from self._working(session.sweep, begin)

    def resume(self, request: gr.Request) -> Iterator[Update]:
        """Go on with the sweep that was stopped."""

        def begin(desk: SweepDesk) -> LabSweep:
            sweep = desk.resumable(self._host.state)
            if sweep is None:
                raise EngineError("There is no stopped sweep of this model: press Start.")
            return sweep

        yield from self._working(self._session(request).sweep, begin)

    def stop(self, request: gr.Request) -> Update:
        """Ask the sweep to end; what is finished is kept."""
        self._session(request).sweep.stop()
        return {self.tab.stop: gr.Button(interactive=False)}

    def _working(self, desk: SweepDesk, begin: Callable[[SweepDesk], LabSweep]) -> Iterator[Update]:
        tab = self.tab
        if not desk.begin():
            yield {tab.status: status("error", "Your sweep is still running: wait for it, or stop it first.")}
            return
        try:
            self._host.policy.check_work()
            sweep = begin(desk)
            yield {
                tab.start: gr.Button(interactive=False),
                tab.resume: gr.Button(interactive=False),
                tab.stop: gr.Button(interactive=True),
                tab.status: status("waiting", "Waiting for the model…"),
                tab.bar: show.bar(None),
                **self._taken_away(None),
            }
            yield from self._run(desk, sweep)
        except EngineError as error:
            yield {tab.status: status("stopped" if desk.stopped.is_set() else "error", str(error))}
        finally:
            desk.release()
        yield {
            tab.start: gr.Button(interactive=True),
            tab.resume: gr.Button(interactive=desk.resumable(self._host.state) is not None),
            tab.stop: gr.Button(interactive=False),
            tab.bar: show.bar(0, active=False),
        }

    def _run(self, desk: SweepDesk, sweep: LabSweep) -> Iterator[Update]:
        tab = self.tab
        yield self._drawn(sweep.look())
        task = self._host.work(sweep.run, visitor=desk.visitor)
        desk.hold(task)
        said, drawn, due = "", sweep.done, 0.0
        for report in task.reports():
            update: Update = {}
            if report.message != said and not report.done:
                said = report.message
                update = {tab.status: status("running", said), tab.bar: show.bar(report.fraction)}
            now = time.monotonic()
            if sweep.done > drawn and now >= due and not report.done:
                drawn = sweep.done
                update |= self._drawn(sweep.look())
                # the model runs in the same process: never spend most of the time on drawing
                due = time.monotonic() + max(_LIVE_SECONDS, 4 * (time.monotonic() - now))
            if update:
                yield update
        if sweep.done:
            yield {tab.status: status("running", "Writing the report…"), tab.bar: show.bar(1)}
            yield self._drawn(sweep.look())
            yield self._taken_away(sweep.write())
        task.result(0)
        if sweep.finished:
            yield {tab.status: status("done", f"Done: {sweep.total:,} cells. Files are below.")}
        else:
            told = f"Stopped after {sweep.done:,} of {sweep.total:,} cells: Resume goes on where it stopped."
            yield {tab.status: status("stopped", told)}

    def _taken_away(self, files: lab.SweepFiles | None) -> Update:
        paths = {
            self.tab.results: files and files.results,
            self.tab.summary: files and files.summary,
            self.tab.report: files and files.report,
        }
        return {
            button: gr.DownloadButton(value=None if path is None else str(path), interactive=path is not None)
            for button, path in paths.items()
        }

    def _drawn(self, look: SweepLook) -> Update:
        tab, several = self.tab, len(look.pictures) > 1
        second = {tab.second_title: show.heading(look, 1), tab.second: show.picture(look, 1)} if several else {}
        return {
            tab.shown: show.shown(look, recorded=False),
            tab.first_title: show.heading(look, 0),
            tab.first: show.picture(look, 0),
            tab.more: gr.Column(visible=several),
            **second,
            tab.bars: show.bars(look),
            tab.gaps: show.gaps(look),
            tab.costs: show.costs(look),
            tab.wrong_way: show.wrong_way(look),
            tab.conditions: show.conditions(look),
        }

    def _session(self, request: gr.Request) -> Session:
        return self.page.sessions.get(request.session_hash)
