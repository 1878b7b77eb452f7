"""Measuring which coordinates ACE reaches at the block looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.errors import EngineError
from ace_core.tasks import Report
from ace_core.ui.directions.looking import Looking
from ace_core.ui.directions.working import Working
from ace_core.ui.sessions import Session
from ace_core.ui.status import status

__all__ = ["Measuring"]

Update = dict[Any, Any]


class Measuring:
    """Event handlers of the table; an update maps components to their new values.

    Args:
        looking: what the tab shows.
        working: how long work is done.
    """

    def __init__(self, looking: Looking, working: Working) -> None:
        self._host, self.tab = looking.page.host, looking.tab
        self._looking, self._working = looking, working

    def measure(self, request: gr.Request, block: Any) -> Iterator[Update]:
        """The table of a block; it is kept, and the slider may move on meanwhile."""
        session = self._looking.session(request)
        self._looking.turn(session, block)
        yield from self._working.through(session, self._measured)
        if not session.bench.busy:
            yield {self.tab.measure_stop: gr.Button(interactive=False)}

    def _measured(self, session: Session) -> Iterator[Update]:
        bench, block = session.bench, session.bench.block
        fit = bench.fit if bench.current(self._host.state) else None
        if fit is None or block is None:
            raise EngineError("There is nothing to measure yet: press Fit first.")
        done = {self.tab.status: status("done", f"Done: the table of block {block} is below.")}
        if block in bench.tables:
            yield done
            return

        def told(report: Report) -> Update:
            bench.words = (block, _words(report, block))
            return self._looking.table(session)

        try:
            lab.check_block_table(fit)
            task = self._host.work(
                lambda model, task: lab.block_table(model, task, fit, block), visitor=session.visitor
            )
            bench.words = (block, f"Measuring block {block}…")
            yield {self.tab.measure_stop: gr.Button(interactive=True), **self._looking.table(session)}
            yield from self._working.reports(bench, task, told)
            table = task.result(0)
        except EngineError as error:
            bench.words = (block, str(error))
            raise
        if not bench.current(self._host.state) or bench.fit is not fit:
            raise EngineError("Another model was loaded meanwhile: fit on that one.")
        bench.tables[block], bench.words = table, None
        yield done


def _words(report: Report, block: int) -> str:
    """A task that has not begun says nothing of the block."""
    return report.message if report.fraction is not None else f"Measuring block {block}… waiting for the model"
