"""Answers of many prompts under many arms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ace_core.activations import Progress, batches
from ace_core.arms import Arm
from ace_core.directions import RefusalDirections
from ace_core.generation import MAX_ROWS, Row, stream_rows
from ace_core.models import ChatModel
from ace_core.sampling import Sampling
from ace_core.sweeps.logit_map import grid

__all__ = ["CellAnswer", "answers"]


@dataclass(frozen=True)
class CellAnswer:
    """The answer of one cell.

    Args:
        prompt, arm: indices into the sequences that were given.
        ids: token ids; they end with the stop token if the answer ended by itself.
        text: without the stop token or stop string.
        stop: ``end`` of the answer, a ``stop`` string, or ``length``.
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
    sampling: Sampling | Callable[[int, int], Sampling],
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
        EngineError: for an empty prompt, a cell outside the grid, directions of another model, or NaN.
    """
    model.accepts(directions)
    wanted = grid(prompts, arms, cells)
    yield from _plainly(model, directions, prompts, arms, sampling, wanted, batch_rows, progress, should_stop)


def _plainly(
    model: ChatModel,
    directions: RefusalDirections,
    prompts: Sequence[tuple[int, ...]],
    arms: Sequence[Arm],
    sampling: Sampling | Callable[[int, int], Sampling],
    cells: Sequence[tuple[int, int]],
    batch_rows: int,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> Iterator[CellAnswer]:
    done = 0
    draw = sampling if callable(sampling) else lambda prompt, arm: sampling
    size = min(batch_rows, MAX_ROWS) if model.batched else 1
    for members in batches([len(prompts[p]) for p, _ in cells], model.recurrent, size):
        chosen = [cells[i] for i in members]
        ids: list[list[int]] = [[] for _ in chosen]
        texts = [""] * len(chosen)
        rows = [Row(prompts[p], arms[a], draw(p, a)) for p, a in chosen]
        for step in stream_rows(model, directions, rows, read=False, cancelled=should_stop):
            for row, (prompt, arm) in enumerate(chosen):
                token, stop = step.tokens[row], step.stop[row]
                texts[row] += step.text[row]
                if token is not None:
                    ids[row].append(token)
                if stop is not None and stop != "cancelled":
                    done += 1
                    progress(done, len(cells))
                    yield CellAnswer(prompt, arm, tuple(ids[row]), texts[row], stop)
        if should_stop():
            return
