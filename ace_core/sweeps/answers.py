"""Answers of many prompts under many arms."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ace_core.activations import Progress, batches
from ace_core.arms import Arm
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections
from ace_core.generation import MAX_ROWS, Row, Transcript, stream_rows
from ace_core.interventions import Plan
from ace_core.models import ChatModel
from ace_core.sampling import Sampler, Sampling
from ace_core.sweeps.ability import ability
from ace_core.sweeps.grid import Grid
from ace_core.sweeps.passes import Ability
from ace_core.sweeps.prefixes import alike, cache_of
from ace_core.sweeps.reuse import Recorded, Shared, first_edit

__all__ = ["CellAnswer", "answers"]

Draw = Callable[[int, int], Sampling]
"""How the answer of (prompt index, arm index) is drawn."""

_UNREAD = np.empty((0, 0), np.float32)
_SPARE = 1 / 8
"""Share of a batch's rows that may have finished before the rest is moved together, which copies its cache."""


@dataclass(frozen=True)
class CellAnswer:
    """The answer of one cell.

    Args:
        prompt, arm: indices into the sequences that were given.
        ids: token ids; they end with the stop token if the answer ended by itself.
        text: without the stop token or stop string.
        stop: ``end`` of the answer, a ``stop`` string, ``length``, or ``nan`` where the model produced numbers that
            choose no token.
    """

    prompt: int
    arm: int
    ids: tuple[int, ...]
    text: str
    stop: str


def answers(
    model: ChatModel,
    directions: RefusalDirections,
    prompts: Sequence[tuple[int, ...]],
    arms: Sequence[Arm],
    sampling: Sampling | Draw,
    *,
    cells: Sequence[tuple[int, int]] | None = None,
    batch_rows: int = 48,
    progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[CellAnswer]:
    """The answer of every cell, each as soon as it is finished.

    A cell's text depends on its prompt, arm and sampling only, not on which cells run beside it.

    Args:
        model: a loaded model.
        directions: fitted on it.
        prompts: token ids, each non-empty.
        arms: what steers.
        sampling: one for all cells, or a function of (prompt index, arm index).
        cells: pairs (prompt index, arm index); None means every prompt under every arm.
        batch_rows: rows a forward pass.
        progress: called with (cells done, cells in all).
        should_stop: polled before every token; once true, unfinished answers are dropped.

    Raises:
        EngineError: for an empty prompt, a cell outside the grid, or directions of another model.
    """
    grid = Grid.of(model, directions, prompts, arms, cells, batch_rows, should_stop)
    draw = sampling if callable(sampling) else lambda prompt, arm: sampling
    known = ability(model) if grid.cells else None
    found = _plainly(grid, draw) if known is None else _together(grid, known, draw)
    for done, answer in enumerate(found, 1):
        progress(done, len(grid.cells))
        yield answer


def _plainly(grid: Grid, sampling: Draw) -> Iterator[CellAnswer]:
    model = grid.model
    size = min(grid.batch_rows, MAX_ROWS) if model.batched else 1
    for members in batches([len(grid.prompts[p]) for p, _ in grid.cells], model.recurrent, size):
        chosen = [grid.cells[i] for i in members]
        ids: list[list[int]] = [[] for _ in chosen]
        texts = [""] * len(chosen)
        rows = [Row(grid.prompts[p], grid.arms[a], sampling(p, a)) for p, a in chosen]
        for step in stream_rows(model, grid.directions, rows, read=False, cancelled=grid.should_stop):
            for row, (prompt, arm) in enumerate(chosen):
                token, stop = step.tokens[row], step.stop[row]
                texts[row] += step.text[row]
                if token is not None:
                    ids[row].append(token)
                if stop is not None and stop != "cancelled":
                    yield CellAnswer(prompt, arm, tuple(ids[row]), texts[row], stop)
        if grid.should_stop():
            return


@torch.inference_mode()
def _together(grid: Grid, known: Ability, sampling: Draw) -> Iterator[CellAnswer]:
    """Waiting cells join the batch as soon as finished ones have left enough room."""
    running: _Batch | None = None
    used = grid.used
    for members in alike([grid.prompts[p] for p in used]):
        some = {used[k] for k in members}
        mine = [cell for cell in grid.cells if cell[0] in some]
        starting = _Starting(replace(grid, cells=mine), known, sampling)
        for waiting in starting.units():
            running, finished = yield from _run_down(grid, running, grid.batch_rows - len(waiting))
            if not finished:
                return
            new = starting.start(waiting)
            yield from new.finished()
            if new.running:
                rest = new.take(new.running)
                running = rest if running is None else running.join(rest)
    yield from _run_down(grid, running, 0)


def _run_down(grid: Grid, running: _Batch | None, rows: int) -> Generator[CellAnswer, None, tuple[_Batch | None, bool]]:
    """Go on until at most so many rows are left; they, and False if it was stopped before."""
    while running is not None and len(running.cells) > max(0, rows):
        if grid.should_stop():
            return running, False
        running.step(grid.model)
        yield from running.finished()
        left = running.running
        if not left:
            running = None
        elif len(left) <= max(rows, len(running.cells) * (1 - _SPARE)):
            running = running.take(left)
    return running, not grid.should_stop()


class _Cell:
    """An answer under way."""

    def __init__(self, model: ChatModel, prompt: int, arm: int, row: Row) -> None:
        self.prompt, self.arm, self.row = prompt, arm, row
        self._transcript = Transcript(model, [row])
        self._ids: list[int] = []
        self._text = ""
        self.stop: str | None = None
        self.told = False

    @property
    def newest(self) -> int:
        return self._ids[-1]

    def add(self, token: int | None) -> None:
        self._transcript.add(0, token, _UNREAD, _UNREAD)
        step = self._transcript.step()
        if token is not None:
            self._ids.append(token)
        self._text += step.text[0]
        self.stop = step.stop[0]

    def answer(self) -> CellAnswer:
        assert self.stop is not None
        return CellAnswer(self.prompt, self.arm, tuple(self._ids), self._text, self.stop)


@dataclass
class _Batch:
    """Rows that decode together, each at a length of its own."""

    cells: list[_Cell]
    decoding: Decoding
    plan: Plan
    sampler: Sampler

    @property
    def running(self) -> list[int]:
        return [row for row, cell in enumerate(self.cells) if cell.stop is None]

    def add(self, logits: Tensor) -> None:
        """The next token of every row from logits ``(rows, vocabulary)``."""
        for cell, token in zip(self.cells, self.sampler.draw(logits), strict=True):
            if cell.stop is None:
                cell.add(token)

    def step(self, model: ChatModel) -> None:
        newest = torch.tensor([cell.newest if cell.stop is None else 0 for cell in self.cells], device=model.device)
        self.decoding.advance(newest)
        with self.plan.applied(model.blocks, self.decoding.positions):
            logits = self.decoding.step()
        self.add(logits)

    def finished(self) -> Iterator[CellAnswer]:
        """Answers that have stopped since this was last asked."""
        for cell in self.cells:
            if cell.stop is not None and not cell.told:
                cell.told = True
                yield cell.answer()

    def take(self, rows: list[int]) -> _Batch:
        cells = [self.cells[row] for row in rows]
        return _Batch(cells, self.decoding.take(rows), self.plan.take(rows), self.sampler.take(rows))

    def join(self, other: _Batch) -> _Batch:
        self.decoding.join([other.decoding])
        cells = self.cells + other.cells
        return _Batch(cells, self.decoding, self.plan.join([other.plan]), self.sampler.join([other.sampler]))


class _Starting:
    """Reading prompts for their first token, in units of one first edited block and one prompt length."""

    def __init__(self, grid: Grid, known: Ability, sampling: Draw) -> None:
        self._grid, self._sampling = grid, sampling
        self._used = grid.used
        self._prompts = [grid.prompts[p] for p in self._used]
        self._size = max(1, grid.batch_rows // 2)
        starts = [first_edit(grid.directions, arm) for arm in grid.arms]
        place = {prompt: k for k, prompt in enumerate(self._used)}
        self._groups: dict[int, list[tuple[int, int]]] = {}
        for prompt, arm in sorted(grid.cells, key=lambda cell: cell[1]):
            self._groups.setdefault(starts[arm], []).append((place[prompt], arm))
        self._shared = Shared(
            grid.model, known, grid.directions, self._prompts, list(self._groups), cached=True, batch_rows=self._size
        )
        self._block = -1
        self._members: list[int] = []
        self._beginning: list[Any] | None = None
        self._records: dict[int, Recorded] = {}

    def units(self) -> Iterator[list[tuple[int, int]]]:
        """Cells (place, arm) to start together, in the order in which they should run."""
        for window in self._shared.windows(range(len(self._prompts))):
            inside = set(window)
            self._records = self._shared.record(window)
            for block, group in self._groups.items():
                here = [cell for cell in group if cell[0] in inside]
                self._block, self._members = block, sorted({arm for _, arm in here})
                self._beginning = self._shared.beginning(block, [self._grid.arms[a] for a in self._members])
                lengths = sorted({len(self._prompts[p]) for p, _ in here})
                for length in lengths:
                    unit = sorted(cell for cell in here if len(self._prompts[cell[0]]) == length)
                    yield from (unit[at : at + self._size] for at in range(0, len(unit), self._size))

    def start(self, unit: Sequence[tuple[int, int]]) -> _Batch:
        """Cells of a unit with their first tokens."""
        model, arms = self._grid.model, [self._grid.arms[arm] for _, arm in unit]
        indices = [place for place, _ in unit]
        rows = [self._members.index(arm) for _, arm in unit]
        logits, layers = self._shared.read(self._block, arms, indices, self._records, self._beginning, rows)
        ids = [self._prompts[i] for i in indices]
        cells = [
            _Cell(model, self._used[place], arm, Row(self._prompts[place], self._grid.arms[arm], sampling))
            for (place, arm) in unit
            for sampling in [self._sampling(self._used[place], arm)]
        ]
        decoding = Decoding(model.network, ids, model.pad_id, model.device)
        decoding.adopt(cache_of(layers))
        plan = Plan(self._grid.directions, arms, [len(row) for row in ids], read=False)
        batch = _Batch(cells, decoding, plan, Sampler([cell.row.sampling for cell in cells]))
        batch.add(logits)
        return batch
