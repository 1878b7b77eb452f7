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
    """One visitor's page. ``run`` is the newest snapshot, ``block`` the one shown."""

    run: Run | None = None
    block: int | None = None
    number: int = 0
    running: bool = False
    stream: RunStream | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Ask a run to end; it is over within a token."""
        self.stopped.set()
        stream = self.stream
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
