"""One visitor's run as its reader sees it: steps as they come, the place in the line, a way to stop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.generation import Row, Step
from ace_core.journal import RunRecord
from ace_core.models import ChatModel
from ace_core.runs import RunBuilder

__all__ = ["CLOSED", "Place", "Prepared", "RunStream"]

CLOSED = "The model was shut down: reload the page."
_END = object()


@dataclass(frozen=True)
class Place:
    """A place in the line: how many runs go first, and about how many seconds until this one starts, if known."""

    ahead: int
    seconds: float | None


@dataclass(frozen=True)
class Prepared:
    """What a run needs of the model that will serve it, and the record its reader fills, if it keeps one."""

    model: ChatModel
    directions: RefusalDirections
    rows: Sequence[Row]
    builder: RunBuilder | None = None


class RunStream:
    """One comparison. Iterate for steps; each is already added to :attr:`builder`.

    Iteration raises :class:`EngineError` if the run fails. Leaving early without :meth:`cancel` is noticed and the
    run dropped, but cancel frees the model at once.

    Args:
        prepare: called by the model thread when it looks at the run, with the model it will use.
        visitor: who asks; None is somebody new each time.
        room: steps the reader may lag behind.
        place: where this run stands in the line, None once it left it.
        alive: whether the model thread is.
    """

    def __init__(
        self,
        prepare: Callable[[], Prepared],
        visitor: str | None,
        room: int,
        place: Callable[[RunStream], Place | None],
        alive: Callable[[], bool],
    ) -> None:
        self.prepare, self.visitor = prepare, visitor
        self.asked = time.monotonic()
        self.builder: RunBuilder | None = None
        self._record = RunRecord()
        self._room, self._place, self._alive = room, place, alive
        # its size is checked before a step is computed, so that the last words always fit
        self._steps: queue.Queue[object] = queue.Queue()
        self._cancelled = threading.Event()
        self._begun = threading.Event()

    def __iter__(self) -> Iterator[Step]:
        while True:
            try:
                item = self._steps.get(timeout=0.5)
            except queue.Empty:
                if not self._alive():
                    raise EngineError(CLOSED, reason="closed") from None
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, Step) and self.builder is not None
            self.builder.add(item)
            yield item

    @property
    def position(self) -> Place | None:
        """Place in the line; None once the run began or is over."""
        return None if self._begun.is_set() else self._place(self)

    def wait(self, seconds: float) -> Place | None:
        """Wait until the run begins or is over, at most so long; the place in the line then, or None."""
        self._begun.wait(seconds)
        return self.position if self._alive() else None

    def cancel(self) -> None:
        """Stop within one token; the last step says ``cancelled``."""
        self._cancelled.set()

    close = cancel

    # The rest is called by the model thread only.

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def backlog(self) -> float:
        """Steps the reader has yet to take, as a share of what it may lag behind."""
        return self._steps.qsize() / self._room

    def begin(self) -> None:
        """It left the line."""
        self._record.begun()
        self._begun.set()

    def wait_again(self) -> None:
        """It is back in the line."""
        self._begun.clear()

    def put(self, step: Step) -> None:
        self._record.wrote(sum(token is not None for token in step.tokens), len(step.tokens))
        self._steps.put(step)

    def finish(self, error: EngineError | None = None) -> None:
        """No more steps will come."""
        if error is not None:
            self._record.ended("failed", error.reason)
        else:
            self._record.ended("cancelled" if self.cancelled else "finished")
        self._steps.put(_END if error is None else error)
        self._begun.set()
