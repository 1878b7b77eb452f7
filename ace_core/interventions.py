"""Applying arms to a running model: per-block edit rows, and hooks that edit and read the residual stream."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ace_core import geometry
from ace_core.arms import Arm, TokenScope, edited_positions
from ace_core.blocks import hidden_of, with_hidden
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.methods import Baseline

__all__ = ["Plan", "Readings"]


@dataclass(frozen=True)
class Readings:
    """Refusal coordinates of one forward pass.

    ``before`` and ``after`` are float32 arrays ``(rows, blocks, positions)``; padding holds garbage.
    """

    before: np.ndarray
    after: np.ndarray


@dataclass
class _BlockRows:
    """One block's share of the plan; row k belongs to arm k."""

    unit: Tensor  # (d,) if all rows share an axis, else (B, d)
    remove: Tensor  # (B,)
    add: Tensor  # (B,)
    active: Tensor  # (B, 1) bool
    edits: bool
    every_row: bool

    def to(self, device: torch.device) -> _BlockRows:
        if self.unit.device == device:
            return self
        moved = (t.to(device) for t in (self.unit, self.remove, self.add, self.active))
        return _BlockRows(*moved, edits=self.edits, every_row=self.every_row)

    def take(self, rows: list[int]) -> _BlockRows:
        unit = self.unit if self.unit.dim() == 1 else self.unit[rows]
        return _BlockRows.of(unit, self.remove[rows], self.add[rows], self.active[rows])

    @classmethod
    def joined(cls, parts: Sequence[_BlockRows]) -> _BlockRows:
        home, first = parts[0].unit.device, parts[0].unit
        parts = [part.to(home) for part in parts]
        if all(part.unit.dim() == 1 and torch.equal(part.unit, first) for part in parts):
            unit = first
        else:
            unit = torch.cat([part.unit.expand(len(part.remove), -1) for part in parts])
        return cls.of(unit, *(torch.cat(t) for t in zip(*((p.remove, p.add, p.active) for p in parts), strict=True)))

    @classmethod
    def of(cls, unit: Tensor, remove: Tensor, add: Tensor, active: Tensor) -> _BlockRows:
        return cls(unit, remove, add, active, edits=bool(active.any()), every_row=bool(active.all()))


class Plan:
    """What a batch of arms does at every block; row k of the batch is arm k.

    Args:
        directions: fitted on the model that will run.
        arms: one a row.
        prompt_lengths: number of prompt tokens of each row, for token scopes.
        read: also read coordinates at blocks that no arm edits.
    """

    def __init__(
        self,
        directions: RefusalDirections,
        arms: Sequence[Arm],
        prompt_lengths: Sequence[int],
        read: bool = True,
    ) -> None:
        if len(arms) != len(prompt_lengths) or not arms:
            raise EngineError("A comparison needs at least one arm, and one prompt length an arm.")
        count = directions.blocks
        self._arms = tuple(arms)
        self._read = read
        self._lengths = torch.tensor(list(prompt_lengths)).unsqueeze(1)
        self._low = torch.empty(len(arms), count, 1)
        self._high = torch.empty_like(self._low)
        edited = [set(arm.blocks(count)) for arm in arms]
        if directions.site == "input" and any(not isinstance(arm.method, Baseline) for arm in arms):
            raise EngineError(
                "These vectors were read at block inputs, but edits happen at block outputs: fit them with site output."
            )
        self._blocks = [self._rows(directions, block, edited) for block in range(count)]
        self._scopes: set[TokenScope] = {arm.tokens for arm in arms}

    def _rows(self, directions: RefusalDirections, block: int, edited: list[set[int]]) -> _BlockRows:
        sources = {source: directions.axis(block, source) for source in {arm.axis(block) for arm in self._arms}}
        axes = [sources[arm.axis(block)] for arm in self._arms]
        numbers = [
            arm.method.affine(axis.low, axis.high, axis.third) if block in blocks else (0.0, 0.0)
            for arm, axis, blocks in zip(self._arms, axes, edited, strict=True)
        ]
        for row, axis in enumerate(axes):
            self._low[row, block], self._high[row, block] = axis.low, axis.high
        active = [pair != (0.0, 0.0) for pair in numbers]
        shared = len(sources) == 1
        return _BlockRows.of(
            unit=axes[0].unit if shared else torch.stack([axis.unit for axis in axes]),
            remove=torch.tensor([pair[0] for pair in numbers]),
            add=torch.tensor([pair[1] for pair in numbers]),
            active=torch.tensor(active).unsqueeze(1),
        )

    def take(self, rows: Sequence[int]) -> Plan:
        """The plan of some rows, in that order."""
        out, chosen = copy.copy(self), list(rows)
        out._arms = tuple(self._arms[row] for row in chosen)
        out._lengths, out._low, out._high = self._lengths[chosen], self._low[chosen], self._high[chosen]
        out._blocks = [block.take(chosen) for block in self._blocks]
        out._scopes = {arm.tokens for arm in out._arms}
        return out

    def join(self, others: Sequence[Plan]) -> Plan:
        """One plan for the rows of this plan and then those of the others, whatever directions each was made with.

        Raises:
            EngineError: if they were made for models of different depth.
        """
        plans = [self, *others]
        if len({len(plan._blocks) for plan in plans}) > 1:
            raise EngineError("These rows were planned for different models: run them apart.")
        out = copy.copy(self)
        out._arms = tuple(arm for plan in plans for arm in plan._arms)
        out._lengths = torch.cat([plan._lengths for plan in plans])
        out._low = torch.cat([plan._low for plan in plans])
        out._high = torch.cat([plan._high for plan in plans])
        out._blocks = [_BlockRows.joined(parts) for parts in zip(*(plan._blocks for plan in plans), strict=True)]
        out._scopes = {arm.tokens for arm in out._arms}
        out._read = any(plan._read for plan in plans)
        return out

    @contextmanager
    def applied(self, blocks: Sequence[nn.Module], positions: Tensor) -> Iterator[_Session]:
        """Hooks for one forward pass over tokens at absolute ``positions`` ``(B, S)``.

        The hooks live only inside the ``with`` block, so an abandoned stream leaves nothing on the model.
        Edits come before any other forward hook, so that recorders see the edited stream.
        """
        if len(blocks) != len(self._blocks):
            raise EngineError(
                f"The directions have {len(self._blocks)} blocks and the model {len(blocks)}: "
                "they belong to another model, so fit new ones for this model."
            )
        session = _Session(self, positions)
        handles = [
            block.register_forward_hook(session.hook(index), prepend=True)
            for index, block in enumerate(blocks)
            if self._read or self._blocks[index].edits
        ]
        try:
            yield session
        finally:
            for handle in handles:
                handle.remove()

    def _where(self, positions: Tensor) -> Tensor | None:
        """Positions each row edits, ``(B, S)`` bool; None when that is every one."""
        if self._scopes == {"all"} and bool((positions[:, 0] >= 0).all()):
            return None
        lengths = self._lengths.to(positions.device)
        masks = {scope: edited_positions(scope, positions, lengths) for scope in self._scopes}
        return torch.stack([masks[arm.tokens][row] for row, arm in enumerate(self._arms)])


class _Session:
    """Hooks and readings of one forward pass."""

    def __init__(self, plan: Plan, positions: Tensor) -> None:
        self._plan = plan
        self._where = plan._where(positions)
        self._before: list[Tensor] = []
        self._edited: dict[int, Tensor] = {}

    def hook(self, index: int) -> Any:
        plan = self._plan

        def edit(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = hidden_of(output)
            rows = plan._blocks[index]
            if rows.unit.device != hidden.device:
                rows = plan._blocks[index] = rows.to(hidden.device)
            before = geometry.component(hidden, rows.unit)
            self._before.append(before)
            if not rows.edits:
                return None
            where = self._where if self._where is None else self._where.to(hidden.device)
            if not rows.every_row:
                active = rows.active
                where = active.expand(-1, before.shape[1]) if where is None else where & active
            # one row read for all arms becomes a row an arm here, by broadcasting
            edited = geometry.apply_edit(hidden, rows.unit, rows.remove, rows.add, before, where)
            self._edited[index] = geometry.component(edited, rows.unit)
            return with_hidden(output, edited)

        return edit

    def readings(self) -> Readings:
        """Coordinates of the finished forward pass; empty arrays where nothing was read."""
        plan, rows = self._plan, len(self._plan._arms)
        if len(self._before) != len(plan._blocks):
            nothing = np.empty((rows, 0, 0), np.float32)
            return Readings(nothing, nothing)
        home = self._before[0].device
        stacked = torch.stack([p.to(home).expand(rows, -1) for p in self._before], dim=1).cpu()
        before = geometry.coordinate(stacked, plan._low, plan._high)
        after = before.clone() if self._edited else before
        for index, projection in self._edited.items():
            after[:, index] = geometry.coordinate(projection.cpu(), plan._low[:, index], plan._high[:, index])
        return Readings(before.numpy(), after.numpy())
