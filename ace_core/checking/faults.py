"""Deliberate mistakes in the edits, by which the self-check is itself checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ace_core.arms import Arm
from ace_core.directions import RefusalDirections
from ace_core.interventions import Plan
from ace_core.methods import Method

__all__ = ["FAULTS", "Fault"]


class _ShiftedPositions(Plan):
    """Takes every token for its left neighbour."""

    def applied(self, blocks: Sequence[Any], positions: Tensor) -> Any:
        return super().applied(blocks, positions - 1)


class _ChunkPositions(Plan):
    """Counts positions from the start of each forward pass instead of the start of the row."""

    def applied(self, blocks: Sequence[Any], positions: Tensor) -> Any:
        return super().applied(blocks, positions - positions[:, :1].clamp(min=0))


_PER_BLOCK = ("mean_harmless", "mean_harmful", "variant_unit", "mean_reference")


def _next_axis(directions: RefusalDirections) -> RefusalDirections:
    held = {name: getattr(directions, name) for name in _PER_BLOCK}
    return replace(directions, **{name: tensor.roll(1, 0) for name, tensor in held.items() if tensor is not None})


def _off_by_half(method: Method) -> Method:
    return method if method.coefficient is None else replace(method, alpha=method.coefficient + 0.5)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Fault:
    """A deliberate mistake, applied to the edits and not to what the checks expect of them."""

    arms: Callable[[list[Arm], int], list[Arm]] = lambda arms, blocks: arms
    plan: type[Plan] = Plan
    directions: Callable[[RefusalDirections], RefusalDirections] = lambda directions: directions


FAULTS: dict[str, Fault] = {
    "layer": Fault(arms=lambda arms, blocks: [replace(arm, layer=(arm.layer + 1) % blocks) for arm in arms]),
    "row": Fault(arms=lambda arms, blocks: arms[1:] + arms[:1]),
    "position": Fault(plan=_ShiftedPositions),
    "chunk": Fault(plan=_ChunkPositions),
    "coefficient": Fault(arms=lambda arms, blocks: [replace(a, method=_off_by_half(a.method)) for a in arms]),
    "axis": Fault(directions=_next_axis),
}
"""Edits shifted by one layer, one row or one position, positions relative to the chunk, coefficients off by one half,
and the direction of a neighbouring block."""
