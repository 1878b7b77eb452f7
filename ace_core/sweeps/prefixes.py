"""The beginning that prompts share, and the layers of a key/value cache as they are put together for a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ace_core.decoding import common_length

__all__ = ["alike", "cache_of", "chosen_rows", "is_plain", "stacked_rows"]


def alike(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompt indices in groups that begin alike, so that reading each group's common beginning once saves most tokens:
    prompts under two system prompts come apart, those that only share a first word don't."""

    def best(members: list[int]) -> tuple[int, list[list[int]]]:
        start = common_length([prompts[i] for i in members])
        saved = (len(members) - 1) * start
        branches: dict[int, list[int]] = {}
        for i in members:
            branches.setdefault(prompts[i][start], []).append(i)
        if len(branches) == 1:
            return saved, [members]
        parts = [best(branch) for branch in branches.values()]
        apart = sum(part for part, _ in parts)
        return (apart, [group for _, groups in parts for group in groups]) if apart > saved else (saved, [members])

    return best(list(range(len(prompts))))[1] if prompts else []


def is_plain(layers: Sequence[Any]) -> bool:
    """Whether cache layers keep keys and values of attention only, in transformers' own two ways."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def cache_of(layers: Sequence[Any]) -> DynamicCache:
    """A cache of one layer a block; a model that appends to it leaves the given layers as they are."""
    cache = DynamicCache()
    cache.layers = [copy.copy(layer) for layer in layers]  # a layer replaces its tensors, it never writes into them
    return cache


def chosen_rows(layer: Any, rows: Sequence[int]) -> Any:
    """A cache layer whose row k is row ``rows[k]`` of ``layer``."""
    index = torch.tensor(list(rows), device=layer.keys.device)
    return _with(layer, layer.keys[index], layer.values[index])


def stacked_rows(layers: Sequence[Any]) -> Any:
    """One cache layer with the rows of several that have read as many tokens."""
    if len(layers) == 1:
        return layers[0]
    return _with(layers[0], torch.cat([x.keys for x in layers]), torch.cat([x.values for x in layers]))


def _with(layer: Any, keys: Tensor, values: Tensor) -> Any:
    new = copy.copy(layer)
    new.keys, new.values = keys, values
    return new
