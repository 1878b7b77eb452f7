"""Which refusal coordinate ACE really reaches, and what of it is left at the end of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ace_core.activations import Progress, Stopped, recording
from ace_core.arms import Arm
from ace_core.choosing.block_effects import shared_batches
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.interventions import Plan
from ace_core.methods import ACE, Baseline, Method
from ace_core.models import ChatModel

__all__ = ["ACHIEVED_COEFFICIENTS", "Achieved", "achieved_table"]

ACHIEVED_COEFFICIENTS = (-0.5, 0.0, 0.5, 1.0, 1.5)


@dataclass(frozen=True)
class Achieved:
    """Refusal coordinates that ACE reached at the last token of one class's prompts.

    Args:
        block: edited block.
        coefficient: coefficient asked for, in class gaps.
        kind: ``harmful`` or ``harmless``.
        achieved: mean coordinate at the edited block.
        deviation: largest distance of any prompt's coordinate from the coefficient there.
        final: mean coordinate at the model's last block, along that block's own direction.
        final_unsteered: the same without steering.
    """

    block: int
    coefficient: float
    kind: str
    achieved: float
    deviation: float
    final: float
    final_unsteered: float


@torch.inference_mode()
def achieved_table(
    model: ChatModel,
    directions: RefusalDirections,
    harmful: Sequence[str],
    harmless: Sequence[str],
    blocks: Sequence[int] | None = None,
    coefficients: Sequence[float] = ACHIEVED_COEFFICIENTS,
    *,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Achieved, ...]:
    """Coordinates that ACE reaches on held-out prompts at the block it edits, and what is left at the last block.

    They are read by hooks of their own from the edited stream in float64, not from what the edit says of itself.

    Args:
        model: a loaded model.
        directions: fitted on it.
        harmful, harmless: held-out prompts; a class may be empty.
        blocks: edited blocks, one at a time, at all positions; None takes the recommended one.
        coefficients: in class gaps.
        batch_size: rows a forward pass.
        progress: called with (rows done, rows in all).
        cancelled: polled between batches.

    Raises:
        EngineError: for blocks outside the model, no prompts, or directions of another model.
        Stopped: when ``cancelled`` turns true.
    """
    model.accepts(directions)
    edited = [directions.recommended_layer] if blocks is None else list(dict.fromkeys(blocks))
    arms = [Arm(method, block) for block in edited for method in (Baseline(), *map(ACE, coefficients))]
    for arm in arms:
        arm.blocks(directions.blocks)
    classes = {"harmful": [model.encode(t) for t in harmful], "harmless": [model.encode(t) for t in harmless]}
    rows = [(kind, ids, arm) for kind, encoded in classes.items() for ids in encoded for arm in arms]
    if not rows:
        raise EngineError("There is nothing to measure: give at least one prompt and one block.")
    last = directions.blocks - 1
    found: dict[tuple[str, int, Method], list[tuple[float, float]]] = {}
    done = 0
    for indices in shared_batches(model, [ids for _, ids, _ in rows], batch_size):
        if cancelled():
            raise Stopped("Measuring the coordinates was stopped.")
        batch = [rows[i] for i in indices]
        ids = [ids for _, ids, _ in batch]
        decoding = Decoding(model.network, ids, model.pad_id, model.device, model.shares_prompts)
        plan = Plan(directions, [arm for *_, arm in batch], [len(row) for row in ids], read=False)
        needed = sorted({arm.layer for *_, arm in batch} | {last})
        with plan.applied(model.blocks, decoding.positions), recording([model.blocks[b] for b in needed]) as seen:
            decoding.prefill()
        hidden = {block: h.expand(len(batch), -1) for block, h in zip(needed, seen, strict=True)}
        for k, (kind, _, arm) in enumerate(batch):
            pair = tuple(_coordinate(directions, block, hidden[block][k]) for block in (arm.layer, last))
            found.setdefault((kind, arm.layer, arm.method), []).append((pair[0], pair[1]))
        done += len(batch)
        progress(done, len(rows))
    return tuple(
        _achieved(block, c, kind, found[kind, block, ACE(c)], found[kind, block, Baseline()])
        for block in edited
        for c in coefficients
        for kind in classes
        if classes[kind]
    )


def _coordinate(directions: RefusalDirections, block: int, hidden: torch.Tensor) -> float:
    """Refusal coordinate of one ``(d,)`` activation, in float64."""
    axis = directions.axis(block)
    component = float((hidden.double().cpu() * axis.unit.double()).sum())
    return (component - axis.low) / (axis.high - axis.low)


def _achieved(
    block: int, coefficient: float, kind: str, steered: list[tuple[float, float]], plain: list[tuple[float, float]]
) -> Achieved:
    here, final = np.array(steered).T
    return Achieved(
        block,
        coefficient,
        kind,
        float(here.mean()),
        float(np.abs(here - coefficient).max()),
        float(final.mean()),
        float(np.array(plain)[:, 1].mean()),
    )
