"""Running a batch of rows through a model: padding, absolute positions, the cache of any family."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ace_core.blocks import hidden_of, with_hidden

__all__ = ["Decoding", "batches_decode_alike", "equal_length_groups", "prompts_can_be_shared"]

# transformers names the cache differently by family and version: the first three are attention or state-space
# caches, `state` is RWKV's list of recurrent tensors.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")


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


class Decoding:
    """State of one batch of rows: left padding, attention mask, absolute positions, cache.

    Args:
        network: the causal language model.
        rows: token ids per row, each non-empty.
        pad_id: token used for padding; its value never matters because padding is masked.
        device: where token ids go.
        share: read the prompt once if all rows have the same. Up to the first edited block every row is the same, and
            there the edit itself gives each row its own stream.
    """

    def __init__(
        self,
        network: nn.Module,
        rows: Sequence[Sequence[int]],
        pad_id: int,
        device: torch.device,
        share: bool = False,
    ):
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
        self._network = network
        self._accepted = _accepted(type(network))
        self._ids = torch.tensor(ids, device=device)
        self._pads = torch.tensor([longest - n for n in lengths], device=device).unsqueeze(1)
        self._padded = min(lengths) != longest
        self._shared = share and len(rows) > 1 and all(tuple(row) == tuple(rows[0]) for row in rows)
        self._cache: Any = None
        self._length = 0
        self.positions: Tensor = self._next_positions(longest)
        """Absolute positions of the tokens of the coming forward pass, ``(B, S)``, negative for padding."""

    def prefill(self) -> Tensor:
        """Read the prompts; logits at the last position, ``(B, vocabulary)``."""
        if not self._shared:
            return self._forward(self._ids)
        count = self._ids.shape[0]
        logits = self._forward(self._ids[:1])
        for layer in self._cache.layers:
            if layer.keys.shape[0] < count:
                layer.batch_repeat_interleave(count)
        return logits.expand(count, -1)

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
        if self._cache is not None:
            inputs[next(name for name in _CACHE_NAMES if name in self._accepted)] = self._cache
        output = self._network(**inputs)
        self._cache = next(c for c in (getattr(output, name, None) for name in _CACHE_NAMES) if c is not None)
        self._length = total
        return output.logits[:, -1]


def _accepted(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)
