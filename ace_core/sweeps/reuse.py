"""Reading prompts under many arms without computing anything twice.

Nothing below the first edited block depends on the arm, so a prompt's residual stream is recorded there once, without
steering, and put in for every arm while the blocks below do nothing. And attention is causal, so what the blocks above
keep of the beginning that all prompts share (the template up to the user's words) depends on the arm alone and is
computed once an arm. Both are exact. In the last block only the scored position goes on behind attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ace_core.activations import batches, recording
from ace_core.arms import Arm
from ace_core.decoding import common_length
from ace_core.directions import RefusalDirections
from ace_core.interventions import Plan
from ace_core.models import ChatModel
from ace_core.sweeps.passes import Ability, bypassed, forward
from ace_core.sweeps.prefixes import chosen_rows, stacked_rows

__all__ = ["Recorded", "Shared", "first_edit"]

_RECORD_BYTES = 1 << 29
"""How much the records of one window of prompts may take."""


@dataclass(frozen=True)
class Recorded:
    """What reading one prompt without steering leaves for its arms.

    Args:
        logits: ``(vocabulary,)`` float32 on the CPU, at the last position.
        hidden: outputs ``(positions, d)`` of the blocks asked for, behind the shared beginning.
        layers: cache layers of the whole prompt, one row; empty unless asked for.
    """

    logits: Tensor
    hidden: dict[int, Tensor]
    layers: tuple[Any, ...]


def first_edit(directions: RefusalDirections, arm: Arm) -> int:
    """First block at which an arm changes what a prompt's last position gives; the number of blocks if none does."""
    if arm.tokens != "generated":
        for block in arm.blocks(directions.blocks):
            axis = directions.axis(block, arm.axis(block))
            if arm.method.affine(axis.low, axis.high, axis.third) != (0.0, 0.0):
                return block
    return directions.blocks


class Shared:
    """What the arms of a set of prompts have in common.

    Args:
        model: a loaded model.
        known: its ability.
        directions: fitted on it.
        prompts: token ids, each non-empty.
        blocks: blocks at which some arm starts to edit.
        cached: also keep keys and values, to generate from.
        batch_rows: rows a forward pass.
    """

    def __init__(
        self,
        model: ChatModel,
        known: Ability,
        directions: RefusalDirections,
        prompts: Sequence[tuple[int, ...]],
        blocks: Sequence[int],
        *,
        cached: bool = False,
        batch_rows: int = 64,
    ) -> None:
        self._model, self._known, self._directions = model, known, directions
        self._prompts, self._cached, self._batch_rows = prompts, cached, batch_rows
        self._blocks = sorted(set(blocks) - {len(model.blocks)})
        self.start = common_length(prompts)
        """Length of the shared beginning."""
        self._base: list[Any] | None = None
        self._beginning: dict[int, Tensor] = {}
        if self.start:
            _, self._base, self._beginning = self._record(self._ids([prompts[0][: self.start]]), 0, None)

    def windows(self, indices: Sequence[int]) -> list[list[int]]:
        """Prompt indices in order of length, in lists small enough to be recorded together."""
        numbers = len(self._blocks) * self._model.width + self._known.kept * self._cached
        out: list[list[int]] = []
        used = _RECORD_BYTES
        for index in sorted(indices, key=lambda i: len(self._prompts[i])):
            need = self._model.network.dtype.itemsize * len(self._prompts[index]) * numbers
            if not out or used + need > _RECORD_BYTES:
                out.append([])
                used = 0
            out[-1].append(index)
            used += need
        return out

    def batches(self, indices: Sequence[int]) -> list[list[int]]:
        """Positions in a list of prompt indices, in batches of similar length; of equal length where they are cached,
        since padding on the right would be."""
        return batches([len(self._prompts[i]) for i in indices], self._cached, self._batch_rows)

    def record(self, indices: Sequence[int]) -> dict[int, Recorded]:
        """Read prompts without steering."""
        out = {}
        for members in self.batches(indices):
            some = [indices[i] for i in members]
            rows = [self._prompts[i][self.start :] for i in some]
            given = self._base and [chosen_rows(layer, [0] * len(rows)) for layer in self._base]
            last = torch.tensor([len(row) - 1 for row in rows])
            logits, layers, hidden = self._record(self._ids(rows), self.start, given, last)
            for row, index in enumerate(some):
                kept = {block: tensor[row, : len(rows[row])] for block, tensor in hidden.items()}
                own = tuple(chosen_rows(layer, [row]) for layer in layers) if self._cached else ()
                out[index] = Recorded(logits[row], kept, own)
        return out

    def beginning(self, block: int, arms: Sequence[Arm]) -> list[Any] | None:
        """Cache layers of the shared beginning; from behind ``block`` on their row k is that of arm k."""
        if self._base is None or block >= len(self._model.blocks) - 1:
            return None
        parts = []
        for at in range(0, len(arms), self._batch_rows):
            some = arms[at : at + self._batch_rows]
            ids = self._ids([self._prompts[0][: self.start]] * len(some))
            hidden = self._beginning[block].expand(len(some), -1, -1)
            positions = torch.arange(self.start, device=ids.device).expand(ids.shape)
            # of a prompt's length the scopes only ask whether a position lies before its last one
            lengths = [self.start + 1] * len(some)
            parts.append(self._steered(block, some, lengths, ids, positions, hidden, None, None)[1])
        upper = [stacked_rows([part[b] for part in parts]) for b in range(block + 1, len(self._model.blocks))]
        return self._base[: block + 1] + upper

    def read(
        self,
        block: int,
        arms: Sequence[Arm],
        indices: Sequence[int],
        records: dict[int, Recorded],
        beginning: list[Any] | None,
        rows: Sequence[int],
    ) -> tuple[Tensor, list[Any]]:
        """Read a batch of prompts, each under an arm that starts to edit at ``block``.

        Args:
            block: first edited block; the number of blocks where no arm edits a prompt.
            arms: arm of every row.
            indices: prompt of every row, of equal length if they are cached.
            records: of those prompts.
            beginning: what :meth:`beginning` returned.
            rows: row of every row's arm in ``beginning``.

        Returns:
            Float32 logits ``(rows, vocabulary)`` at the last position, on the CPU, and cache layers of the whole
            prompts, none unless asked for.
        """
        count = len(self._model.blocks)
        prompts = [self._prompts[i] for i in indices]
        lengths = [len(prompt) for prompt in prompts]
        layers: list[Any] = []
        if block == count:
            logits = torch.stack([records[i].logits for i in indices])
        elif block == count - 1:  # no block is left in which other positions matter
            hidden = torch.stack([records[i].hidden[block][-1:] for i in indices])
            ids = self._ids([prompt[-1:] for prompt in prompts])
            positions = torch.tensor([[n - 1] for n in lengths], device=ids.device)
            logits, _ = self._steered(block, arms, lengths, ids, positions, hidden, None, None)
        else:
            hidden = pad_sequence([records[i].hidden[block] for i in indices], batch_first=True)
            ids = self._ids([prompt[self.start :] for prompt in prompts])
            given = beginning and beginning[: block + 1] + [chosen_rows(x, rows) for x in beginning[block + 1 :]]
            last = torch.tensor([n - 1 - self.start for n in lengths])
            logits, layers = self._steered(block, arms, lengths, ids, self._positions(ids), hidden, given, last)
        if not self._cached:
            return logits, []
        below = [stacked_rows([records[i].layers[b] for i in indices]) for b in range(min(block + 1, count))]
        return logits, below + layers[block + 1 :]

    def _record(
        self, ids: Tensor, start: int, layers: list[Any] | None, last: Tensor | None = None
    ) -> tuple[Tensor, list[Any], dict[int, Tensor]]:
        with recording([self._model.blocks[b] for b in self._blocks], slice(None)) as seen:
            logits, layers = forward(self._model, ids, start, layers, last)
        return logits, layers, dict(zip(self._blocks, seen, strict=True))

    def _steered(
        self,
        block: int,
        arms: Sequence[Arm],
        lengths: Sequence[int],
        ids: Tensor,
        positions: Tensor,
        hidden: Tensor,
        layers: list[Any] | None,
        last: Tensor | None,
    ) -> tuple[Tensor, list[Any]]:
        plan = Plan(self._directions, arms, lengths, read=False)
        blocks, start = self._model.blocks, 0 if layers is None else self.start
        with bypassed(blocks, self._known.outputs, block, hidden), plan.applied(blocks, positions):
            return forward(self._model, ids, start, layers, last, self._known.feed_forward)

    def _positions(self, ids: Tensor) -> Tensor:
        return torch.arange(self.start, self.start + ids.shape[1], device=ids.device).expand(ids.shape)

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, rows))
        # with any token but the padding token, about which transformers would warn
        padded = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, device=self._model.device)
