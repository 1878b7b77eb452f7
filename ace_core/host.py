"""One thread owns the model; everyone else asks it for work and reads bounded queues."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ace_core import chat
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError, explained
from ace_core.fitting.extraction import directions_for
from ace_core.generation import MAX_ROWS, Row
from ace_core.methods import Method
from ace_core.models import ChatModel, Precision, load_model
from ace_core.runs import RunBuilder, RunSettings
from ace_core.scheduling.limits import Limits
from ace_core.scheduling.line import WaitingLine
from ace_core.scheduling.scheduler import Scheduler
from ace_core.scheduling.streams import CLOSED, Place, Prepared, RunStream
from ace_core.tasks import Task

__all__ = ["HostState", "Limits", "ModelHost", "ModelInfo", "Place", "RunStream"]

_WAITING_TASKS = 8
_IDLE_SECONDS = 0.5
_STALLED_SECONDS = 0.01

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


class ModelHost:
    """Owns the model thread.

    The rows of all runs decode in one batch, which they join and leave between two tokens, so one visitor does not
    wait for another to finish. Longer tasks run one at a time, and between two pieces of one all runs go first.

    Args:
        limits: how much it takes on at once.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = Limits() if limits is None else limits
        self._state = HostState()
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._line = WaitingLine(self._limits)
        self._scheduler = Scheduler(self._line, self._limits)
        self._tasks: deque[Task[Any]] = deque()
        self._running: Task[Any] | None = None
        self._closing = False
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

    @property
    def active(self) -> int:
        """Runs in progress, those that wait not counted."""
        return self._scheduler.count

    @property
    def waiting(self) -> int:
        """How many wait in the line."""
        return len(self._line)

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
        *,
        visitor: str | None = None,
    ) -> RunStream:
        """Queue a comparison; row k of its steps is ``methods[k]``.

        Args:
            prompt: what the user says.
            settings: how the arms are steered and sampled.
            methods: one an arm.
            directions: fitted on the loaded model; None takes the model's own.
            visitor: any text that tells who asks, for the caps on the runs of one; None is somebody new.

        Raises:
            EngineError: at once for bad settings, a full queue, or when no model is loaded or loading.
        """
        state = self.state
        if state.status in ("empty", "failed"):
            raise EngineError(state.message)
        if not methods:
            raise EngineError("Choose at least one arm to show.")
        if len(methods) > min(MAX_ROWS, self._limits.rows):
            raise EngineError(f"Choose at most {min(MAX_ROWS, self._limits.rows)} arms to show together.")
        chat.check_prompt(prompt)
        settings.sampling()
        if state.directions is not None:
            for method in methods:
                settings.arm(method).blocks(state.directions.blocks)

        def prepare() -> Prepared:
            model, own = self._model, self.state.directions
            if model is None or own is None:
                raise EngineError(self.state.message)
            ids = model.encode(prompt)
            pieces = chat.token_texts(model.tokenizer, ids)
            builder = RunBuilder(model.name, prompt, pieces, settings, methods)
            rows = [Row(ids, settings.arm(method), settings.sampling()) for method in methods]
            return Prepared(model, own if directions is None else directions, rows, builder)

        stream = RunStream(prepare, visitor, self._limits.queue_steps, self._line.place, lambda: self.alive)
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
        if len(self._tasks) >= _WAITING_TASKS:
            raise EngineError("Too many computations are waiting for the model: try again in a few minutes.")

        def run(task: Task[Result]) -> Result:
            if self._model is None:
                raise EngineError(self.state.message)
            return compute(self._model, task)

        task = Task(run)
        self._tasks.append(task)
        self._wake.set()
        return task

    def close(self) -> None:
        """End the model thread after its current token; runs and tasks in progress end with an error."""
        self._closing = True
        if self._running is not None:
            self._running.cancel()
        self._wake.set()
        self._thread.join(timeout=30)

    def _put(self, entry: RunStream | Callable[[], None]) -> None:
        if not self.alive:
            raise EngineError(CLOSED)
        self._line.put(entry)
        self._wake.set()

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
        while not self._closing:
            self._wake.clear()
            if self._scheduler.round():
                continue
            job = self._line.take_job() if self._scheduler.count == 0 else None
            if job is not None:
                self._perform(job)
            elif self._tasks:
                self._compute(self._tasks.popleft())
            else:  # readers that left no room do not ring
                self._wake.wait(_STALLED_SECONDS if self._scheduler.count else _IDLE_SECONDS)
        self._scheduler.close()
        while self._tasks:
            self._tasks.popleft().fail(CLOSED)

    def _perform(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # the thread outlives a model that can't be used
            self._model = None
            self._set(HostState("failed", str(explained(error, "loading of the model", "a smaller one"))))

    def _compute(self, task: Task[Any]) -> None:
        self._running = task
        if self._closing:
            task.cancel()
        task.run(self._give_way)
        self._running = None

    def _give_way(self) -> None:
        """Serve all runs, those in the line as well, until nobody can be served."""
        while not self._closing and self._scheduler.round():
            pass
        if self._closing:
            self._scheduler.close()
