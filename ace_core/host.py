"""One thread owns the model; everyone else asks it for work and reads bounded queues."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ace_core import chat
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError, explained
from ace_core.fitting.extraction import directions_for
from ace_core.generation import MAX_ROWS, Row
from ace_core.host_state import HostState, ModelInfo
from ace_core.journal import tell
from ace_core.methods import Method
from ace_core.models import ChatModel, Precision, load_model
from ace_core.policy import OPEN, RECORDED_ONLY, Policy
from ace_core.runs import RunBuilder, RunSettings
from ace_core.scheduling.desk import TaskDesk
from ace_core.scheduling.limits import Limits
from ace_core.scheduling.line import WaitingLine
from ace_core.scheduling.scheduler import Scheduler
from ace_core.scheduling.streams import CLOSED, Place, Prepared, RunStream
from ace_core.tasks import Task

__all__ = ["HostState", "Limits", "ModelHost", "ModelInfo", "Place", "Policy", "RunStream"]

_CLOSING_SECONDS = 30.0
_IDLE_SECONDS = 0.5
_STALLED_SECONDS = 0.01

Result = TypeVar("Result")


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
        self._closing = self._given_up = False
        self._desk = TaskDesk(self._scheduler, self.limits, lambda: self._closing)
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
        return len(self._desk)

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
        self._desk.put(task)
        self._wake.set()
        return task

    def close(self, timeout: float = _CLOSING_SECONDS) -> None:
        """End the model thread after its current token; runs and tasks in progress end with an error.

        Args:
            timeout: seconds to wait for it; a model that is being loaded, or a long pass, may take longer, see
                :attr:`alive`. Runs end then all the same.
        """
        self._closing = True
        self._desk.stop()
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
        self._set(HostState("ready", "Ready", None, ModelInfo.of(model), directions))

    def _work(self) -> None:
        while not self._closing:
            self._wake.clear()
            if not self._line.job_waits and (task := self._desk.overdue()) is not None:
                self._desk.compute(task)
            if self._scheduler.round():
                continue
            job = self._line.take_job() if self._scheduler.count == 0 else None
            if job is not None:
                self._perform(job)
            elif (task := self._desk.next()) is not None:
                self._desk.compute(task)
            else:  # readers that left no room do not ring
                self._wake.wait(_STALLED_SECONDS if self._scheduler.count else _IDLE_SECONDS)
        self._scheduler.close()
        self._desk.close(CLOSED)

    def _perform(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # the thread outlives a model that can't be used
            self._model = None
            sentence = explained(error, "loading of the model", "a smaller one")
            self._failed(str(sentence), sentence.reason)
