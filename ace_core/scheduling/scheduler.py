"""The policy of sharing a model: who is admitted, whose prompt is read, whose rows decode, who is dropped."""

from __future__ import annotations

import gc
import time
from collections import Counter, deque
from collections.abc import Sequence

import torch

from ace_core.errors import EngineError, explained, out_of_memory
from ace_core.models import ChatModel
from ace_core.scheduling.heap import Heap
from ace_core.scheduling.limits import Footprint, Limits, free_memory
from ace_core.scheduling.line import WaitingLine
from ace_core.scheduling.running import ActiveRun, Batch, Reading, Told, Turns
from ace_core.scheduling.streams import CLOSED, RunStream

__all__ = ["Scheduler"]

_RECOVERY_SECONDS = 60.0
_SMOOTHING = 0.2
_NAN = "The model produced NaN: use a smaller coefficient, or load it in float32."
_UNREAD = "The run was dropped because nobody took what it wrote: run it again."

Unit = Batch | Turns


class Scheduler:
    """Serves all runs of one host, a round at a time; only the model thread calls it.

    A round admits runs from the line, reads a piece of the prompts of those that came, first come first, and gives
    every row of every run whose reader has room one token.

    Args:
        line: where runs wait.
        limits: caps.
    """

    def __init__(self, line: WaitingLine, limits: Limits) -> None:
        self._line, self._limits = line, limits
        self._reading: deque[Reading] = deque()
        self._units: list[Unit] = []
        self._model: ChatModel | None = None
        self._footprint = Footprint(0, 0)
        self._memory = 0
        self._rows, self._shrunk = limits.rows, 0.0
        self._service: float | None = None
        self._candidate: ActiveRun | None = None
        self._heap = Heap()
        self.count = 0
        """Runs in progress, for anyone to read."""

    @property
    def active(self) -> list[ActiveRun]:
        """Runs that have left the line and are not over."""
        return [reading.run for reading in self._reading] + [run for unit in self._units for run in unit.runs]

    def round(self) -> bool:
        """Serve everyone once; whether there was anything to compute."""
        try:
            self._line.drop_gone()
            self._drop_gone()
            self._recover()
            self._admit()
            return self._read() | self._decode()
        except Exception as error:  # in the bookkeeping between passes: nobody's rows can be relied on
            self._end_all(_sentence(error))
            return True
        finally:
            before, self.count = self.count, len(self.active)
            self._heap.look(freed=self.count < before, idle=self.count == 0)

    def close(self) -> None:
        """End all runs, those in the line as well, with what they have written so far."""
        self._end_all(EngineError(CLOSED, reason="closed"))
        for stream in self._line.drain():
            stream.finish(EngineError(CLOSED, reason="closed"))
        self.count = 0

    def _end_all(self, error: EngineError) -> None:
        for run in self.active:
            self._end(run, error)
        self._reading.clear()
        self._units.clear()

    # Who comes and goes

    def _admit(self) -> None:
        while True:
            active = self.active
            visitors = Counter(run.stream.visitor for run in active)

            def may_begin(stream: RunStream, visitors: Counter[str | None] = visitors) -> bool:
                return stream.visitor is None or visitors[stream.visitor] < self._limits.visitor_running

            stream = self._line.first(may_begin)
            if stream is None:
                return
            try:
                run = self._candidate  # who did not fit a round ago need not be prepared again
                if run is None or run.stream is not stream:
                    run = self._candidate = ActiveRun(stream, stream.prepare())
                if not self._fits(run, active):
                    return
                prepared, self._candidate, run.begun = run.prepared, None, time.monotonic()
                prepared.model.accepts(prepared.directions)
                self._line.remove(stream)
                stream.builder = prepared.builder
                stream.begin()
                if prepared.model.rows_join:
                    self._reading.append(Reading(run, self._limits.piece))
                else:
                    self._units.append(Turns(run))
            except Exception as error:
                self._line.remove(stream)
                stream.finish(_sentence(error))

    def _fits(self, run: ActiveRun, active: Sequence[ActiveRun]) -> bool:
        """Whether there is room for a run; alone it may always try."""
        model, rows = run.prepared.model, run.prepared.rows
        if model is not self._model:
            self._model, self._footprint = model, Footprint.of(model)
            self._memory = free_memory(model.device) if self._limits.memory is None else self._limits.memory
        longest = max(len(row.ids) + row.sampling.max_new_tokens for row in rows)
        run.bytes = self._footprint.bytes(len(rows), longest)
        if not active:
            return True
        if not model.rows_join:
            return len(active) < self._limits.turns
        taken = sum(len(part) for part in (*self._reading, *self._units))
        return taken + len(rows) <= self._rows and sum(r.bytes for r in active) + run.bytes <= self._memory

    def _drop_gone(self) -> None:
        """End runs that were cancelled, or whose reader has taken nothing for too long."""
        now = time.monotonic()
        for run in self.active:
            if run.stream.backlog < 1:
                run.stalled = run.stalled if run.stalled is not None and run.stream.backlog > 0.5 else None
            else:
                run.stalled = run.stalled or now
            unread = run.stalled is not None and now - run.stalled > self._limits.stalled_seconds
            if unread or run.stream.cancelled:
                self._end(run, EngineError(_UNREAD, reason="unread") if unread else None)
                self._leave([run])

    def _leave(self, runs: Sequence[ActiveRun]) -> None:
        self._reading = deque(reading for reading in self._reading if reading.run not in runs)
        left = []
        for unit in self._units:
            rest = unit.keep([run for run in unit.runs if run not in runs]) if set(unit.runs) & set(runs) else unit
            left += [] if rest is None else [rest]
        self._units = left

    def _end(self, run: ActiveRun, error: EngineError | None = None) -> None:
        """Say the last words of a run; its rows are still to leave."""
        if run.stream.cancelled or error is not None:
            try:
                run.stream.put(run.halt())
            except Exception:  # a broken iterator or decoder has no last words
                error = error or EngineError("The run stopped because of an unexpected error.")
        self._over(run, error)

    def _over(self, run: ActiveRun, error: EngineError | None = None) -> None:
        run.stream.finish(error)
        lasted = time.monotonic() - run.begun
        self._service = lasted if self._service is None else self._service + _SMOOTHING * (lasted - self._service)
        self._line.set_pace(self._service / max(1, len(self.active)))

    # Reading and decoding

    def _read(self) -> bool:
        """Read as many prompt tokens as a piece has, whole prompts if they are short."""
        budget = self._limits.piece
        while self._reading and budget > 0:
            reading = self._reading[0]
            try:
                budget -= reading.advance()
                if not reading.done:
                    continue
                self._reading.popleft()
                batch, told = reading.batch()
            except Exception as error:
                self._could_not_read(reading, error)
                return True
            self._units += self._tell(batch, told)
        return budget < self._limits.piece

    def _could_not_read(self, reading: Reading, error: Exception) -> None:
        if self._reading and self._reading[0] is reading:
            self._reading.popleft()
        if out_of_memory(error) and self.active:
            # it starts afresh when somebody has left
            self._shrink(sum(len(part) for part in (*self._reading, *self._units)))
            reading.run.stream.wait_again()
            self._line.put_back(reading.run.stream)
        else:
            self._over(reading.run, _sentence(error))

    def _decode(self) -> bool:
        """One token for every row whose reader has room."""
        ready: list[Unit] = []
        self._units, units = [], self._units
        for unit in units:
            stalled = [run for run in unit.runs if run.stalled is not None]
            for part in [unit] if not stalled else self._split(unit, stalled):
                waits = any(run.stalled is not None for run in part.runs)
                (self._units if waits else ready).append(part)
        for unit in self._joined(ready):
            self._units += self._step(unit)
        return bool(ready)

    def _split(self, unit: Unit, runs: Sequence[ActiveRun]) -> list[Unit]:
        """A unit as two: without some of its runs, and of those alone."""
        parts = [unit.take([run for run in unit.runs if run not in runs]), unit.take(runs)]
        return [part for part in parts if part is not None]

    def _joined(self, units: Sequence[Unit]) -> list[Unit]:
        """Batches joined as far as the cap on rows allows."""
        groups: list[list[Batch]] = []
        out: list[Unit] = []
        for unit in units:
            if isinstance(unit, Turns):
                out.append(unit)
            elif groups and sum(map(len, groups[-1])) + len(unit) <= self._rows:
                groups[-1].append(unit)
            else:
                groups.append([unit])
        for group in groups:
            try:
                out += group if len(group) == 1 else [group[0].join(group[1:])]
            except Exception:  # apart they go on as well, only slower
                out += group
                self._shrink(max(map(len, group)))
        return out

    def _step(self, unit: Unit) -> list[Unit]:
        """Advance a unit; what is left of it. One that fails is split until only those who fail are left."""
        try:
            told = unit.step()
        except Exception as error:
            if out_of_memory(error):
                self._shrink(len(unit) // 2)
            runs = unit.runs
            if len(runs) > 1:
                try:
                    parts = self._split(unit, runs[len(runs) // 2 :])
                except Exception as again:
                    error = again
                else:
                    return [left for part in parts for left in self._step(part)]
            for run in runs:
                self._over(run, _sentence(error))
            return []
        return self._tell(unit, told)

    def _tell(self, unit: Unit, told: Sequence[Told]) -> list[Unit]:
        """Hand out a unit's steps; the unit without the rows that stopped."""
        failed: dict[ActiveRun, EngineError] = {}
        for run, step in told:
            if isinstance(step, Exception):
                failed[run] = _sentence(step)
                continue
            run.stream.put(step)
            if set(step.stop) == {"nan"}:
                failed[run] = EngineError(_NAN, reason="nan")
        rest = unit.keep([run for run in unit.runs if run not in failed])
        left = set() if rest is None else set(rest.runs)
        for run, _ in told:
            if run not in left:
                self._over(run, failed.get(run))
        return [] if rest is None else [rest]

    # Memory

    def _shrink(self, rows: int) -> None:
        """Memory ran out: no more than so many rows together for a while."""
        self._rows, self._shrunk = max(1, min(self._rows, rows)), time.monotonic()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _recover(self) -> None:
        if self._rows < self._limits.rows and time.monotonic() - self._shrunk > _RECOVERY_SECONDS:
            self._rows, self._shrunk = min(self._limits.rows, 2 * self._rows), time.monotonic()


def _sentence(error: BaseException) -> EngineError:
    return explained(error, "run", "fewer arms or a shorter answer")
