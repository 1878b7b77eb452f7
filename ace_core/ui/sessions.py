"""What the server remembers of each open page, by Gradio's session hash."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from ace_core.host import RunStream
from ace_core.runs import Run

__all__ = ["Session", "Sessions"]


@dataclass
class Session:
    """One visitor's page.

    ``run`` is the newest snapshot of the run called ``key``, ``coming`` the name of the run asked for last, which is
    ``running`` until it ends and may have ``failed``; ``block`` and ``method`` are what the visitor looks at.
    """

    run: Run | None = None
    key: str = ""
    coming: str = ""
    running: bool = False
    failed: bool = False
    block: int | None = None
    method: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    _stream: RunStream | None = None

    def announce(self, key: str) -> None:
        """A run was asked for and will start as soon as it can."""
        self.coming, self.running, self.failed = key, True, False
        self.stopped.clear()

    def adopt(self, run: Run) -> None:
        """Newest snapshot of the announced run."""
        self.run, self.key = run, self.coming

    @property
    def waiting(self) -> bool:
        """Whether a run was announced that has not produced anything yet."""
        return self.running and self.key != self.coming

    def hold(self, stream: RunStream) -> None:
        """Make a stream reachable for :meth:`stop`."""
        self._stream = stream
        if self.stopped.is_set():
            stream.cancel()

    def release(self) -> None:
        """The run is over; a stream that is still going is cancelled. Returns at once."""
        self.running = False
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def stop(self) -> None:
        """Ask a run to end; it is over within a token."""
        self.stopped.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()


class Sessions:
    """A registry rather than a ``gr.State``: a state is copied, and a stream in progress can't be.

    Pages that vanish without a word are forgotten once ``limit`` newer ones exist.
    """

    def __init__(self, limit: int = 500) -> None:
        self._limit = limit
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str | None) -> Session:
        """The session of a page, made at first sight."""
        with self._lock:
            session = self._sessions.setdefault(key or "", Session())
            self._sessions.move_to_end(key or "")
            while len(self._sessions) > self._limit:
                _, old = self._sessions.popitem(last=False)
                old.stop()
            return session

    def drop(self, key: str | None) -> None:
        """Forget a page and stop its run."""
        with self._lock:
            session = self._sessions.pop(key or "", None)
        if session is not None:
            session.stop()

    def __len__(self) -> int:
        return len(self._sessions)
