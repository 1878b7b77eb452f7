"""One thread owns the model; everyone else asks it for work and reads bounded queues."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ace_core import chat
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.fitting.extraction import directions_for
from ace_core.generation import Row, Step, stream_rows
from ace_core.methods import Method
from ace_core.models import ChatModel, Precision, load_model
from ace_core.runs import RunBuilder, RunSettings
from ace_core.tasks import Task

__all__ = ["HostState", "ModelHost", "ModelInfo", "RunStream"]

_QUEUE_STEPS = 64
_ACTIVE_RUNS = 4
_WAITING_RUNS = 32
_WAITING_TASKS = 8
_ABANDONED_SECONDS = 60.0
_END = object()

Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelInfo:
    """What a page says about a loaded model."""

    name: str
    model_id: str
    blocks: int
    width: int
    device: str
    precision: str
    parameters: int
    chat: bool


@dataclass(frozen=True)
class HostState:
    """Where the host stands. ``progress`` is a fraction, or None when unknown."""

    status: Literal["empty", "loading", "ready", "failed"] = "empty"
    message: str = "No model is loaded."
    progress: float | None = None
    info: ModelInfo | None = None
    directions: RefusalDirections | None = None


class RunStream:
    """One comparison in progress. Iterate for steps; each is already added to :attr:`builder`.

    Iteration raises :class:`EngineError` if the run fails. Leaving early without :meth:`cancel` is noticed and the
    run dropped, but cancel frees the model at once.
    """

    def __init__(self, host: ModelHost, make: Callable[[RunStream], Iterator[Step]]) -> None:
        self._host = host
        self._make = make
        self._steps: queue.Queue[object] = queue.Queue(_QUEUE_STEPS)
        self._cancelled = threading.Event()
        self._source: Iterator[Step] | None = None
        self._stalled_since: float | None = None
        self.builder: RunBuilder | None = None

    def __iter__(self) -> Iterator[Step]:
        while True:
            try:
                item = self._steps.get(timeout=0.5)
            except queue.Empty:
                if not self._host.alive:
                    raise EngineError("The model was shut down: reload the page.") from None
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, Step) and self.builder is not None
            self.builder.add(item)
            yield item

    def cancel(self) -> None:
        """Stop within one token; the last step says ``cancelled``."""
        self._cancelled.set()

    close = cancel

    # The rest is called by the model thread only.

    def _advance(self) -> bool:
        """Run one step if the reader has room; False once the run is over."""
        if self._steps.full():
            now = time.monotonic()
            self._stalled_since = self._stalled_since or now
            return now - self._stalled_since < _ABANDONED_SECONDS and not self._cancelled.is_set()
        self._stalled_since = None
        try:
            if self._source is None:
                self._source = self._make(self)
            step = next(self._source, None)
        except EngineError as error:
            return self._finish(error)
        except (MemoryError, RuntimeError) as error:
            memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
            hint = "too little memory: use fewer arms or a shorter answer" if memory else "an unexpected error"
            return self._finish(EngineError(f"The run stopped because of {hint}."))
        except Exception as error:
            return self._finish(EngineError(f"The run stopped because of an unexpected {type(error).__name__}."))
        if step is None:
            return self._finish(_END)
        self._steps.put_nowait(step)
        return True

    def _finish(self, item: object) -> bool:
        # The reader may be gone and the queue full; nobody is left to tell then.
        with contextlib.suppress(queue.Full):
            self._steps.put_nowait(item)
        return False


class ModelHost:
    """Owns the model thread.

    Runs take turns token by token, so one visitor does not wait for another to finish. Longer tasks run one at a
    time, and between two pieces of one all runs go first.
    """

    def __init__(self) -> None:
        self._state = HostState()
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._jobs: queue.Queue[Callable[[], None] | RunStream | Task[Any] | None] = queue.Queue(_WAITING_RUNS)
        self._active: list[RunStream] = []
        self._later: deque[Callable[[], None] | Task[Any]] = deque()
        self._closing = False
        self._running: Task[Any] | None = None
        self._model: ChatModel | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def state(self) -> HostState:
        with self._lock:
            return self._state

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def load(
        self, name: str, *, precision: Precision = "auto", device: str = "auto", vectors: Path | str | None = None
    ) -> None:
        """Start loading a model and its vectors; returns at once, see :attr:`state`."""
        self._set(HostState("loading", f"Loading {name}"))

        def progress(message: str, fraction: float | None) -> None:
            self._set(HostState("loading", message, fraction))

        def job() -> None:
            self._model = None
            try:
                model = load_model(name, precision=precision, device=device, progress=progress)
                progress("Reading the model's vectors", None)
                fitted = directions_for(model, progress, vectors=None if vectors is None else Path(vectors))
                self._adopt(model, fitted)
            except EngineError as error:
                self._set(HostState("failed", str(error)))
            except Exception as error:
                self._set(HostState("failed", f"{name} could not be loaded ({type(error).__name__}): choose another."))

        self._put(job)

    def adopt(self, model: ChatModel, directions: RefusalDirections) -> None:
        """Use an already loaded model."""
        self._put(lambda: self._adopt(model, directions))

    def wait_ready(self, timeout: float | None = None) -> HostState:
        """Wait until loading has succeeded or failed, at most ``timeout`` seconds; the state then."""
        with self._settled:
            self._settled.wait_for(lambda: self._state.status in ("ready", "failed"), timeout)
            return self._state

    def compare(
        self,
        prompt: str,
        settings: RunSettings,
        methods: Sequence[Method],
        directions: RefusalDirections | None = None,
    ) -> RunStream:
        """Queue a comparison; row k of its steps is ``methods[k]``.

        Args:
            prompt: what the user says.
            settings: how the arms are steered and sampled.
            methods: one an arm.
            directions: fitted on the loaded model; None takes the model's own.

        Raises:
            EngineError: at once for bad settings, a full queue, or when no model is loaded or loading.
        """
        state = self.state
        if state.status in ("empty", "failed"):
            raise EngineError(state.message)
        if not methods:
            raise EngineError("Choose at least one arm to show.")
        chat.check_prompt(prompt)
        settings.sampling()
        if state.directions is not None:
            for method in methods:
                settings.arm(method).blocks(state.directions.blocks)

        def make(stream: RunStream) -> Iterator[Step]:
            model, own = self._model, self.state.directions
            if model is None or own is None:
                raise EngineError(self.state.message)
            ids = model.encode(prompt)
            pieces = chat.token_texts(model.tokenizer, ids)
            stream.builder = RunBuilder(model.name, prompt, pieces, settings, methods)
            rows = [Row(ids, settings.arm(method), settings.sampling()) for method in methods]
            return stream_rows(model, directions or own, rows, cancelled=stream._cancelled.is_set)

        stream = RunStream(self, make)
        self._put(stream)
        return stream

    def work(self, compute: Callable[[ChatModel, Task[Result]], Result]) -> Task[Result]:
        """Queue a longer computation on the loaded model.

        Args:
            compute: called on the model thread with the model and the task, to which it reports.

        Raises:
            EngineError: at once if too many are waiting, or when no model is loaded or loading.
        """
        state = self.state
        if state.status in ("empty", "failed"):
            raise EngineError(state.message)
        if len(self._later) >= _WAITING_TASKS:
            raise EngineError("Too many computations are waiting for the model: try again in a few minutes.")

        def run(task: Task[Result]) -> Result:
            if self._model is None:
                raise EngineError(self.state.message)
            return compute(self._model, task)

        task = Task(run)
        self._put(task)
        return task

    def close(self) -> None:
        """End the model thread after its current token; streams and tasks in progress end with an error."""
        self._closing = True
        for stream in list(self._active):
            stream.cancel()
        for task in list(self._later):
            if isinstance(task, Task):
                task.cancel()
        if self._running is not None:
            self._running.cancel()
        with contextlib.suppress(queue.Full):  # a full queue wakes the thread as well
            self._jobs.put_nowait(None)
        self._thread.join(timeout=30)

    def _put(self, job: Callable[[], None] | RunStream | Task[Any]) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise EngineError("Too many people are waiting for the model: try again in a minute.") from None

    def _set(self, state: HostState) -> None:
        with self._settled:
            self._state = state
            self._settled.notify_all()

    def _adopt(self, model: ChatModel, directions: RefusalDirections) -> None:
        self._model = model
        info = ModelInfo(
            name=model.name,
            model_id=model.model_id,
            blocks=len(model.blocks),
            width=model.width,
            device=str(model.device),
            precision=model.precision,
            parameters=model.parameters,
            chat=model.chat,
        )
        self._set(HostState("ready", "Ready", None, info, directions))

    def _work(self) -> None:
        while self._accept(block=not self._active and not self._later):
            if self._active:
                self._round()
            elif self._later:
                self._long(self._later.popleft())
        for task in self._later:
            if isinstance(task, Task):
                task.fail("The model was shut down: reload the page.")

    def _accept(self, block: bool) -> bool:
        """Take jobs that wait as far as there is room for runs; False once the host is closing."""
        while not self._closing and (block or len(self._active) < _ACTIVE_RUNS):
            try:
                job = self._jobs.get(block=block)
            except queue.Empty:
                break
            block = False
            if job is None:
                self._closing = True
                break
            if isinstance(job, RunStream):
                self._active.append(job)
            else:
                self._later.append(job)
        return not self._closing

    def _round(self) -> None:
        """One token for every active run whose reader has room."""
        advanced = False
        for stream in list(self._active):
            stuck = stream._steps.full()
            if not stream._advance():
                self._active.remove(stream)
            advanced |= not stuck
        if self._active and not advanced:
            time.sleep(0.01)

    def _long(self, job: Callable[[], None] | Task[Any]) -> None:
        """Loading a model, when no run is active, or a task."""
        if not isinstance(job, Task):
            job()
            return
        self._running = job
        if self._closing:
            job.cancel()
        job.run(self._give_way)
        self._running = None

    def _give_way(self) -> None:
        """Finish all runs that are active or waiting."""
        while self._accept(block=False) and self._active:
            self._round()
