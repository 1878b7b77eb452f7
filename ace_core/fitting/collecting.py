"""Streaming activations of several prompt sets side by side into means, samples and coordinates."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ace_core import geometry
from ace_core.activations import Progress, Site, Stopped, position_activations
from ace_core.directions import Moments
from ace_core.fitting.positions import Position
from ace_core.models import ChatModel

__all__ = ["MAX_SAMPLES", "ClassCollector", "Consumer", "CoordinateCollector", "collect", "sampled_rows"]

MAX_SAMPLES = 512
"""Most prompts a class whose activations are kept, where a variant needs more than means; at width 4096 and 32 blocks
they take 256 MiB a class."""


class Consumer(Protocol):
    """Takes the activations of one prompt set, batch by batch."""

    texts: Sequence[str]

    def add(self, indices: Sequence[int], activations: Tensor) -> None:
        """Take float32 ``(blocks, len(indices), d)`` of the prompts at ``indices``."""
        ...


class ClassCollector:
    """Mean of one class, and the activations of some of its prompts.

    Args:
        texts: the prompts.
        blocks, width: of the model.
        rows: prompts whose activations are kept, as ``(blocks, len(rows), d)`` float32.
    """

    def __init__(self, texts: Sequence[str], blocks: int, width: int, rows: Sequence[int] = ()) -> None:
        self.texts = texts
        self.moments = Moments(blocks, width)
        self.done: list[int] = []
        self._slots = {row: slot for slot, row in enumerate(rows)}
        self._kept = torch.empty(blocks, len(rows), width)

    def add(self, indices: Sequence[int], activations: Tensor) -> None:
        self.moments.update(activations)
        self.done += indices
        kept = [(place, self._slots[row]) for place, row in enumerate(indices) if row in self._slots]
        if kept:
            places, slots = zip(*kept, strict=True)
            self._kept[:, list(slots)] = activations[:, list(places)]

    @property
    def seen(self) -> list[str]:
        """The prompts taken so far, in the order of the set."""
        return [self.texts[i] for i in sorted(self.done)]

    @property
    def sampled(self) -> list[int]:
        """Prompts whose activations are here, ascending."""
        return sorted(set(self.done) & set(self._slots))

    def samples(self, block: int, rows: Sequence[int]) -> Tensor:
        """Activations ``(len(rows), d)`` of sampled prompts at a block."""
        return self._kept[block, [self._slots[row] for row in rows]]


class CoordinateCollector:
    """Refusal coordinates of prompts along ``unit`` ``(blocks, d)``, given both means' components ``(blocks,)``."""

    def __init__(self, texts: Sequence[str], unit: Tensor, low: Tensor, high: Tensor) -> None:
        self.texts = texts
        self._unit, self._low, self._high = unit, low.unsqueeze(-1), high.unsqueeze(-1)
        self._found: dict[int, Tensor] = {}

    def add(self, indices: Sequence[int], activations: Tensor) -> None:
        projection = torch.einsum("lbd,ld->lb", activations, self._unit)
        found = geometry.coordinate(projection, self._low, self._high)
        self._found.update(zip(indices, found.unbind(1), strict=True))

    @property
    def coordinates(self) -> Tensor:
        """``(blocks, prompts taken so far)`` float32, in the order of the set."""
        columns = [self._found[i] for i in sorted(self._found)]
        return torch.stack(columns, dim=1) if columns else torch.empty(len(self._unit), 0)


def sampled_rows(counts: Sequence[int], seed: int, most: int = MAX_SAMPLES) -> list[list[int]]:
    """For sets of so many prompts the rows to keep, at most ``most`` each, drawn from ``seed``.

    Sets of one size get the same rows, so prompts that are paired stay paired.
    """
    order = list(range(max(counts, default=0)))
    random.Random(seed).shuffle(order)
    return [sorted([row for row in order if row < count][:most]) for count in counts]


def collect(
    model: ChatModel,
    consumers: Sequence[Consumer],
    *,
    position: Position = "last",
    site: Site = "output",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run all sets through the model, a batch of the set that is furthest behind at a time.

    Arguments are those of :func:`ace_core.activations.position_activations`, which also says what it raises.

    Returns:
        True when everything was done, False after ``should_stop``.
    """
    streams = {
        k: position_activations(
            model, consumer.texts, position=position, site=site, batch_size=batch_size, seed=seed + k
        )
        for k, consumer in enumerate(consumers)
    }
    sizes = [len(consumer.texts) for consumer in consumers]
    done = [0] * len(consumers)
    while any(done[k] < sizes[k] for k in streams):
        if cancelled():
            raise Stopped("The extraction was stopped.")
        if should_stop():
            return False
        behind = min((k for k in streams if done[k] < sizes[k]), key=lambda k: done[k] / sizes[k])
        indices, activations = next(streams[behind])
        consumers[behind].add(indices, activations)
        done[behind] += len(indices)
        progress(sum(done), sum(sizes))
    return True
