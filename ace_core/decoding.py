"""Running a batch of rows through a model: padding, absolute positions, the cache of any family."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ace_core.blocks import hidden_of, with_hidden
from ace_core.scheduling import caches

__all__ = [
    "CACHE_NAMES",
    "Decoding",
    "batches_decode_alike",
    "common_length",
    "equal_length_groups",
    "prompts_can_be_shared",
    "rows_can_join",
]

# transformers names the cache differently by family and version: the first three are attention or state-space
# caches, `state` is RWKV's list of recurrent tensors.
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")


def common_length(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning of all prompts, always short of a whole prompt."""
    shortest = min(map(len, prompts)) - 1
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # no two differ earlier than these
    return next((k for k in range(shortest) if first[k] != last[k]), shortest)


def equal_length_groups(lengths: Sequence[int], recurrent: bool) -> list[list[int]]:
    """Row indices that may share a batch: all of them, or only equal lengths where padding would enter a state."""
    if not recurrent:
        return [list(range(len(lengths)))]
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length, []).append(row)
    return list(groups.values())


@torch.inference_mode()
def batches_decode_alike(network: nn.Module, device: torch.device) -> bool:
    """Whether two rows decoded together give the logits each gives alone.

    Some recurrent models of transformers mix rows when they decode a batch (RWKV broadcasts one row's shifted state
    over the others), so this is measured rather than assumed.
    """
    rows, following = [[1, 2, 3], [3, 1, 2]], torch.tensor([2, 1], device=device)
    together = Decoding(network, rows, 0, device)
    together.prefill()
    together.advance(following)
    try:
        both = together.step().float()
    except (RuntimeError, IndexError):
        return False
    for row, ids in enumerate(rows):
        single = Decoding(network, [ids], 0, device)
        single.prefill()
        single.advance(following[row : row + 1])
        alone = single.step()[0].float()
        if both.shape[0] != len(rows) or float((both[row] - alone).abs().max()) > 0.02 * float(alone.std()):
            return False
    return True


@torch.inference_mode()
def prompts_can_be_shared(network: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> bool:
    """Whether one row that a hook turns into several halfway through the blocks gives what several rows give.

    Attention masks, position encodings and caches of most families broadcast over rows; those of some (ALiBi biases
    built for the batch, caches of other kinds) don't, so this is measured rather than assumed.
    """
    middle, following = len(blocks) // 2, torch.tensor([2, 1], device=device)

    def split(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        shift = torch.tensor([0.0, 1.0], device=hidden.device, dtype=hidden.dtype).view(2, 1, 1)
        return with_hidden(output, hidden + shift * hidden.roll(1, -1))

    results = []
    for share in (True, False):
        decoding = Decoding(network, [[1, 2, 3, 2]] * 2, 0, device, share)
        handle = blocks[middle].register_forward_hook(split)
        try:
            first = decoding.prefill()
            decoding.advance(following)
            results.append(torch.stack([first, decoding.step()]).float())
        except (RuntimeError, IndexError, ValueError, AttributeError, TypeError):
            return False
        finally:
            handle.remove()
    shared, separate = results
    return shared.shape == separate.shape and float((shared - separate).abs().max()) <= 0.02 * float(separate.std())


@torch.inference_mode()
def rows_can_join(network: nn.Module, device: torch.device) -> bool:
    """Whether rows that join a running batch, and one that goes on after the others left, decode as they would alone.

    Measured, prompts read in pieces, because it needs a cache that is keys and values by column, and a network that
    takes every row's position from its position ids or its mask.
    """
    prompts = [[1, 2, 3, 2, 1, 1, 3], [3, 1, 2], [2, 2, 3, 1]]
    following = torch.tensor([[2, 1, 3], [1, 1, 2], [3, 2, 2], [2, 3, 1]], device=device)

    def read(ids: Sequence[int]) -> Decoding:
        decoding = Decoding(network, [ids], 0, device, piece=2)
        while decoding.reading:
            decoding.prefill()
        return decoding

    def step(decoding: Decoding, tokens: Tensor) -> Tensor:
        decoding.advance(tokens)
        return decoding.step().float()

    try:
        first, second, third = map(read, prompts)
        joined = [step(first, following[0, :1])[0]]
        first.join([second, third])
        joined += list(step(first, following[1]))
        rest = first.take([2, 1])
        joined += list(step(rest, following[2, [2, 1]]))
        alone = []
        for row, ids in enumerate(prompts):
            decoding = Decoding(network, [ids], 0, device)
            decoding.prefill()
            steps = (0, 1) if row == 0 else (1, 2)
            alone.append([step(decoding, following[i, row : row + 1])[0] for i in steps])
    except (caches.CacheKindError, RuntimeError, IndexError, ValueError, AttributeError, TypeError):
        return False
    expected = torch.stack([alone[0][0], alone[0][1], alone[1][0], alone[2][0], alone[2][1], alone[1][1]])
    return float((torch.stack(joined) - expected).abs().max()) <= 0.02 * float(expected.std())


class Decoding:
    """State of one batch of rows: left padding, attention mask, absolute positions, cache.

    Args:
        network: the causal language model.
        rows: token ids per row, each non-empty.
        pad_id: token used for padding; its value never matters because padding is masked.
        device: where token ids go.
        share: read the prompt once if all rows have the same. Up to the first edited block every row is the same, and
            there the edit itself gives each row its own stream.
        piece: read prompts of one length in pieces of at most so many tokens; None reads them whole.
    """

    def __init__(
        self,
        network: nn.Module,
        rows: Sequence[Sequence[int]],
        pad_id: int,
        device: torch.device,
        share: bool = False,
        piece: int | None = None,
    ):
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
        self._network = network
        self._accepted = _accepted(type(network))
        self._pads = torch.tensor([longest - n for n in lengths], device=device).unsqueeze(1)
        self._padded = min(lengths) != longest
        self._shared = share and len(rows) > 1 and all(tuple(row) == tuple(rows[0]) for row in rows)
        self.cache: Any = None
        self._length = 0
        # a piece that is padding throughout would attend to nothing
        self._piece = longest if piece is None or self._padded else piece
        prompts = torch.tensor(ids, device=device)
        self._ids, self._unread = prompts[:, : self._piece], prompts[:, self._piece :]
        self.reading = True
        """Whether some of the prompts has yet to be read."""
        self.positions: Tensor = self._next_positions(self._ids.shape[1])
        """Absolute positions of the tokens of the coming forward pass, ``(B, S)``, negative for padding."""

    def __len__(self) -> int:
        return self._pads.shape[0]

    @property
    def columns(self) -> int:
        """Columns read so far, padding included."""
        return self._length

    def prefill(self) -> Tensor:
        """Read the prompts, or their next piece while :attr:`reading`; logits at the last position,
        ``(B, vocabulary)``."""
        logits = self._forward(self._ids[:1] if self._shared else self._ids)
        if self._unread.shape[1]:
            self._ids, self._unread = self._unread[:, : self._piece], self._unread[:, self._piece :]
            self.positions = self._next_positions(self._ids.shape[1])
            return logits.expand(len(self), -1)
        self.reading = False
        if self._shared:
            for layer in self.cache.layers:
                if layer.keys.shape[0] < len(self):
                    layer.batch_repeat_interleave(len(self))
        return logits.expand(len(self), -1)

    @torch.inference_mode()
    def join(self, others: Sequence[Decoding]) -> None:
        """Append the rows of other batches that have read their prompts; nothing changes if it fails.

        Raises:
            CacheKindError: if this family's cache is not keys and values by column.
        """
        all_of_them = [self, *others]
        lengths = [decoding._length for decoding in all_of_them]
        cache = caches.stacked([decoding.cache for decoding in all_of_them], lengths)
        self._pads = torch.cat([d._pads + (max(lengths) - d._length) for d in all_of_them])
        self.cache, self._length = cache, max(lengths)
        self._shared, self._padded = False, bool((self._pads > 0).any())

    @torch.inference_mode()
    def take(self, rows: Sequence[int]) -> Decoding:
        """Some rows as a batch of their own, without the columns that only the others needed; this one stays.

        Raises:
            CacheKindError: if this family's cache is not keys and values by column.
        """
        return self._part(rows, caches.taken)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> Decoding:
        """As :meth:`take`, but in this batch's memory where that is possible; this one must not be used again.

        Raises:
            CacheKindError: if this family's cache is not keys and values by column.
        """
        return self._part(rows, caches.kept)

    def _part(self, rows: Sequence[int], of: Callable[[Any, Sequence[int], int], Any]) -> Decoding:
        out = copy.copy(self)
        pads = self._pads[list(rows)]
        spare = int(pads.min())
        out.cache = of(self.cache, rows, self._length - spare)
        out._pads, out._length = pads - spare, self._length - spare
        out._shared, out._padded = False, bool((out._pads > 0).any())
        return out

    def saved(self) -> Decoding:
        """This batch as it is now, to go back to if the next forward pass fails; costs no memory."""
        out = copy.copy(self)
        out.cache = caches.snapshot(self.cache)
        return out

    def adopt(self, cache: Any) -> None:
        """Go on from a cache that already holds the prompts, padded on the left, in place of :meth:`prefill`."""
        self.cache, self._length = cache, self._ids.shape[1]

    def advance(self, tokens: Tensor) -> None:
        """Set the next token of every row, ``(B,)``, to be read by :meth:`step`."""
        self._ids = tokens.unsqueeze(1)
        self.positions = self._next_positions(1)

    def step(self) -> Tensor:
        """Read the tokens given to :meth:`advance`; logits ``(B, vocabulary)``."""
        return self._forward(self._ids)

    def _next_positions(self, count: int) -> Tensor:
        columns = torch.arange(self._length, self._length + count, device=self._ids.device)
        return columns.unsqueeze(0) - self._pads

    def _forward(self, ids: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        total = self._length + ids.shape[1]
        if self._padded:
            columns = torch.arange(total, device=ids.device).unsqueeze(0)
            inputs["attention_mask"] = (columns >= self._pads).long()
        if "position_ids" in self._accepted:
            inputs["position_ids"] = self.positions[: ids.shape[0]].clamp(min=0)
        if "cache_position" in self._accepted:
            inputs["cache_position"] = torch.arange(self._length, total, device=ids.device)
        if "logits_to_keep" in self._accepted:
            inputs["logits_to_keep"] = 1
        if self.cache is not None:
            inputs[next(name for name in CACHE_NAMES if name in self._accepted)] = self.cache
        output = self._network(**inputs)
        self.cache = next(c for c in (getattr(output, name, None) for name in CACHE_NAMES) if c is not None)
        self._length = total
        return output.logits[:, -1]


def _accepted(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)
