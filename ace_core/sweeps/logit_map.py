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
from ace_core.errors import EngineError
from ace_core.interventions import Plan
from ace_core.models import ChatModel
from ace_core.sweeps.prefixes import alike
from ace_core.sweeps.reuse import Ability, Shared, ability, first_edit

__all__ = ["CellLogits", "first_logits", "grid"]

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


def grid(
    prompts: Sequence[Sequence[int]], arms: Sequence[Arm], cells: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """Cells (prompt, arm) to compute: those given, without repeats, or every one.

    Raises:
        EngineError: for an empty prompt or a cell outside the grid.
    """
    if any(not ids for ids in prompts):
        raise EngineError("A prompt of the sweep is empty: leave it out.")
    if cells is None:
        return [(p, a) for p in range(len(prompts)) for a in range(len(arms))]
    if any(not (0 <= p < len(prompts) and 0 <= a < len(arms)) for p, a in cells):
        raise EngineError("A cell of the sweep lies outside its prompts and arms.")
    return list(dict.fromkeys(cells))


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
    model.accepts(directions)
    wanted = grid(prompts, arms, cells)
    known = ability(model) if wanted else None
    if known is None:
        found = _plainly(model, directions, prompts, arms, wanted, batch_rows, should_stop)
    else:
        found = _sharing(model, known, directions, prompts, arms, wanted, batch_rows, should_stop)
    done = 0
    for chunk in found:
        done += len(chunk.prompts)
        progress(done, len(wanted))
        yield chunk


def _sharing(
    model: ChatModel,
    known: Ability,
    directions: RefusalDirections,
    prompts: Sequence[tuple[int, ...]],
    arms: Sequence[Arm],
    cells: Sequence[tuple[int, int]],
    batch_rows: int,
    should_stop: Callable[[], bool],
) -> Iterator[CellLogits]:
    starts = [first_edit(directions, arm) for arm in arms]
    used = sorted({prompt for prompt, _ in cells})
    enough = _ENOUGH_ROWS if model.device.type == "cpu" else batch_rows
    for members in alike([prompts[p] for p in used]):
        place = {used[k]: i for i, k in enumerate(members)}
        groups: dict[int, list[tuple[int, int]]] = {}
        for prompt, arm in sorted(cells, key=lambda cell: cell[1]):
            if prompt in place:
                groups.setdefault(starts[arm], []).append((prompt, arm))
        some = [prompts[p] for p in place]
        shared = Shared(model, known, directions, some, list(groups), batch_rows=batch_rows)
        for window in shared.windows(range(len(some))):
            if should_stop():
                return
            records, inside = shared.record(window), set(window)
            for block, group in groups.items():
                here = sorted((len(prompts[p]), p, a) for p, a in group if place[p] in inside)
                chosen = sorted({arm for _, _, arm in here})
                beginning = None
                for batch in _batched(here, batch_rows, enough):
                    if should_stop():
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


def _plainly(
    model: ChatModel,
    directions: RefusalDirections,
    prompts: Sequence[tuple[int, ...]],
    arms: Sequence[Arm],
    cells: Sequence[tuple[int, int]],
    batch_rows: int,
    should_stop: Callable[[], bool],
) -> Iterator[CellLogits]:
    size = batch_rows if model.batched else 1
    for members in batches([len(prompts[p]) for p, _ in cells], model.recurrent, size):
        if should_stop():
            return
        chosen = [cells[i] for i in members]
        rows = [prompts[p] for p, _ in chosen]
        decoding = Decoding(model.network, rows, model.pad_id, model.device)
        plan = Plan(directions, [arms[a] for _, a in chosen], [len(row) for row in rows], read=False)
        with plan.applied(model.blocks, decoding.positions):
            logits = decoding.prefill().float().cpu()
        yield CellLogits(tuple(p for p, _ in chosen), tuple(a for _, a in chosen), logits)
