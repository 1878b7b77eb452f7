"""Logits of the first answer token under many arms, no generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.activations import Progress, batches
from ace_core.arms import Arm
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections
from ace_core.interventions import Plan
from ace_core.models import ChatModel
from ace_core.sweeps.ability import ability
from ace_core.sweeps.grid import Grid
from ace_core.sweeps.passes import Ability
from ace_core.sweeps.prefixes import alike
from ace_core.sweeps.reuse import Shared, first_edit

__all__ = ["CellLogits", "first_logits"]

_ENOUGH_ROWS = 16
"""Rows at which a CPU multiplies as fast as it can, so that rows of another length would only be padded."""


@dataclass(frozen=True)
class CellLogits:
    """Logits of some cells; cell k is prompt ``prompts[k]`` under arm ``arms[k]``.

    Args:
        prompts, arms: indices into the sequences that were given.
        logits: float32 ``(cells, vocabulary)`` on the CPU, at the last prompt position.
    """

    prompts: tuple[int, ...]
    arms: tuple[int, ...]
    logits: Tensor


@torch.inference_mode()
def first_logits(
    model: ChatModel,
    directions: RefusalDirections,
    prompts: Sequence[tuple[int, ...]],
    arms: Sequence[Arm],
    *,
    cells: Sequence[tuple[int, int]] | None = None,
    batch_rows: int = 64,
    progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[CellLogits]:
    """Logits at the last prompt position of every cell, in chunks as they are finished.

    Args:
        model: a loaded model.
        directions: fitted on it.
        prompts: token ids, each non-empty.
        arms: what steers; blocks are worked off in the order in which ``arms`` first names them.
        cells: pairs (prompt index, arm index); None means every prompt under every arm.
        batch_rows: rows a forward pass.
        progress: called with (cells done, cells in all).
        should_stop: polled between batches; once true, no further cell is computed.

    Raises:
        EngineError: for an empty prompt, a cell outside the grid, or directions of another model.
    """
    grid = Grid.of(model, directions, prompts, arms, cells, batch_rows, should_stop)
    known = ability(model) if grid.cells else None
    found = _plainly(grid) if known is None else _sharing(grid, known)
    done = 0
    for chunk in found:
        done += len(chunk.prompts)
        progress(done, len(grid.cells))
        yield chunk


def _sharing(grid: Grid, known: Ability) -> Iterator[CellLogits]:
    prompts, arms, used = grid.prompts, grid.arms, grid.used
    starts = [first_edit(grid.directions, arm) for arm in arms]
    enough = _ENOUGH_ROWS if grid.model.device.type == "cpu" else grid.batch_rows
    for members in alike([prompts[p] for p in used]):
        place = {used[k]: i for i, k in enumerate(members)}
        groups: dict[int, list[tuple[int, int]]] = {}
        for prompt, arm in sorted(grid.cells, key=lambda cell: cell[1]):
            if prompt in place:
                groups.setdefault(starts[arm], []).append((prompt, arm))
        some = [prompts[p] for p in place]
        shared = Shared(grid.model, known, grid.directions, some, list(groups), batch_rows=grid.batch_rows)
        for window in shared.windows(range(len(some))):
            if grid.should_stop():
                return
            records, inside = shared.record(window), set(window)
            for block, group in groups.items():
                here = sorted((len(prompts[p]), p, a) for p, a in group if place[p] in inside)
                chosen = sorted({arm for _, _, arm in here})
                beginning = None
                for batch in _batched(here, grid.batch_rows, enough):
                    if grid.should_stop():
                        return
                    if beginning is None:
                        beginning = shared.beginning(block, [arms[a] for a in chosen])
                    rows = [(place[p], arms[a], chosen.index(a)) for _, p, a in batch]
                    indices, steering, numbers = (list(column) for column in zip(*rows, strict=True))
                    logits, _ = shared.read(block, steering, indices, records, beginning, numbers)
                    yield CellLogits(tuple(p for _, p, _ in batch), tuple(a for _, _, a in batch), logits)


def _batched(rows: Sequence[tuple[int, int, int]], size: int, enough: int) -> Iterator[list[tuple[int, int, int]]]:
    """Rows that start with their length, sorted, in batches of at most ``size``, of one length if that makes
    ``enough``."""
    batch: list[tuple[int, int, int]] = []
    for row in rows:
        if len(batch) == size or (len(batch) >= enough and row[0] != batch[-1][0]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _plainly(grid: Grid) -> Iterator[CellLogits]:
    model = grid.model
    size = grid.batch_rows if model.batched else 1
    for members in batches([len(grid.prompts[p]) for p, _ in grid.cells], model.recurrent, size):
        if grid.should_stop():
            return
        chosen = [grid.cells[i] for i in members]
        rows = [grid.prompts[p] for p, _ in chosen]
        decoding = Decoding(model.network, rows, model.pad_id, model.device)
        plan = Plan(grid.directions, [grid.arms[a] for _, a in chosen], [len(row) for row in rows], read=False)
        with plan.applied(model.blocks, decoding.positions):
            logits = decoding.prefill().float().cpu()
        yield CellLogits(tuple(p for p, _ in chosen), tuple(a for _, a in chosen), logits)
