"""The reading end of a run where it is computed, when its reader is in another process."""

from __future__ import annotations

import queue
import time
from collections.abc import Generator

from ace_core.errors import EngineError
from ace_core.generation import Step
from ace_core.scheduling.limits import Limits
from ace_core.scheduling.line import WaitingLine
from ace_core.scheduling.scheduler import Scheduler
from ace_core.scheduling.streams import Prepared, RunStream

__all__ = ["Outlet", "Told", "messages"]

_BEAT_SECONDS = 0.15
_GATHER_SECONDS = 0.08
"""Steps that come faster than this share one message."""

Told = tuple[Step, ...] | EngineError
"""A message out of the call: the steps since the last one, none where it only says that work goes on, or the end."""


class Outlet(RunStream):
    """A run that computes for someone else; it never leaves the model waiting."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(lambda: prepared, None, 1, lambda stream: None, lambda: True)
        self.told: queue.Queue[Step | EngineError | None] = queue.Queue()

    @property
    def backlog(self) -> float:
        return 0.0

    def begin(self) -> None:
        """Nobody waits for it, and the journal hears of the run from the reader's side."""

    def put(self, step: Step) -> None:
        if "cancelled" not in step.stop:  # whoever cancelled or failed it says so
            self.told.put(step)

    def finish(self, error: EngineError | None = None) -> None:
        self.told.put(error)

    def serve(self, limits: Limits) -> None:
        """Run it to its end; the whole life of a thread."""
        line = WaitingLine(limits)
        scheduler = Scheduler(line, limits)
        line.put(self)
        try:
            while scheduler.round():
                pass
        finally:
            self.finish()


def messages(told: queue.Queue[Step | EngineError | None]) -> Generator[Told, None, None]:
    """Steps as they come, many in one message where they come fast, an empty message where they come slowly."""
    while True:
        steps: list[Step] = []
        sent = time.monotonic()
        until = sent + _BEAT_SECONDS
        over, error = False, None
        while not over and (left := until - time.monotonic()) > 0:
            try:
                item = told.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(item, Step):
                steps.append(item)
                until = sent + _GATHER_SECONDS
            else:
                over, error = True, item
        yield tuple(steps)
        if error is not None:
            yield error
        if over:
            return
