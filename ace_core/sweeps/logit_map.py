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
from ace_core.sweeps.reuse import Shared, ability, first_edit

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
    known = ability(model) if wanted else None
    if known is None:
        yield from _plainly(model, directions, prompts, arms, wanted, batch_rows, progress, should_stop)
        return
    starts = [first_edit(directions, arm) for arm in arms]
    groups: dict[int, list[tuple[int, int]]] = {}
    for prompt, arm in sorted(wanted, key=lambda cell: cell[1]):
        groups.setdefault(starts[arm], []).append((prompt, arm))
    used = sorted({prompt for prompt, _ in wanted})
    shared = Shared(model, known, directions, [prompts[p] for p in used], list(groups), batch_rows=batch_rows)
    place = {prompt: k for k, prompt in enumerate(used)}
    done = 0
    for window in shared.windows(range(len(used))):
        if should_stop():
            return
        records, inside = shared.record(window), {used[k] for k in window}
        for block, group in groups.items():
            members = sorted({arm for _, arm in group})
            here = sorted((len(prompts[p]), p, a) for p, a in group if p in inside)
            beginning = None
            for at in range(0, len(here), batch_rows):
                if should_stop():
                    return
                if at == 0:
                    beginning = shared.beginning(block, [arms[a] for a in members])
                some = here[at : at + batch_rows]
                logits, _ = shared.read(
                    block,
                    [arms[a] for _, _, a in some],
                    [place[p] for _, p, _ in some],
                    records,
                    beginning,
                    [members.index(a) for _, _, a in some],
                )
                done += len(some)
                progress(done, len(wanted))
                yield CellLogits(tuple(p for _, p, _ in some), tuple(a for _, _, a in some), logits)


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
