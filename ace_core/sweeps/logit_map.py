"""Logits of the first answer token under many arms, no generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.activations import Progress, batches, recording
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
        hidden: float32 ``(recorded blocks, cells, d)`` on the CPU, block outputs there, after the edit.
    """

    prompts: tuple[int, ...]
    arms: tuple[int, ...]
    logits: Tensor
    hidden: Tensor


@torch.inference_mode()
def first_logits(
    model: ChatModel,
    directions: RefusalDirections,
    prompts: Sequence[tuple[int, ...]],
    arms: Sequence[Arm],
    *,
    cells: Sequence[tuple[int, int]] | None = None,
    recorded: Sequence[int] = (),
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
        recorded: blocks whose outputs are wanted as well.
        batch_rows: rows a forward pass.
        progress: called with (cells done, cells in all).
        should_stop: polled between batches; once true, no further cell is computed.

    Raises:
        EngineError: for an empty prompt, a cell outside the grid, or directions of another model.
    """
    grid = Grid.of(model, directions, prompts, arms, cells, batch_rows, should_stop)
    known = ability(model) if grid.cells else None
    found = _plainly(grid, recorded) if known is None else _sharing(grid, known, recorded)
    done = 0
    for chunk in found:
        done += len(chunk.prompts)
        progress(done, len(grid.cells))
        yield chunk


def _sharing(grid: Grid, known: Ability, recorded: Sequence[int]) -> Iterator[CellLogits]:
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
        shared = Shared(grid.model, known, grid.directions, some, [*groups, *recorded], batch_rows=grid.batch_rows)
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
                    last = _Last([length - 1 - shared.start for length, *_ in batch])
                    with recording([grid.model.blocks[b] for b in recorded], last) as seen:
                        logits, _ = shared.read(block, steering, indices, records, beginning, numbers)
                    # what bypassed blocks put out means nothing
                    hidden = [
                        seen[k] if seen and b >= block else torch.stack([records[i].hidden[b][-1] for i in indices])
                        for k, b in enumerate(recorded)
                    ]
                    yield _cells([(p, a) for _, p, a in batch], logits, hidden)


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


def _plainly(grid: Grid, recorded: Sequence[int]) -> Iterator[CellLogits]:
    model = grid.model
    size = grid.batch_rows if model.batched else 1
    for members in batches([len(grid.prompts[p]) for p, _ in grid.cells], model.recurrent, size):
        if grid.should_stop():
            return
        chosen = [grid.cells[i] for i in members]
        rows = [grid.prompts[p] for p, _ in chosen]
        decoding = Decoding(model.network, rows, model.pad_id, model.device)
        plan = Plan(grid.directions, [grid.arms[a] for _, a in chosen], [len(row) for row in rows], read=False)
        with plan.applied(model.blocks, decoding.positions), recording([model.blocks[b] for b in recorded]) as seen:
            logits = decoding.prefill().float().cpu()
        yield _cells(chosen, logits, seen)


class _Last:
    """Picks each row's last real column out of a batch ``(B, S, d)`` padded on the right, or the only one."""

    def __init__(self, columns: Sequence[int]) -> None:
        self._columns = torch.tensor(list(columns))

    def __call__(self, hidden: Tensor) -> Tensor:
        column = self._columns.clamp(max=hidden.shape[1] - 1).to(hidden.device)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), column]


def _cells(cells: Sequence[tuple[int, int]], logits: Tensor, hidden: Sequence[Tensor]) -> CellLogits:
    kept = torch.stack([h.float().cpu() for h in hidden]) if hidden else torch.empty(0, len(cells), 0)
    return CellLogits(tuple(p for p, _ in cells), tuple(a for _, a in cells), logits, kept)
