"""The streaming decode loop: all arms are rows of one batch, one event a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ace_core.arms import Arm
from ace_core.decoding import Decoding
from ace_core.detokenising import Detokeniser
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.interventions import Plan, Readings
from ace_core.models import ChatModel
from ace_core.sampling import Sampler, Sampling

__all__ = ["MAX_ROWS", "Row", "Step", "Transcript", "stream_rows"]

MAX_ROWS = 64
"""Cap on the rows of one stream."""


@dataclass(frozen=True)
class Row:
    """One row of a batch: a formatted prompt, the arm that steers it and how it is sampled."""

    ids: tuple[int, ...]
    arm: Arm
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Step:
    """One forward pass of every running row.

    Args:
        index: 0 for the prefill, then counting up.
        tokens: the token each row chose, None for rows that had stopped.
        text: the text each row's token completed; it may be empty.
        before, after: per row the refusal coordinates of the tokens *read* in this pass, float32
            ``(blocks, positions)``: all prompt tokens at index 0, then the token chosen one step earlier.
            Rows that had stopped have zero positions.
        stop: per row None, or why it stopped at this step: ``end`` of the answer, a ``stop`` string, ``length``,
            ``cancelled``, or ``nan`` where the model produced numbers that choose no token.
    """

    index: int
    tokens: tuple[int | None, ...]
    text: tuple[str, ...]
    before: tuple[np.ndarray, ...]
    after: tuple[np.ndarray, ...]
    stop: tuple[str | None, ...]

    @property
    def coordinates(self) -> np.ndarray:
        """Coordinate after the edit at the newest token read, ``(rows, blocks)``; NaN for stopped rows."""
        blocks = max(a.shape[0] for a in self.after)
        out = np.full((len(self.after), blocks), np.nan, np.float32)
        for row, array in enumerate(self.after):
            if array.shape[1]:
                out[row] = array[:, -1]
        return out


@dataclass
class _Group:
    """Rows that share one batch and one cache."""

    rows: list[int]
    decoding: Decoding
    plan: Plan
    sampler: Sampler


@torch.inference_mode()
def _forward(group: _Group, model: ChatModel, first: bool) -> tuple[Tensor, Readings]:
    decoding = group.decoding
    with group.plan.applied(model.blocks, decoding.positions) as session:
        logits = decoding.prefill() if first else decoding.step()
    return logits, session.readings()


def stream_rows(
    model: ChatModel,
    directions: RefusalDirections,
    rows: Sequence[Row],
    *,
    read: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Generate all rows together, yielding one :class:`Step` a token until every row has stopped.

    Args:
        model: a loaded model.
        directions: fitted on it.
        rows: at most :data:`MAX_ROWS`; prompts may differ in length.
        read: report coordinates at every block; False leaves ``before`` and ``after`` empty.
        cancelled: polled before every token; once true, running rows stop with ``cancelled``.

    Raises:
        EngineError: for no or too many rows, empty prompts, or directions of another model.
    """
    if not rows or len(rows) > MAX_ROWS:
        raise EngineError(f"Choose between 1 and {MAX_ROWS} arms to run together.")
    if any(not row.ids for row in rows):
        raise EngineError("The prompt is empty: type something first.")
    model.accepts(directions)
    groups = []
    for members in model.groups([len(row.ids) for row in rows]):
        chosen = [rows[i] for i in members]
        decoding = Decoding(
            model.network, [row.ids for row in chosen], model.pad_id, model.device, model.shares_prompts
        )
        plan = Plan(directions, [row.arm for row in chosen], [len(row.ids) for row in chosen], read)
        groups.append(_Group(members, decoding, plan, Sampler([row.sampling for row in chosen])))
    transcript = Transcript(model, rows)
    while running := set(transcript.running):
        if cancelled():
            yield transcript.halt("cancelled")
            return
        for group in groups:
            if running.isdisjoint(group.rows):
                continue
            first = transcript.index == 0
            if not first:
                last = [transcript.chosen(row) for row in group.rows]
                group.decoding.advance(torch.tensor(last, device=model.device))
            logits, readings = _forward(group, model, first)
            tokens = group.sampler(logits)
            width = readings.before.shape[-1]
            for member, row in enumerate(group.rows):
                if row in running:
                    pads = width - len(rows[row].ids) if first and width else 0
                    before, after = readings.before[member][:, pads:], readings.after[member][:, pads:]
                    transcript.add(row, tokens[member], before, after)
        yield transcript.step()


@dataclass
class _RowState:
    """What changes for one row while it runs."""

    detokeniser: Detokeniser
    held: str = ""
    chosen: int = 0
    stopped: bool = False


class Transcript:
    """What the rows of one stream have chosen so far, told as steps.

    Whoever runs the model calls :meth:`add` for every running row of a forward pass, then :meth:`step`.

    Args:
        model: for its tokenizer and what ends an answer.
        rows: the rows of the stream.
    """

    def __init__(self, model: ChatModel, rows: Sequence[Row]) -> None:
        self._model, self._rows = model, tuple(rows)
        self._states = [_RowState(Detokeniser(model.tokenizer)) for _ in rows]
        self._frame = _Frame(len(rows))
        self.index = 0
        """Index of the coming step."""

    @property
    def running(self) -> list[int]:
        """Rows that have not stopped."""
        return [row for row, state in enumerate(self._states) if not state.stopped]

    def chosen(self, row: int) -> int:
        """The newest token of a row."""
        return self._states[row].chosen

    def add(self, row: int, token: int | None, before: np.ndarray, after: np.ndarray) -> None:
        """A row chose a token after reading ``before`` and ``after``, ``(blocks, positions)``; None stops it as
        ``nan``."""
        frame, state = self._frame, self._states[row]
        frame.before[row], frame.after[row] = before, after
        if token is None:
            self._stop(row, "nan")
            return
        state.chosen = frame.tokens[row] = token
        frame.text[row], frame.stop[row] = _settle(self._model, state, self._rows[row].sampling, self.index)

    def step(self) -> Step:
        """The step made of what was added since the last one."""
        step = self._frame.freeze(self.index)
        self._frame = _Frame(len(self._rows))
        self.index += 1
        return step

    def halt(self, reason: str) -> Step:
        """Stop all running rows; text held back is told now."""
        for row in self.running:
            self._stop(row, reason)
        return self.step()

    def _stop(self, row: int, reason: str) -> None:
        state = self._states[row]
        state.stopped, self._frame.stop[row] = True, reason
        self._frame.text[row] = state.held + state.detokeniser.flush()


class _Frame:
    """A :class:`Step` being filled in."""

    def __init__(self, rows: int) -> None:
        empty = np.empty((0, 0), np.float32)
        self.tokens: list[int | None] = [None] * rows
        self.text = [""] * rows
        self.before = [empty] * rows
        self.after = [empty] * rows
        self.stop: list[str | None] = [None] * rows

    def freeze(self, index: int) -> Step:
        return Step(
            index, tuple(self.tokens), tuple(self.text), tuple(self.before), tuple(self.after), tuple(self.stop)
        )


def _settle(model: ChatModel, state: _RowState, sampling: Sampling, index: int) -> tuple[str, str | None]:
    """Text to show for the row's newest token, and why the row stops now, if it does."""
    if state.chosen in model.stop_ids:
        state.stopped = True
        return state.held + state.detokeniser.flush(), "end"
    pending = state.held + state.detokeniser.push(state.chosen)
    for mark in model.stop_strings:
        head, found, _ = pending.partition(mark)
        if found:
            state.stopped = True
            return head, "stop"
    if index + 1 >= sampling.max_new_tokens:
        state.stopped = True
        return pending + state.detokeniser.flush(), "length"
    # Text that may turn out to be the start of a stop string waits for the next token.
    keep = max((_overlap(pending, mark) for mark in model.stop_strings), default=0)
    state.held = pending[len(pending) - keep :]
    return pending[: len(pending) - keep], None


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that ``mark`` starts with."""
    sizes = range(min(len(text), len(mark) - 1), 0, -1)
    return next((n for n in sizes if text.endswith(mark[:n])), 0)
