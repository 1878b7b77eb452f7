"""Rows and columns of a key-value cache: stacking the rows of two caches, taking some rows out of one.

Columns are aligned on the right: the newest token of every row is in the last column, and shorter rows have padding on
their left. A cache that was stacked or taken from is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["CacheKindError", "cache_bytes", "snapshot", "stacked", "taken"]


_SPARE_COLUMNS = 32


class CacheKindError(TypeError):
    """A cache whose rows can't be stacked: one that is not keys and values by column."""


def stacked(caches: Sequence[Any], lengths: Sequence[int]) -> Any:
    """One cache with the rows of all, padded on the left to the longest.

    Args:
        caches: key-value caches of the same network.
        lengths: columns each has seen, which a sliding window may since have dropped.

    Raises:
        CacheKindError: for other kinds of cache.
    """
    length = max(lengths)

    def merge(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        held = _held(layers[0], length)
        spare = 0 if layers[0].is_sliding else _SPARE_COLUMNS
        keys = _stack([layer.keys for layer in layers], held, spare)
        return keys, _stack([layer.values for layer in layers], held, spare)

    return _rebuilt(caches, length, merge)


def taken(cache: Any, rows: Sequence[int], length: int) -> Any:
    """A cache of some rows and the last ``length`` columns.

    Raises:
        CacheKindError: for other kinds of cache.
    """

    def cut(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        (layer,) = layers
        held, index = _held(layer, length), torch.tensor(list(rows), device=layer.keys.device)
        first = layer.keys.shape[-2] - held
        return layer.keys[:, :, first:].index_select(0, index), layer.values[:, :, first:].index_select(0, index)

    return _rebuilt([cache], length, cut)


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
    """A layer with spare columns, so that a step writes one column where the library's layer copies all.

    What was seen is never overwritten: a copy made before a step still holds what it held.
    """

    def __init__(self, length: int, buffers: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = buffers[0].dtype, buffers[0].device, True
        self._buffers = buffers
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        seen = self.keys.shape[-2]
        length = seen + key_states.shape[-2]
        if length > self._buffers[0].shape[-2]:
            more = length - seen + _SPARE_COLUMNS
            self._buffers = functional.pad(self.keys, (0, 0, 0, more)), functional.pad(self.values, (0, 0, 0, more))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, seen:length] = states
        self._show(length)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values


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


def _stack(parts: Sequence[Tensor], columns: int, spare: int) -> Tensor:
    """Rows of all parts, padded on the left to ``columns``, with ``spare`` ones on the right."""
    _, heads, _, width = parts[0].shape
    out = parts[0].new_zeros(sum(len(part) for part in parts), heads, columns + spare, width)
    row = 0
    for part in parts:
        out[row : row + len(part), :, columns - part.shape[-2] : columns] = part
        row += len(part)
    return out


def _rebuilt(caches: Sequence[Any], length: int, make: Callable[[Sequence[Any]], tuple[Tensor, Tensor]]) -> Any:
    """A cache like the first, its layers made of those of all."""
    for cache in caches:
        _check(cache)
    layers = []
    for group in zip(*(cache.layers for cache in caches), strict=True):
        keys, values = make(group)
        if group[0].is_sliding:
            layer = copy.copy(group[0])
            layer.keys, layer.values, layer.cumulative_length = keys, values, length
        else:
            layer = _RoomyLayer(length, (keys, values))
        layers.append(layer)
    out = copy.copy(caches[0])
    out.layers = layers
    return out
