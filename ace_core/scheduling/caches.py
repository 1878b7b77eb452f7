"""Rows and columns of a key-value cache: stacking the rows of several caches, taking some rows out of one.

Columns are aligned on the right: the newest token of every row is in the last column, and shorter rows have padding on
their left. New memory costs more than what is copied into it, so the caches made here have room to spare, and most
rows that join or leave, and columns that come and go, do so in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["SPARE_ROWS", "CacheKindError", "cache_bytes", "kept", "snapshot", "stacked", "taken"]

SPARE_ROWS = 0.25
"""Room of a stacked cache for more rows, as a share of those it holds."""

_SPARE_ROWS = 8
_SPARE_LEFT, _SPARE_RIGHT = 32, 64
_LEAST_FILLED = 0.25


class CacheKindError(TypeError):
    """A cache whose rows can't be stacked: one that is not keys and values by column."""


def stacked(caches: Sequence[Any], lengths: Sequence[int]) -> Any:
    """One cache with the rows of all, padded on the left to the longest.

    All hold what they held, but the first one's room may be used up: it can be stacked once.

    Args:
        caches: key-value caches of the same network.
        lengths: columns each has seen, which a sliding window may since have dropped.

    Raises:
        CacheKindError: for other kinds of cache.
    """
    length = max(lengths)

    def merge(layers: Sequence[Any]) -> Any:
        first = layers[0]
        if first.is_sliding:
            held = _held(first, length)
            keys, values = (_stack([getattr(layer, part) for layer in layers], held) for part in ("keys", "values"))
            return _sliding(first, keys, values, length)
        rows = sum(len(layer.keys) for layer in layers)
        if isinstance(first, _RoomyLayer) and first.has_room(rows, length):
            return first.joined(layers[1:], length)
        return _RoomyLayer.empty(first, rows, length).joined(layers, length)

    return _rebuilt(caches, merge)


def taken(cache: Any, rows: Sequence[int], length: int) -> Any:
    """A cache of some rows and the last ``length`` columns; the one it is taken from stays as it is.

    Raises:
        CacheKindError: for other kinds of cache.
    """
    return _rebuilt([cache], lambda layers: _cut(layers[0], rows, length))


def kept(cache: Any, rows: Sequence[int], length: int) -> Any:
    """As :func:`taken`, but in the memory of ``cache`` if most of that is still needed; ``cache`` is then of no use.

    Args:
        cache: a key-value cache.
        rows: row k of the result; for that to be in place, k itself or a row that has no place in the result.
        length: columns.

    Raises:
        CacheKindError: for other kinds of cache.
    """
    in_place = all(row == k or row >= len(rows) for k, row in enumerate(rows))

    def shrink(layers: Sequence[Any]) -> Any:
        (layer,) = layers
        if in_place and isinstance(layer, _RoomyLayer) and layer.filled(len(rows)) >= _LEAST_FILLED:
            return layer.shrunk(rows, length)
        return _cut(layer, rows, length)

    return _rebuilt([cache], shrink)


def snapshot(cache: Any) -> Any:
    """The cache as it is now, sharing its tensors; what a failed forward pass left half done is undone by it.

    Raises:
        CacheKindError: for other kinds of cache.
    """
    _check(cache)
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def cache_bytes(cache: Any) -> int:
    """Bytes the keys and values take.

    Raises:
        CacheKindError: for other kinds of cache.
    """
    _check(cache)
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


class _RoomyLayer(DynamicLayer):
    """A layer with room on all sides of what it holds, so that a step writes one column where the library's layer
    copies all, and rows join and leave in place.

    What was seen is only overwritten by :meth:`shrunk`: a copy made before a step or a join holds what it held.
    Memory that holds nothing yet is never read, and padding is zero.

    Args:
        buffers: keys and values, ``(capacity, heads, columns, width)``.
        rows, start, length: the part of them that is held: the first rows, and columns from ``start``.
    """

    def __init__(self, buffers: tuple[Tensor, Tensor], rows: int, start: int, length: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = buffers[0].dtype, buffers[0].device, True
        self._buffers, self._start = buffers, start
        self._show(rows, length)

    @classmethod
    def empty(cls, like: Any, rows: int, length: int, more: int = 0) -> _RoomyLayer:
        """No rows of ``length`` columns, with room for ``rows`` of ``more`` columns and then some."""
        capacity, columns = rows + int(SPARE_ROWS * rows) + _SPARE_ROWS, _SPARE_LEFT + length + more + _SPARE_RIGHT
        buffers = [part.new_empty(capacity, part.shape[1], columns, part.shape[3]) for part in (like.keys, like.values)]
        return cls((buffers[0], buffers[1]), 0, _SPARE_LEFT, length)

    def has_room(self, rows: int, length: int) -> bool:
        """Whether it could hold so many rows and columns where it is."""
        return rows <= len(self._buffers[0]) and length <= self._start + self._length

    def filled(self, rows: int) -> float:
        """Share of its memory that so many rows need."""
        return rows / len(self._buffers[0])

    def joined(self, layers: Sequence[Any], length: int) -> _RoomyLayer:
        """With the rows of other layers below its own, all padded on the left to ``length``; there must be room."""
        end, row = self._start + self._length, self._rows
        start = end - length
        for buffer in self._buffers:
            buffer[:row, :, start : self._start] = 0
        for layer in layers:
            below = row + len(layer.keys)
            for buffer, part in zip(self._buffers, (layer.keys, layer.values), strict=True):
                first = end - part.shape[-2]
                buffer[row:below, :, start:first] = 0
                buffer[row:below, :, first:end] = part
            row = below
        return _RoomyLayer(self._buffers, row, start, length)

    def shrunk(self, rows: Sequence[int], length: int) -> _RoomyLayer:
        """Some rows and the last ``length`` columns, in its own memory."""
        start = self._start + self._length - length
        moved = [(k, row) for k, row in enumerate(rows) if row != k]
        for buffer in self._buffers:
            for k, row in moved:
                buffer[k, :, start : start + length] = buffer[row, :, start : start + length]
        return _RoomyLayer(self._buffers, len(rows), start, length)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        end, more = self._start + self._length, key_states.shape[-2]
        if end + more > self._buffers[0].shape[-2]:
            roomy = _RoomyLayer.empty(self, self._rows, self._length, more).joined([self], self._length)
            self._buffers, self._start = roomy._buffers, roomy._start
            end = self._start + self._length
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, end : end + more] = states
        self._show(self._rows, self._length + more)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _show(self, rows: int, length: int) -> None:
        self._rows, self._length = rows, length
        self.keys, self.values = (b[:rows, :, self._start : self._start + length] for b in self._buffers)


_KINDS = (DynamicLayer, DynamicSlidingWindowLayer, _RoomyLayer)


def _check(cache: Any) -> None:
    layers = getattr(cache, "layers", None)
    if type(cache) is not DynamicCache or not layers:
        raise CacheKindError(f"{type(cache).__name__} holds more than keys and values.")
    for layer in layers:
        if type(layer) not in _KINDS or layer.keys is None or layer.keys.dim() != 4:
            raise CacheKindError(f"{type(layer).__name__} holds more than keys and values.")


def _held(layer: Any, length: int) -> int:
    """Columns a layer keeps of ``length``: of a sliding window all but the one that the next token takes."""
    return min(length, layer.sliding_window - 1) if layer.is_sliding else length


def _cut(layer: Any, rows: Sequence[int], length: int) -> Any:
    """A copy of some rows and the last ``length`` columns of a layer."""
    held, index = _held(layer, length), torch.tensor(list(rows), device=layer.keys.device)
    first = layer.keys.shape[-2] - held
    keys, values = (part[:, :, first:].index_select(0, index) for part in (layer.keys, layer.values))
    if layer.is_sliding:
        return _sliding(layer, keys, values, length)
    return _RoomyLayer((keys, values), len(rows), 0, length)


def _sliding(like: Any, keys: Tensor, values: Tensor, length: int) -> Any:
    layer = copy.copy(like)
    layer.keys, layer.values, layer.cumulative_length = keys, values, length
    return layer


def _stack(parts: Sequence[Tensor], columns: int) -> Tensor:
    """Rows of all parts, padded on the left to ``columns``."""
    _, heads, _, width = parts[0].shape
    out = parts[0].new_zeros(sum(len(part) for part in parts), heads, columns, width)
    row = 0
    for part in parts:
        out[row : row + len(part), :, columns - part.shape[-2] :] = part
        row += len(part)
    return out


def _rebuilt(caches: Sequence[Any], make: Callable[[Sequence[Any]], Any]) -> Any:
    """A cache like the first, each of its layers made of those of all."""
    for cache in caches:
        _check(cache)
    out = copy.copy(caches[0])
    out.layers = [make(group) for group in zip(*(cache.layers for cache in caches), strict=True)]
    return out
