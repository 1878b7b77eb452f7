"""Comparisons on Hugging Face ZeroGPU, where a GPU is there only inside one decorated call in a forked process.

Everything else stays as it is: the page sees a :class:`ace_core.host.ModelHost`, and inside the call the same scheduler
serves the one run. What crosses between the processes is plain data: token ids, arms and sampling one way; steps, an
error or nothing at all, as a sign of life, the other way.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError, explained
from ace_core.generation import Row, Transcript
from ace_core.host import ModelHost
from ace_core.models import ChatModel, Precision
from ace_core.policy import OPEN, Policy
from ace_core.scheduling.limits import Limits
from ace_core.scheduling.outlet import Outlet, Told, messages
from ace_core.scheduling.streams import CLOSED, Prepared, RunStream
from ace_core.tasks import Task

__all__ = ["Call", "ZeroGpuHost", "create_host", "on_zero_gpu"]

_ON_ACCELERATORS = ("bfloat16", "float16")


def on_zero_gpu() -> bool:
    """Whether this process runs in a ZeroGPU Space."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def create_host(limits: Limits | None = None, policy: Policy = OPEN) -> ModelHost:
    """The host for where this runs; call it before anything touches CUDA, from the thread that launches the page."""
    return ZeroGpuHost(limits, policy) if on_zero_gpu() else ModelHost(limits, policy)


@dataclass(frozen=True)
class Call:
    """What crosses into the process that has the GPU.

    Args:
        model: name of the model the rows are meant for.
        rows: prompts as token ids, with arms and sampling.
        directions: fields of the visitor's own directions, tensors as float32 arrays; None takes the model's own.
    """

    model: str
    rows: tuple[Row, ...]
    directions: dict[str, Any] | None = None

    @classmethod
    def of(cls, prepared: Prepared, own: RefusalDirections | None) -> Call:
        if prepared.directions is own:
            return cls(prepared.model.name, tuple(prepared.rows))
        fields = dataclasses.fields(prepared.directions)
        values = {field.name: getattr(prepared.directions, field.name) for field in fields}
        plain = {name: v.cpu().numpy() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        return cls(prepared.model.name, tuple(prepared.rows), plain)

    def steering(self, own: RefusalDirections) -> RefusalDirections:
        """The directions to steer with."""
        if self.directions is None:
            return own
        # unpickled arrays may be read-only, which torch does not know
        values: dict[str, Any] = {
            name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for name, v in self.directions.items()
        }
        return RefusalDirections(**values)


class ZeroGpuHost(ModelHost):
    """A host whose runs are one GPU call each: all arms in one batch.

    Spaces queues the calls and charges them to the visitor's quota. It packs what is on the GPU when the page
    launches, so :meth:`load` returns only when the model is there, and there is one model. Long tasks have no GPU and
    are refused. A run of a reader who lags is not paused, since the GPU is paid for; it holds an answer at most.

    Args:
        limits: caps; a visitor's running and waiting calls are counted together.
        policy: what may be asked of it; long tasks never are.
    """

    def __init__(self, limits: Limits | None = None, policy: Policy = OPEN) -> None:
        call: Callable[[Call], Iterator[Told]] = self.answer
        if on_zero_gpu():
            try:
                spaces: Any = importlib.import_module("spaces")
            except ImportError:
                raise EngineError("ZeroGPU needs the package 'spaces': add it to requirements.txt.") from None
            call = spaces.GPU(self.answer, duration=self.seconds)
        self._call = call
        self._calls: list[RunStream] = []
        self._threads: list[threading.Thread] = []
        self._counting = threading.Lock()
        super().__init__(limits, dataclasses.replace(policy, work=False))

    @property
    def active(self) -> int:
        return len(self._calls)

    def load(
        self, name: str, *, precision: Precision = "auto", device: str = "auto", vectors: Path | str | None = None
    ) -> None:
        """Load a model and its vectors, or fit them on the CPU, then move it to the GPU; takes as long as that takes.

        Raises:
            EngineError: for a second model, or a precision that only CPUs have.
        """
        if self._model is not None:
            raise EngineError("A ZeroGPU Space serves one model: set ACE_MODEL and restart it.")
        if precision != "auto" and precision not in _ON_ACCELERATORS:
            raise EngineError(f"On ZeroGPU choose precision {' or '.join(_ON_ACCELERATORS)}.")
        super().load(name, precision="bfloat16" if precision == "auto" else precision, device="cpu", vectors=vectors)

    def work(self, compute: Callable[[ChatModel, Task[Any]], Any], *, visitor: str | None = None) -> Task[Any]:
        """Long tasks are refused.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "This Space has a GPU only for comparisons: duplicate it on a CPU or GPU of its own for fits and sweeps."
        )

    def close(self, timeout: float = 30.0) -> None:
        """End all calls, which takes as long as one token."""
        deadline = time.monotonic() + timeout
        super().close(timeout)
        with self._counting:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def seconds(self, call: Call) -> int:
        """How long a call may take; a longer one is ended by Spaces, a shorter one waits less in its queue."""
        billions = 0.0 if self._model is None else self._model.parameters / 1e9
        tokens = max(row.sampling.max_new_tokens for row in call.rows)
        return round(10 + billions + tokens * (0.05 + 0.003 * billions + 0.002 * len(call.rows)))

    def answer(self, call: Call) -> Generator[Told, None, None]:
        """Serve one run; runs in the forked process, whose copy of this object has the model and no threads.

        Yields at least every 0.3 seconds. Closing it stops the run within a token.
        """
        # no lock of the parent's, which another thread may have held when the process forked
        model, own = self._model, self._state.directions
        if model is None or own is None or model.name != call.model:
            yield EngineError("The model changed while the run waited: run it again.")
            return
        try:
            outlet = Outlet(Prepared(model, call.steering(own), call.rows))
        except EngineError as error:
            yield error
            return
        thread = threading.Thread(target=outlet.serve, args=(self.limits,), name="gpu model", daemon=True)
        thread.start()
        try:
            yield from messages(outlet.told)
        finally:  # the GPU must be at rest when it is given back
            outlet.cancel()
            thread.join()

    def _adopt(self, model: ChatModel, directions: RefusalDirections) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if on_zero_gpu() and model.device != device:
            model.network.to(device)
            model = dataclasses.replace(model, device=device)
        super()._adopt(model, directions)

    def _put(self, entry: RunStream | Callable[[], None]) -> None:
        if not isinstance(entry, RunStream):
            self._perform(entry)
            return
        if not self.alive or self._closing:
            raise EngineError(CLOSED, reason="closed")
        # a copy of the context tells Spaces whose request, and so whose quota, this is
        follow = contextvars.copy_context().run
        thread = threading.Thread(target=follow, args=(self._follow, entry), name="gpu call", daemon=True)
        with self._counting:
            self._count_in(entry)
            self._threads.append(thread)
        thread.start()

    def _count_in(self, stream: RunStream) -> None:
        if len(self._calls) >= self.limits.waiting:
            raise EngineError("Too many people are waiting for the model: try again in a minute.")
        mine = sum(other.visitor == stream.visitor for other in self._calls) if stream.visitor is not None else 0
        if mine >= self.limits.visitor_running + self.limits.visitor_waiting:
            raise EngineError(f"{mine} of your runs are waiting already: stop one, or wait until one ends.")
        self._calls.append(stream)

    def _follow(self, stream: RunStream) -> None:
        """Make the call of one run and tell its reader; the whole life of a thread."""
        error: EngineError | None = None
        try:
            prepared = stream.prepare()
            stream.builder = prepared.builder
            if not stream.cancelled:
                self._tell(stream, prepared)
        except Exception as raised:
            error = _sentence(raised)
        finally:
            with self._counting:
                self._calls.remove(stream)
                self._threads.remove(threading.current_thread())
            stream.finish(error)

    def _tell(self, stream: RunStream, prepared: Prepared) -> None:
        transcript = Transcript(prepared.model, prepared.rows)
        calls = self._call(Call.of(prepared, self.state.directions))
        with contextlib.closing(calls):  # type: ignore[type-var]
            for told in calls:
                stream.begin()
                if isinstance(told, EngineError):
                    raise told
                for step in told:
                    for row in transcript.running:
                        transcript.add(row, step.tokens[row], step.before[row], step.after[row])
                    stream.put(transcript.step())
                if stream.cancelled or self._closing:
                    break
        if transcript.running:
            stream.put(transcript.halt("cancelled"))
        if self._closing:
            raise EngineError(CLOSED, reason="closed")


def _sentence(error: Exception) -> EngineError:
    said = getattr(error, "message", None)  # how `spaces` speaks to a visitor: no quota left, no GPU free
    if isinstance(error, EngineError) or said is None:
        return explained(error, "run", "fewer arms or a shorter answer")
    return EngineError(f"{getattr(error, 'title', 'ZeroGPU')}: {str(said).strip()}")
