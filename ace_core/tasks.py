"""A long computation on the model that reports how far it is, can be stopped and lets shorter work pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ace_core.errors import EngineError, explained

__all__ = ["Report", "Task"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Report:
    """How far a task is: a sentence, the fraction done or None, and whether that is all."""

    message: str
    fraction: float | None = None
    done: bool = False


class Task(Generic[Result]):
    """One computation, made by the thread that asks and run by the thread that owns the model.

    Args:
        compute: called with this task; it calls :meth:`report` often and minds :attr:`cancelled`.
        visitor: who asks; None is somebody new.
    """

    def __init__(self, compute: Callable[[Task[Result]], Result], visitor: str | None = None) -> None:
        self.asked, self.visitor = time.monotonic(), visitor
        self._compute = compute
        self._changed = threading.Condition()
        self._report = Report("Waiting for the model")
        self._cancelled = threading.Event()
        self._result: Result | None = None
        self._error: EngineError | None = None
        self._give_way: Callable[[], None] = lambda: None

    def cancelled(self) -> bool:
        """Whether somebody asked it to stop; for the computation to poll."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask it to stop at its next report."""
        self._cancelled.set()

    def report(self, message: str, fraction: float | None = None) -> None:
        """Say how far it is, and let waiting comparisons pass; called by the computation."""
        self._tell(Report(message, fraction))
        self._give_way()

    def reports(self, seconds: float = 0.25) -> Iterator[Report]:
        """Reports as they come, at most one every ``seconds``; the last one has ``done`` set."""
        seen: Report | None = None
        while True:
            with self._changed:
                if self._report is seen:
                    self._changed.wait(seconds)
                latest = self._report
            if latest is not seen:
                seen = latest
                yield latest
            if latest.done:
                return
            time.sleep(seconds / 5)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for what it computed.

        Raises:
            EngineError: what went wrong, or that it is not finished in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._report.done, timeout):
                raise EngineError("The computation is not finished: wait a little longer.")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def run(self, give_way: Callable[[], None]) -> None:
        """Compute; called once, by the thread that owns the model.

        Args:
            give_way: serves everything more urgent, called between two pieces of work.
        """
        self._give_way = give_way
        message = "Done"
        try:
            if self.cancelled():
                raise EngineError("Stopped before it began.")
            self._result = self._compute(self)
        except Exception as error:
            self._error = explained(error, "computation", "fewer prompts")
        if self._error is not None:
            message = str(self._error)
        self._tell(Report(message, None if self._error else 1.0, done=True))

    def fail(self, message: str) -> None:
        """End it without running it."""
        self._error = EngineError(message)
        self._tell(Report(message, done=True))

    def _tell(self, report: Report) -> None:
        with self._changed:
            self._report = report
            self._changed.notify_all()
