"""Reading prompts under many arms without computing anything twice.

Nothing below the first edited block depends on the arm, so a prompt's residual stream is recorded there once, without
steering, and put in for every arm while the blocks below do nothing. And attention is causal, so what the blocks above
keep of the beginning that all prompts share (the template up to the user's words) depends on the arm alone and is
computed once an arm. Both are exact.

The causal mask takes its length from the first block's cache. Below the edited block that cache is therefore always
given its full length, though nothing reads it: left empty, results would be wrong in silence.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ace_core.activations import batches, recording
from ace_core.arms import Arm
from ace_core.blocks import with_hidden
from ace_core.decoding import CACHE_NAMES, Decoding, common_length
from ace_core.directions import RefusalDirections
from ace_core.interventions import Plan
from ace_core.methods import ACE, Addition
from ace_core.models import ChatModel
from ace_core.sweeps.prefixes import cache_of, chosen_rows, is_plain, stacked_rows

__all__ = ["Ability", "Recorded", "Shared", "ability", "bypassed", "first_edit"]

_RECORD_BYTES = 1 << 29
"""How much the records of one window of prompts may take."""


@dataclass(frozen=True)
class Ability:
    """What is known of a model for which the savings were measured to be exact.

    Args:
        outputs: one output a block, for its form.
        kept: numbers that attention keeps of a token, over all blocks.
    """

    outputs: tuple[Any, ...]
    kept: int


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


@contextmanager
def bypassed(blocks: Sequence[nn.Module], outputs: Sequence[Any], last: int, hidden: Tensor) -> Iterator[None]:
    """Blocks up to ``last`` do nothing inside the ``with`` block, and ``last`` puts out ``hidden`` ``(B, S, d)``.

    Hooks on the blocks still run, so an edit of ``last`` finds what it would have found.

    Args:
        blocks: of the model.
        outputs: one output a block, for its form.
        last: last block that does nothing.
        hidden: its recorded output.
    """

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            entering = args[0] if args else kwargs["hidden_states"]
            return with_hidden(outputs[index], hidden if index == last else entering)

        return forward

    own_forwards = [vars(block).get("forward") for block in blocks[: last + 1]]  # accelerate sets its own
    try:
        for index, block in enumerate(blocks[: last + 1]):
            block.forward = stand_in(index)
        yield
    finally:
        for block, own in zip(blocks, own_forwards, strict=False):
            if own is None:
                vars(block).pop("forward", None)
            else:
                block.forward = own


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
            logits, layers = _forward(self._model, ids, start, layers, last)
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
            return _forward(self._model, ids, start, layers, last)

    def _positions(self, ids: Tensor) -> Tensor:
        return torch.arange(self.start, self.start + ids.shape[1], device=ids.device).expand(ids.shape)

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, rows))
        # with any token but the padding token, about which transformers would warn
        padded = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, device=self._model.device)


def _forward(
    model: ChatModel, ids: Tensor, start: int, layers: list[Any] | None, last: Tensor | None
) -> tuple[Tensor, list[Any]]:
    """Read tokens ``(B, S)`` at positions from ``start`` on, padded on the right, which no other position can see.

    Returns:
        Float32 logits ``(B, vocabulary)`` on the CPU at column ``last`` of each row (None: the last column), and the
        cache's layers.
    """
    network = model.network
    accepted = inspect.signature(type(network).forward).parameters
    columns = torch.arange(start, start + ids.shape[1], device=ids.device)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
    if "position_ids" in accepted:
        inputs["position_ids"] = columns.unsqueeze(0)
    if "cache_position" in accepted:
        inputs["cache_position"] = columns
    if layers is not None:
        inputs[next(name for name in CACHE_NAMES if name in accepted)] = cache_of(layers)

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        hidden = args[0]
        column = -1 if last is None else last.to(hidden.device)
        row = torch.arange(hidden.shape[0], device=hidden.device)
        return (hidden[row, column].unsqueeze(1), *args[1:])

    handle = network.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        output = network(**inputs)
    finally:
        handle.remove()
    cache = next(c for c in (getattr(output, name, None) for name in CACHE_NAMES) if c is not None)
    return output.logits[:, -1].float().cpu(), cache.layers


_known: weakref.WeakKeyDictionary[nn.Module, Ability | None] = weakref.WeakKeyDictionary()


def ability(model: ChatModel) -> Ability | None:
    """What the savings need to know of a model; None where they are not exact, so that cells must be read plainly.

    Masks, position encodings and caches of families differ, so this is measured, once a network, on a few tokens: first
    logits and a decoded token of two prompts under two strong edits, against the same read plainly.
    """
    if model.network not in _known:
        _known[model.network] = _measured(model)
    return _known[model.network]


@torch.inference_mode()
def _measured(model: ChatModel) -> Ability | None:
    if model.recurrent or not model.batched or model.network.get_output_embeddings() is None:
        return None
    blocks, prompts = model.blocks, [(1, 2, 3, 1, 3, 2), (1, 2, 3, 3)]
    forms: list[Any] = []
    handles = [block.register_forward_hook(lambda _m, _a, output: forms.append(output)) for block in blocks]
    try:
        with recording(blocks) as seen:
            _, layers = _forward(model, torch.tensor([prompts[0]], device=model.device), 0, None, None)
        if len(layers) != len(blocks) or not is_plain(layers):
            return None
        outputs = tuple(
            (None, *(None if isinstance(x, Tensor) else x for x in form[1:])) if isinstance(form, tuple) else None
            for form in forms
        )
        kept = sum(t.shape[1] * t.shape[3] for layer in layers for t in (layer.keys, layer.values))
        known = Ability(outputs, kept)
        mean = torch.stack([hidden[0].float().cpu() for hidden in seen])  # an edit as strong as the stream itself
        none = torch.empty(len(blocks), 0)
        directions = RefusalDirections(mean.roll(1, -1), mean, none, none, 0)
        return known if _exact(model, known, directions, prompts) else None
    except (RuntimeError, IndexError, ValueError, AttributeError, TypeError, KeyError, StopIteration):
        return None
    finally:
        for handle in handles:
            handle.remove()


def _exact(model: ChatModel, known: Ability, directions: RefusalDirections, prompts: Sequence[tuple[int, ...]]) -> bool:
    middle = (len(model.blocks) - 1) // 2
    arms, following = [Arm(Addition(1.0), middle), Arm(ACE(0.5), middle)], torch.tensor([2, 1], device=model.device)
    plan = Plan(directions, arms, [len(prompt) for prompt in prompts], read=False)
    plain = Decoding(model.network, prompts, model.pad_id, model.device)
    with plan.applied(model.blocks, plain.positions):
        expected = plain.prefill().float().cpu()
    # first logits, from rows padded on the right
    shared = Shared(model, known, directions, prompts, [middle])
    records, beginning = shared.record([0, 1]), shared.beginning(middle, arms)
    first, _ = shared.read(middle, arms, [0, 1], records, beginning, [0, 1])
    # generation, from rows that were read on their own and joined
    shared = Shared(model, known, directions, prompts, [middle], cached=True)
    records, beginning = shared.record([0, 1]), shared.beginning(middle, arms)
    parts = []
    for row, prompt in enumerate(prompts):
        _, layers = shared.read(middle, arms[row : row + 1], [row], records, beginning, [row])
        parts.append(Decoding(model.network, [prompt], model.pad_id, model.device))
        parts[-1].adopt(cache_of(layers))
    joined = parts[0]
    joined.join(parts[1:])
    steps = []
    for state in (plain, joined):
        state.advance(following)
        with plan.applied(model.blocks, state.positions):
            steps.append(state.step().float().cpu())
    want, have = torch.stack([expected, steps[0]]), torch.stack([first, steps[1]])
    tolerance = 0.02 if model.network.dtype == torch.float32 else 0.1
    return want.shape == have.shape and float((have - want).abs().max()) <= tolerance * float(want.std())
