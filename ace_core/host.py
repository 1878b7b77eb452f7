"""One thread owns the model; everyone else asks it for work and reads bounded queues."""

from __future__ import annotations

import logging
import threading
import time
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
from ace_core.journal import tell
from ace_core.methods import Method
from ace_core.models import ChatModel, Precision, load_model
from ace_core.policy import OPEN, RECORDED_ONLY, Policy
from ace_core.runs import RunBuilder, RunSettings
from ace_core.scheduling.limits import Limits
from ace_core.scheduling.line import WaitingLine
from ace_core.scheduling.scheduler import Scheduler
from ace_core.scheduling.streams import CLOSED, Place, Prepared, RunStream
from ace_core.tasks import Task

__all__ = ["HostState", "Limits", "ModelHost", "ModelInfo", "Place", "Policy", "RunStream"]

_WAITING_TASKS = 8
_CLOSING_SECONDS = 30.0
_TASK_SHARE = 0.1
"""Of the model's time, what a task gets even if people keep it busy."""
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
    """Where the host stands.

    ``recorded`` is a host that has no model and will have none. ``progress`` is a fraction, or None when unknown.
    """

    status: Literal["empty", "loading", "ready", "failed", "recorded"] = "empty"
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
        policy: what may be asked of it at all.
    """

    def __init__(self, limits: Limits | None = None, policy: Policy = OPEN) -> None:
        self.limits = Limits() if limits is None else limits
        self.policy = policy
        self._state = HostState() if policy.runs else HostState("recorded", RECORDED_ONLY)
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._line = WaitingLine(self.limits)
        self._scheduler = Scheduler(self._line, self.limits)
        self._tasks: deque[Task[Any]] = deque()
        self._running: Task[Any] | None = None
        self._piece_begun = self._computed = self._burst = 0.0
        self._closing = self._given_up = False
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

    @property
    def computing(self) -> int:
        """Longer computations, running and waiting."""
        return len(self._tasks) + (self._running is not None)

    def load(
        self, name: str, *, precision: Precision = "auto", device: str = "auto", vectors: Path | str | None = None
    ) -> None:
        """Start loading a model and its vectors; returns at once, see :attr:`state`.

        Raises:
            EngineError: at once if the policy does not allow the model.
        """
        self.policy.check_model(name)
        self._set(HostState("loading", f"Loading {name}"))
        asked = time.monotonic()

        def progress(message: str, fraction: float | None) -> None:
            if self._closing:
                raise EngineError(CLOSED, reason="closed")
            self._set(HostState("loading", message, fraction))

        def job() -> None:
            self._model = None
            try:
                model = load_model(name, precision=precision, device=device, progress=progress)
                progress("Reading the model's vectors", None)
                fitted = directions_for(model, progress, vectors=None if vectors is None else Path(vectors))
                self._adopt(model, fitted)
                tell(
                    "model ready",
                    model=model.model_id,
                    device=str(model.device),
                    precision=model.precision,
                    seconds=round(time.monotonic() - asked, 1),
                )
            except EngineError as error:
                self._failed(str(error), error.reason)
            except Exception as error:
                kind = type(error).__name__
                self._failed(f"{name} could not be loaded ({kind}): choose another.", kind)

        self._put(job)

    def adopt(self, model: ChatModel, directions: RefusalDirections) -> None:
        """Use an already loaded model."""
        self._put(lambda: self._adopt(model, directions))

    def wait_ready(self, timeout: float | None = None) -> HostState:
        """Wait until loading has succeeded or failed, at most ``timeout`` seconds; the state then."""
        with self._settled:
            self._settled.wait_for(lambda: self._state.status in ("ready", "failed", "recorded"), timeout)
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
        self.policy.check_run()
        state = self.state
        if state.status in ("empty", "failed"):
            raise EngineError(state.message)
        if not methods:
            raise EngineError("Choose at least one arm to show.")
        if len(methods) > min(MAX_ROWS, self.limits.rows):
            raise EngineError(f"Choose at most {min(MAX_ROWS, self.limits.rows)} arms to show together.")
        chat.check_prompt(prompt)
        settings.sampling()
        if settings.max_new_tokens > self.limits.tokens:
            raise EngineError(f"Answers here have at most {self.limits.tokens} tokens: ask for a shorter one.")
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

        def going() -> bool:
            return self.alive and not self._given_up

        stream = RunStream(prepare, visitor, self.limits.queue_steps, self._line.place, going)
        self._put(stream)
        return stream

    def work(self, compute: Callable[[ChatModel, Task[Result]], Result], *, visitor: str | None = None) -> Task[Result]:
        """Queue a longer computation on the loaded model.

        Args:
            compute: called on the model thread with the model and the task, to which it reports.
            visitor: any text that tells who asks, for the cap on the tasks of one; None is somebody new.

        Raises:
            EngineError: at once if the policy allows none, too many are waiting, or no model is loaded or loading.
        """
        self.policy.check_work()
        state = self.state
        if state.status in ("empty", "failed"):
            raise EngineError(state.message)

        def run(task: Task[Result]) -> Result:
            if self._model is None:
                raise EngineError(self.state.message)
            return compute(self._model, task)

        task = Task(run, visitor)
        with self._lock:
            if len(self._tasks) >= _WAITING_TASKS:
                raise EngineError("Too many computations are waiting for the model: try again in a few minutes.")
            running = self._running
            mine = [*self._tasks, *([] if running is None else [running])]
            if visitor is not None and sum(one.visitor == visitor for one in mine) >= self.limits.visitor_tasks:
                raise EngineError("Several of your computations are waiting already: stop one, or wait for its end.")
            self._tasks.append(task)
        self._wake.set()
        return task

    def close(self, timeout: float = _CLOSING_SECONDS) -> None:
        """End the model thread after its current token; runs and tasks in progress end with an error.

        Args:
            timeout: seconds to wait for it; a model that is being loaded, or a long pass, may take longer, see
                :attr:`alive`. Runs end then all the same.
        """
        self._closing = True
        if self._running is not None:
            self._running.cancel()
        self._wake.set()
        self._thread.join(timeout)
        self._given_up = True

    def _put(self, entry: RunStream | Callable[[], None]) -> None:
        if not self.alive:
            raise EngineError(CLOSED, reason="closed")
        self._line.put(entry)
        self._wake.set()

    def _set(self, state: HostState) -> None:
        with self._settled:
            self._state = state
            self._settled.notify_all()

    def _failed(self, message: str, reason: str) -> None:
        """No model; the sentence is about what the operator asked for."""
        self._set(HostState("failed", message))
        tell("model failed", level=logging.ERROR, reason=reason, says=message)

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
            task = self._overdue()
            if task is not None:
                self._compute(task)
            if self._scheduler.round():
                continue
            job = self._line.take_job() if self._scheduler.count == 0 else None
            if job is not None:
                self._perform(job)
            elif (task := self._next_task()) is not None:
                self._compute(task)
            else:  # readers that left no room do not ring
                self._wake.wait(_STALLED_SECONDS if self._scheduler.count else _IDLE_SECONDS)
        self._scheduler.close()
        while (task := self._next_task()) is not None:
            task.fail(CLOSED)

    def _perform(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # the thread outlives a model that can't be used
            self._model = None
            sentence = explained(error, "loading of the model", "a smaller one")
            self._failed(str(sentence), sentence.reason)

    def _next_task(self) -> Task[Any] | None:
        with self._lock:
            return self._tasks.popleft() if self._tasks else None

    def _overdue(self) -> Task[Any] | None:
        """A task that people have kept waiting for long enough, unless another model is about to be loaded."""
        with self._lock:
            patient = not self._tasks or time.monotonic() - self._tasks[0].asked < self.limits.task_patience
        return None if patient or self._line.job_waits else self._next_task()

    def _compute(self, task: Task[Any]) -> None:
        if self._closing:
            task.cancel()
        begun = time.monotonic()
        self._running, self._piece_begun, self._computed, self._burst = task, begun, 0.0, 0.0
        tell("task started", waited_seconds=round(begun - task.asked, 3))
        task.run(self._give_way)
        self._running = None
        tell("task over", seconds=round(time.monotonic() - begun, 3), cancelled=task.cancelled())

    def _give_way(self) -> None:
        """Serve all runs, those in the line as well, until nobody can be served.

        However many people run, a task gets a small share of the time; one that has had a long turn while others
        wait is asked to stop, and what it has done is kept.
        """
        begun = time.monotonic()
        piece = begun - self._piece_begun
        self._computed += piece
        self._burst -= piece
        if self._tasks and self._computed > self.limits.task_turn and self._running is not None:
            self._running.cancel()
        served = self._burst > 0 and not self._closing
        while not served and not self._closing and self._scheduler.round():
            waited = time.monotonic() - begun
            if waited > max(self.limits.task_patience, piece / _TASK_SHARE):
                self._burst, served = waited * _TASK_SHARE, True
        if self._closing:
            self._scheduler.close()
        self._piece_begun = time.monotonic()
