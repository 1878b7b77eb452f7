"""The mechanism of sharing a model: runs whose prompts are being read, and batches that rows join and leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ace_core.decoding import Decoding
from ace_core.generation import Step, Transcript, stream_rows
from ace_core.interventions import Plan, Readings
from ace_core.models import ChatModel
from ace_core.sampling import Sampler
from ace_core.scheduling.streams import Prepared, RunStream

__all__ = ["ActiveRun", "Batch", "Reading", "Told", "Turns"]


@dataclass(eq=False)
class ActiveRun:
    """A run that left the line.

    ``bytes`` is the memory set aside for it, ``stalled`` since when its reader has left it no room.
    """

    stream: RunStream
    prepared: Prepared
    bytes: int = 0
    begun: float = field(default_factory=time.monotonic)
    stalled: float | None = None

    def __post_init__(self) -> None:
        self.transcript = Transcript(self.prepared.model, self.prepared.rows)

    def halt(self) -> Step:
        """The last step of a run that is cancelled."""
        return self.transcript.halt("cancelled")


Told = tuple[ActiveRun, Step | Exception]
"""A run and its newest step, or why there is none."""


class Batch:
    """Rows of any number of runs that decode together, each with its own arm, directions, sampling and seed.

    Taking leaves the batch it was called on as it was, and so does joining, but only once.

    Args:
        model: the model all rows run on.
        rows: run and number within it of every row.
        decoding, plan, sampler: their state, row by row.
    """

    def __init__(
        self, model: ChatModel, rows: Sequence[tuple[ActiveRun, int]], decoding: Decoding, plan: Plan, sampler: Sampler
    ) -> None:
        self._model, self._rows = model, tuple(rows)
        self._decoding, self._plan, self._sampler = decoding, plan, sampler

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def runs(self) -> list[ActiveRun]:
        """The runs that have rows here, in order of joining."""
        return list(dict.fromkeys(run for run, _ in self._rows))

    def join(self, others: Sequence[Batch]) -> Batch:
        """One batch of these rows and those of the others."""
        decoding = self._decoding.saved()
        decoding.join([batch._decoding for batch in others])
        return Batch(
            self._model,
            [row for batch in (self, *others) for row in batch._rows],
            decoding,
            self._plan.join([batch._plan for batch in others]),
            self._sampler.join([batch._sampler for batch in others]),
        )

    def take(self, runs: Sequence[ActiveRun]) -> Batch | None:
        """A batch of the rows of some runs that are still writing; None if there are none."""
        return self._of(self._writing(runs), self._decoding.take)

    def keep(self, runs: Sequence[ActiveRun]) -> Batch | None:
        """As :meth:`take`, in the memory of this batch, which must not be used again: the last rows fill the gaps."""
        kept = self._writing(runs)
        room = len(kept)
        later = [row for row in kept if row >= room]
        held = set(kept)
        return self._of([row if row in held else later.pop() for row in range(room)], self._decoding.keep)

    def _writing(self, runs: Sequence[ActiveRun]) -> list[int]:
        running = {run: set(run.transcript.running) for run in runs}
        return [i for i, (run, row) in enumerate(self._rows) if row in running.get(run, ())]

    def _of(self, rows: Sequence[int], part: Callable[[Sequence[int]], Decoding]) -> Batch | None:
        if len(rows) == len(self._rows):
            return self
        if not rows:
            return None
        plan, sampler = self._plan.take(rows), self._sampler.take(rows)
        return Batch(self._model, [self._rows[i] for i in rows], part(rows), plan, sampler)

    def step(self) -> list[Told]:
        """One token for every row. If it raises, the batch is as it was and may be split and tried again."""
        saved = self._decoding.saved()
        try:
            last = [run.transcript.chosen(row) for run, row in self._rows]
            self._decoding.advance(torch.tensor(last, device=self._model.device))
            logits, readings = _forward(self._model, self._decoding, self._plan)
            tokens = self._sampler.draw(logits)
        except BaseException:
            self._decoding = saved
            raise
        return _told(self._rows, tokens, readings)


class Reading:
    """A run whose prompt is being read, piece by piece.

    Args:
        run: the run; all its rows have one prompt.
        piece: tokens a piece.
    """

    def __init__(self, run: ActiveRun, piece: int) -> None:
        model, rows = run.prepared.model, run.prepared.rows
        self.run = run
        self._decoding = Decoding(
            model.network, [row.ids for row in rows], model.pad_id, model.device, model.shares_prompts, piece
        )
        self._plan = Plan(run.prepared.directions, [row.arm for row in rows], [len(row.ids) for row in rows])
        self._sampler = Sampler([row.sampling for row in rows])
        self._seen: list[Readings] = []

    def __len__(self) -> int:
        return len(self.run.prepared.rows)

    def advance(self) -> int:
        """Read one piece; how many tokens it had."""
        self._logits, readings = _forward(self.run.prepared.model, self._decoding, self._plan)
        self._seen.append(readings)
        return readings.before.shape[-1]

    @property
    def done(self) -> bool:
        return not self._decoding.reading

    def batch(self) -> tuple[Batch, list[Told]]:
        """The rows, ready to decode, and the run's first step."""
        readings = Readings(
            np.concatenate([piece.before for piece in self._seen], axis=-1),
            np.concatenate([piece.after for piece in self._seen], axis=-1),
        )
        rows = [(self.run, row) for row in range(len(self))]
        batch = Batch(self.run.prepared.model, rows, self._decoding, self._plan, self._sampler)
        return batch, _told(rows, self._sampler.draw(self._logits), readings)


class Turns:
    """A run of a model whose rows can't join others: it takes turns with them.

    Args:
        run: the run.
    """

    def __init__(self, run: ActiveRun) -> None:
        prepared, self._run = run.prepared, run
        self._halted = False
        self._steps: Iterator[Step] = stream_rows(
            prepared.model, prepared.directions, prepared.rows, cancelled=lambda: self._halted or run.stream.cancelled
        )
        self._running = len(prepared.rows)
        run.halt = self._halt  # type: ignore[method-assign]

    def __len__(self) -> int:
        return self._running

    @property
    def runs(self) -> list[ActiveRun]:
        return [self._run]

    def take(self, runs: Sequence[ActiveRun]) -> Turns | None:
        return self if self._run in runs and self._running else None

    keep = take

    def step(self) -> list[Told]:
        """One token for every row."""
        step = next(self._steps)
        self._running -= sum(reason is not None for reason in step.stop)
        return [(self._run, step)]

    def _halt(self) -> Step:
        self._halted = True
        return next(self._steps)


@torch.inference_mode()
def _forward(model: ChatModel, decoding: Decoding, plan: Plan) -> tuple[Tensor, Readings]:
    with plan.applied(model.blocks, decoding.positions) as session:
        logits = decoding.prefill() if decoding.reading else decoding.step()
    return logits, session.readings()


def _told(rows: Sequence[tuple[ActiveRun, int]], tokens: Sequence[int | None], readings: Readings) -> list[Told]:
    failed: dict[ActiveRun, Exception] = {}
    for place, (run, row) in enumerate(rows):
        try:
            run.transcript.add(row, tokens[place], readings.before[place], readings.after[place])
        except Exception as error:  # the others have their tokens already, so it must not stop them
            failed[run] = error
    runs = dict.fromkeys(run for run, _ in rows)
    return [(run, failed[run] if run in failed else run.transcript.step()) for run in runs]
