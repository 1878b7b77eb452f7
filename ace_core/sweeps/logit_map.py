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

__all__ = ["CellLogits", "first_logits", "grid"]


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
    yield from _plainly(model, directions, prompts, arms, wanted, batch_rows, progress, should_stop)


def _plainly(
    model: ChatModel,
    directions: RefusalDirections,
    prompts: Sequence[tuple[int, ...]],
    arms: Sequence[Arm],
    cells: Sequence[tuple[int, int]],
    batch_rows: int,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> Iterator[CellLogits]:
    done = 0
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
        done += len(chosen)
        progress(done, len(cells))
        yield CellLogits(tuple(p for p, _ in chosen), tuple(a for _, a in chosen), logits)
