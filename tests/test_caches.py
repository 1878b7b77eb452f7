"""Rows that join, leave and grow in a key-value cache hold what they would hold by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ace_core.scheduling import caches

HEADS, WIDTH, LAYERS = 2, 3, 2


@dataclass
class Group:
    """A cache beside what each of its rows should hold: per layer keys and values, ``(heads, columns, width)``."""

    cache: Any
    rows: list[list[tuple[Tensor, Tensor]]]
    length: int

    def check(self) -> None:
        for index, layer in enumerate(self.cache.layers):
            assert layer.keys is not None and layer.values is not None
            assert layer.keys.shape == (len(self.rows), HEADS, self.length, WIDTH) == layer.values.shape
            assert self.cache.get_seq_length(index) == self.length
            for row, held in enumerate(self.rows):
                for part, expected in zip((layer.keys[row], layer.values[row]), held[index], strict=True):
                    pads = self.length - expected.shape[1]
                    assert torch.equal(part[:, pads:], expected)
                    # padding is masked, but a number that is none would get through a mask
                    assert bool(torch.isfinite(part[:, :pads]).all())


def read(rows: int, columns: int, draw: torch.Generator) -> Group:
    """Rows that have read a prompt."""
    cache = DynamicCache()
    parts = [[torch.randn(rows, HEADS, columns, WIDTH, generator=draw) for _ in range(2)] for _ in range(LAYERS)]
    for index, (keys, values) in enumerate(parts):
        cache.update(keys, values, index)
    return Group(cache, [[(keys[row], values[row]) for keys, values in parts] for row in range(rows)], columns)


def step(group: Group, draw: torch.Generator) -> None:
    """Every row reads a token."""
    for index in range(LAYERS):
        keys, values = (torch.randn(len(group.rows), HEADS, 1, WIDTH, generator=draw) for _ in range(2))
        group.cache.update(keys, values, index)
        for row, held in enumerate(group.rows):
            before = held[index]
            held[index] = torch.cat([before[0], keys[row]], 1), torch.cat([before[1], values[row]], 1)
    group.length += 1


def stack(groups: list[Group]) -> Group:
    cache = caches.stacked([group.cache for group in groups], [group.length for group in groups])
    return Group(cache, [list(row) for group in groups for row in group.rows], max(group.length for group in groups))


def part(group: Group, rows: list[int], in_place: bool) -> Group:
    held = [list(group.rows[row]) for row in rows]
    length = max(row[0][0].shape[1] for row in held)
    cut = caches.kept if in_place else caches.taken
    return Group(cut(group.cache, rows, length), held, length)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 40), st.just(0)),
        st.tuples(st.just("join"), st.integers(1, 6), st.integers(1, 90)),
        st.tuples(st.sampled_from(["keep", "fill", "take"]), st.integers(0, 2**16), st.just(0)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(moves, st.integers(0, 2**16))
def test_any_sequence_of_joining_leaving_and_growing(moves: list[tuple[str, int, int]], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    group = stack([read(2, 5, draw), read(1, 9, draw)])
    for kind, number, columns in moves:
        before = Group(caches.snapshot(group.cache), [list(row) for row in group.rows], group.length)
        if kind == "step":
            for _ in range(number):
                step(group, draw)
        elif kind == "join":
            others = [read(number, columns, draw), read(1, 3, draw)]
            group = stack([group, *others])
            for other in others:
                other.check()
        else:
            chosen = [row for row in range(len(group.rows)) if number >> row & 1] or [len(group.rows) - 1]
            if kind == "fill":  # as a batch does: the last rows fill the gaps
                later = [row for row in chosen if row >= len(chosen)]
                chosen = [row if row in chosen else later.pop() for row in range(len(chosen))]
            group = part(group, chosen, in_place=kind != "take")
        group.check()
        if kind not in ("keep", "fill"):
            before.check()  # what failed could go back to it


def test_rows_mostly_stay_where_they_are() -> None:
    """Negative control: were everything copied, no memory would be the same."""
    draw = torch.Generator().manual_seed(0)
    group = stack([read(8, 20, draw), read(2, 5, draw)])
    place = group.cache.layers[0].keys.untyped_storage().data_ptr()
    for _ in range(30):
        step(group, draw)
    group = part(stack([group, read(3, 12, draw)]), [0, 1, 2, 12, 4, 5, 6, 7, 8, 9], in_place=True)
    group.check()
    assert group.cache.layers[0].keys.untyped_storage().data_ptr() == place
    # few rows give back the memory that many took, and a copy is a copy
    assert part(group, [0], in_place=True).cache.layers[0].keys.untyped_storage().data_ptr() != place
    assert part(group, [0, 1, 2], in_place=False).cache.layers[0].keys.untyped_storage().data_ptr() != place


def test_other_kinds_of_cache_are_refused() -> None:
    with pytest.raises(caches.CacheKindError):
        caches.stacked([object(), object()], [1, 1])
