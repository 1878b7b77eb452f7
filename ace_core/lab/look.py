"""Directions as plain arrays to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.inspecting.inspection import class_coordinates, cosine_map

__all__ = ["Look", "look_at"]

_MOST_DRAWN = 1_000


@dataclass(frozen=True)
class Look:
    """What a page draws of directions, float32.

    Args:
        recommended: 0-based block.
        auroc, d_prime: ``(blocks,)``, NaN where unknown.
        cosines: ``(blocks, blocks)``.
        harmless, harmful: ``(blocks, n)`` and ``(blocks, m)`` coordinates of held-out prompts.
        origin: ``(blocks,)`` coordinate of the zero vector.
        counts: how many harmful and harmless prompts they were fitted on, None if unknown.
    """

    recommended: int
    auroc: np.ndarray
    d_prime: np.ndarray
    cosines: np.ndarray
    harmless: np.ndarray
    harmful: np.ndarray
    origin: np.ndarray
    counts: tuple[int, int] | None

    @property
    def blocks(self) -> int:
        return len(self.auroc)


def look_at(directions: RefusalDirections) -> Look:
    """Everything of ``directions`` that can be drawn without the model."""
    separation, classes = directions.separation, class_coordinates(directions)
    counts = [directions.metadata.get(f"{kind}_count", "") for kind in ("harmful", "harmless")]
    known = all(count.isascii() and count.isdigit() and len(count) < 9 for count in counts)
    return Look(
        directions.recommended_layer,
        np.array([part.auroc for part in separation], np.float32),
        np.array([part.d_prime for part in separation], np.float32),
        cosine_map(directions),
        _thinned(classes.harmless),
        _thinned(classes.harmful),
        np.asarray(classes.origin),
        (int(counts[0]), int(counts[1])) if known else None,
    )


def _thinned(coordinates: np.ndarray) -> np.ndarray:
    step = -(-coordinates.shape[1] // _MOST_DRAWN) or 1
    return np.asarray(coordinates[:, ::step])
