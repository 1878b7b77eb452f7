"""Rows and columns of a key-value cache: stacking the rows of two caches, taking some rows out of one.

Columns are aligned on the right: the newest token of every row is in the last column, and shorter rows have padding on
their left. Nothing is written to in place, so a cache that was stacked or taken from is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["CacheKindError", "cache_bytes", "snapshot", "stacked", "taken"]


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
        return _stack([layer.keys for layer in layers], held), _stack([layer.values for layer in layers], held)

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


def _check(cache: Any) -> None:
    layers = getattr(cache, "layers", None)
    if type(cache) is not DynamicCache or not layers:
        raise CacheKindError(f"{type(cache).__name__} holds more than keys and values.")
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.keys is None or layer.keys.dim() != 4:
            raise CacheKindError(f"{type(layer).__name__} holds more than keys and values.")


def _held(layer: Any, length: int) -> int:
    """Columns a layer keeps of ``length``: of a sliding window all but the one that the next token takes."""
    return min(length, layer.sliding_window - 1) if layer.is_sliding else length


def _stack(parts: Sequence[Tensor], columns: int) -> Tensor:
    return torch.cat([functional.pad(part, (0, 0, columns - part.shape[-2], 0)) for part in parts])


def _rebuilt(caches: Sequence[Any], length: int, make: Any) -> Any:
    for cache in caches:
        _check(cache)
    layers = []
    for group in zip(*(cache.layers for cache in caches), strict=True):
        layer = copy.copy(group[0])
        layer.keys, layer.values = make(group)
        if layer.is_sliding:
            layer.cumulative_length = length
        layers.append(layer)
    out = copy.copy(caches[0])
    out.layers = layers
    return out
