"""Longer computations: one at a time, and between two pieces of one everybody's runs go first."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ace_core.errors import EngineError
from ace_core.journal import tell
from ace_core.scheduling.limits import Limits
from ace_core.scheduling.scheduler import Scheduler
from ace_core.tasks import Task

__all__ = ["TaskDesk"]

_WAITING_TASKS = 8
_TASK_SHARE = 0.1
"""Of the model's time, what a task gets even if people keep it busy."""


class TaskDesk:
    """The tasks of one host; all but :meth:`put` and the counts is called by the model thread only.

    Args:
        scheduler: serves the runs that go first.
        limits: caps.
        closing: whether the host is about to end.
    """

    def __init__(self, scheduler: Scheduler, limits: Limits, closing: Callable[[], bool]) -> None:
        self._scheduler, self._limits, self._closing = scheduler, limits, closing
        self._lock = threading.Lock()
        self._tasks: deque[Task[Any]] = deque()
        self._running: Task[Any] | None = None
        self._piece_begun = self._computed = self._burst = 0.0

    def __len__(self) -> int:
        """Running and waiting ones."""
        return len(self._tasks) + (self._running is not None)

    def put(self, task: Task[Any]) -> None:
        """Queue a task.

        Raises:
            EngineError: if too many are waiting, of all or of this visitor.
        """
        with self._lock:
            if len(self._tasks) >= _WAITING_TASKS:
                raise EngineError("Too many computations are waiting for the model: try again in a few minutes.")
            running = self._running
            mine = [*self._tasks, *([] if running is None else [running])]
            most = self._limits.visitor_tasks
            if task.visitor is not None and sum(one.visitor == task.visitor for one in mine) >= most:
                raise EngineError("Several of your computations are waiting already: stop one, or wait for its end.")
            self._tasks.append(task)

    def stop(self) -> None:
        """Ask the running one to end."""
        if (running := self._running) is not None:
            running.cancel()

    def next(self) -> Task[Any] | None:
        """The first in the line, taken out of it."""
        with self._lock:
            return self._tasks.popleft() if self._tasks else None

    def overdue(self) -> Task[Any] | None:
        """As :meth:`next`, if people have kept it waiting for long enough."""
        with self._lock:
            patient = not self._tasks or time.monotonic() - self._tasks[0].asked < self._limits.task_patience
        return None if patient else self.next()

    def compute(self, task: Task[Any]) -> None:
        """Run one to its end."""
        if self._closing():
            task.cancel()
        begun = time.monotonic()
        self._running, self._piece_begun, self._computed, self._burst = task, begun, 0.0, 0.0
        tell("task started", waited_seconds=round(begun - task.asked, 3))
        task.run(self._give_way)
        self._running = None
        tell("task over", seconds=round(time.monotonic() - begun, 3), cancelled=task.cancelled())

    def close(self, message: str) -> None:
        """Fail all that wait."""
        while (task := self.next()) is not None:
            task.fail(message)

    def _give_way(self) -> None:
        """Serve all runs, those in the line as well, until nobody can be served.

        However many people run, a task gets a small share of the time; one that has had a long turn while others
        wait is asked to stop, and what it has done is kept.
        """
        begun = time.monotonic()
        piece = begun - self._piece_begun
        self._computed += piece
        self._burst -= piece
        if self._tasks and self._computed > self._limits.task_turn:
            self.stop()
        served = self._burst > 0 and not self._closing()
        while not served and not self._closing() and self._scheduler.round():
            waited = time.monotonic() - begun
            if waited > max(self._limits.task_patience, piece / _TASK_SHARE):
                self._burst, served = waited * _TASK_SHARE, True
        if self._closing():
            self._scheduler.close()
        self._piece_begun = time.monotonic()
