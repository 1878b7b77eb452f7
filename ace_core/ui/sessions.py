"""What the server remembers of each open page, by Gradio's session hash."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.host import HostState, ModelInfo, RunStream
from ace_core.runs import Run
from ace_core.ui.directions.bench import Bench
from ace_core.ui.sweep.desk import SweepDesk

__all__ = ["Session", "Sessions"]


@dataclass
class Session:
    """One visitor's page.

    ``visitor`` tells whose it is; ``run`` is the newest snapshot of the run called ``key``, ``coming`` the name of the
    run asked for last, which is ``running`` until it ends and may have ``failed``; ``block`` and ``method`` are what
    the visitor looks at. ``bench`` is the visitor's place in the direction lab, ``sweep`` that in the sweep tab,
    ``used`` the directions that the run was steered with, ``linked`` the blocks that the page's address asked for, by
    control, until they are shown, ``pinned`` a run to compare with and its directions.
    """

    visitor: str | None = None
    run: Run | None = None
    key: str = ""
    coming: str = ""
    running: bool = False
    failed: bool = False
    block: int | None = None
    method: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    bench: Bench = field(init=False)
    sweep: SweepDesk = field(init=False)
    used: RefusalDirections | None = None
    separation: tuple[RefusalDirections | None, np.ndarray | None] = (None, None)
    linked: dict[str, int] = field(default_factory=dict)
    pinned: tuple[Run, RefusalDirections | None] | None = None
    _stream: RunStream | None = None
    _own: tuple[RefusalDirections, str, ModelInfo] | None = None
    _coming_with: RefusalDirections | None = None

    def __post_init__(self) -> None:
        self.bench, self.sweep = Bench(visitor=self.visitor), SweepDesk(visitor=self.visitor)

    def announce(self, key: str) -> None:
        """A run was asked for and will start as soon as it can."""
        self.coming, self.running, self.failed = key, True, False
        self.stopped.clear()

    def adopt(self, run: Run) -> None:
        """Newest snapshot of the announced run."""
        self.run, self.key, self.used = run, self.coming, self._coming_with

    @property
    def waiting(self) -> bool:
        """Whether a run was announced that has not produced anything yet."""
        return self.running and self.key != self.coming

    def hold(self, stream: RunStream, directions: RefusalDirections | None = None) -> None:
        """Make a stream, steered with ``directions``, reachable for :meth:`stop`."""
        self._stream, self._coming_with = stream, directions
        if self.stopped.is_set():
            stream.cancel()

    def release(self) -> None:
        """The run is over; a stream that is still going is cancelled. Returns at once."""
        self.running = False
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def use(self, directions: RefusalDirections | None, name: str = "", info: ModelInfo | None = None) -> None:
        """Take directions of the visitor's own for the model described by ``info``; None goes back to the model's."""
        self._own = None if directions is None or info is None else (directions, name, info)

    def own(self, state: HostState) -> tuple[RefusalDirections, str] | None:
        """The visitor's own directions and their name; dropped as soon as another model is loaded."""
        own = self._own
        if own is not None and own[2] is not state.info:
            self._own = own = None
        return None if own is None else own[:2]

    def directions(self, state: HostState) -> RefusalDirections | None:
        """What the next run is steered with."""
        own = self.own(state)
        return state.directions if own is None else own[0]

    @property
    def untouched(self) -> bool:
        """Whether nothing would be lost if it were forgotten."""
        idle = self.run is None and not self.running and self._own is None
        return idle and not self.bench.opened and self.sweep.sweep is None

    def stop(self) -> None:
        """Ask a run to end; it is over within a token."""
        self.stopped.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def close(self) -> None:
        """The page is gone: end everything and remove its files."""
        self.stop()
        self.bench.close()
        self.sweep.close()


class Sessions:
    """A registry rather than a ``gr.State``: a state is copied, and a stream in progress can't be.

    Beyond ``limit`` pages the oldest is forgotten, first of all one on which nothing was done: however many pages
    somebody opens, those at work are kept.
    """

    def __init__(self, limit: int = 500) -> None:
        self._limit = limit
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str | None) -> Session:
        """The session of a page, made at first sight; callers without a page never share one."""
        if not key:
            return Session()
        with self._lock:
            session = self._sessions.setdefault(key, Session(key))
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._limit:
                others = [name for name in self._sessions if name != key]
                oldest = next((name for name in others if self._sessions[name].untouched), others[0])
                self._sessions.pop(oldest).close()
            return session

    def drop(self, key: str | None) -> None:
        """Forget a page and stop its run."""
        with self._lock:
            session = self._sessions.pop(key or "", None)
        if session is not None:
            session.close()

    def __len__(self) -> int:
        return len(self._sessions)
