"""Long work of the directions tab: one thing at a time, told as it goes, and stopped when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ace_core.errors import EngineError
from ace_core.tasks import Report, Task
from ace_core.ui.directions import views as show
from ace_core.ui.directions.bench import Bench
from ace_core.ui.directions.looking import Looking
from ace_core.ui.sessions import Session
from ace_core.ui.status import status

__all__ = ["Working"]

Update = dict[Any, Any]


class Working:
    """What everything has in common that asks the model thread.

    Args:
        looking: what the tab shows.
    """

    def __init__(self, looking: Looking) -> None:
        self._host, self.tab, self._looking = looking.page.host, looking.tab, looking

    def through(self, session: Session, start: Callable[[Session], Iterator[Update]]) -> Iterator[Update]:
        """Do what ``start`` does if nothing else of the visitor is going on, and put the tab in order afterwards."""
        tab, bench = self.tab, session.bench
        if not bench.begin():
            yield {tab.status: status("error", "Something is still running: wait for it, or stop it first.")}
            return
        try:
            self._host.policy.check_work()
            yield {
                tab.fit: gr.Button(interactive=False),
                tab.stop: gr.Button(interactive=True),
                tab.status: status("waiting", "Getting ready…"),
                tab.bar: show.bar(None),
                **self._looking.table(session),
            }
            yield from start(session)
        except EngineError as error:
            yield {tab.status: status("stopped" if bench.stopped.is_set() else "error", str(error))}
        finally:
            bench.release()
        yield {
            tab.fit: gr.Button(interactive=True),
            tab.stop: gr.Button(interactive=False),
            tab.bar: show.bar(0, active=False),
            **self._looking.table(session),
        }

    def reports(
        self, bench: Bench, task: Task[Any], more: Callable[[Report], Update] = lambda report: {}
    ) -> Iterator[Update]:
        """How far a task is until it is over; ``more`` is changed with each report."""
        bench.hold(task)
        for report in task.reports():
            if not report.done:
                yield {
                    self.tab.status: status("running", report.message),
                    self.tab.bar: show.bar(report.fraction),
                    **more(report),
                }

    def stop(self, request: gr.Request) -> Update:
        """Ask the work to end."""
        self._looking.session(request).bench.stop()
        return {self.tab.stop: gr.Button(interactive=False), self.tab.measure_stop: gr.Button(interactive=False)}
