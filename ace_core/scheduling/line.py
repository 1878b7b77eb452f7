"""The line of runs that wait: first come, first served, with a cap a visitor and jobs that nobody passes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ace_core.errors import EngineError
from ace_core.scheduling.limits import Limits
from ace_core.scheduling.streams import Place, RunStream

__all__ = ["WaitingLine"]

Job = Callable[[], None]


class WaitingLine:
    """Runs wait here until the model thread has room for them; many threads put, one takes.

    A job, such as loading another model, starts when all runs asked for before it are over, and runs asked for after
    it wait for it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._entries: deque[RunStream | Job] = deque()
        self._pace: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: RunStream | Job) -> None:
        """Go to the end of the line.

        Raises:
            EngineError: if it is full, or the visitor has too many runs in it.
        """
        with self._lock:
            if len(self._entries) >= self._limits.waiting:
                raise EngineError("Too many people are waiting for the model: try again in a minute.")
            if isinstance(entry, RunStream) and entry.visitor is not None:
                mine = sum(isinstance(e, RunStream) and e.visitor == entry.visitor for e in self._entries)
                if mine >= self._limits.visitor_waiting:
                    raise EngineError(f"{mine} of your runs are waiting already: stop one, or wait until one begins.")
            self._entries.append(entry)

    def first(self, may_begin: Callable[[RunStream], bool]) -> RunStream | None:
        """The first run that may begin, with no job before it; it stays in the line."""
        with self._lock:
            for entry in self._entries:
                if not isinstance(entry, RunStream):
                    return None
                if may_begin(entry):
                    return entry
        return None

    def remove(self, entry: RunStream) -> None:
        """Take it out of the line, if it is there."""
        with self._lock:
            if entry in self._entries:
                self._entries.remove(entry)

    def put_back(self, stream: RunStream) -> None:
        """Give a run that had to give up its room the first place again."""
        with self._lock:
            self._entries.appendleft(stream)

    @property
    def job_waits(self) -> bool:
        """Whether there is a job in the line."""
        with self._lock:
            return any(not isinstance(entry, RunStream) for entry in self._entries)

    def take_job(self) -> Job | None:
        """The job at the head of the line, taken out of it."""
        with self._lock:
            if self._entries and not isinstance(self._entries[0], RunStream):
                job = self._entries.popleft()
                assert not isinstance(job, RunStream)
                return job
        return None

    def drop_gone(self) -> None:
        """End the runs that were cancelled or have waited too long."""
        now = time.monotonic()
        with self._lock:
            streams = [e for e in self._entries if isinstance(e, RunStream)]
            late = [s for s in streams if now - s.asked > self._limits.wait_seconds]
            gone = [s for s in streams if s.cancelled or s in late]
            for stream in gone:
                self._entries.remove(stream)
        for stream in gone:
            too_late = EngineError("The model was busy for too long: try again later.", reason="late")
            stream.finish(too_late if stream in late else None)

    def drain(self) -> list[RunStream]:
        """Empty the line; the runs that were in it."""
        with self._lock:
            streams = [entry for entry in self._entries if isinstance(entry, RunStream)]
            self._entries.clear()
        return streams

    def set_pace(self, seconds: float | None) -> None:
        """How long it takes from one run's end to the next one's, about; None if unknown."""
        self._pace = seconds

    def place(self, stream: RunStream) -> Place | None:
        """Where a run stands, None if it is not in the line."""
        with self._lock:
            ahead = 0
            for entry in self._entries:
                if entry is stream:
                    return Place(ahead, None if self._pace is None else self._pace * (ahead + 1))
                ahead += isinstance(entry, RunStream)
        return None
