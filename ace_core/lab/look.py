"""Directions as plain arrays to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.fitting.variants import VARIANTS
from ace_core.inspecting.inspection import class_coordinates, compare_directions, cosine_map

__all__ = ["Beside", "Look", "beside", "look_at"]

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


@dataclass(frozen=True)
class Beside:
    """Two directions of one model, block by block.

    Args:
        cosines: ``(blocks,)`` float32, of the one with the other.
        words: what each of them is; may hold a file's name.
        recommended: 0-based block of the first.
    """

    cosines: np.ndarray
    words: tuple[str, str]
    recommended: int


def beside(one: RefusalDirections, other: RefusalDirections, names: tuple[str, str]) -> Beside:
    """Two directions side by side, such as one read at the instruction's end and one at the template's.

    Raises:
        EngineError: if they belong to models of different shape.
    """
    words = [f"{name} ({_read_where(d)})" for name, d in zip(names, (one, other), strict=True)]
    return Beside(compare_directions(one, other), (words[0], words[1]), one.recommended_layer)


def _read_where(directions: RefusalDirections) -> str:
    known = VARIANTS.get(directions.variant)
    parts = [directions.variant if known is None else known.title, directions.metadata.get("position", "")]
    return ", ".join(part for part in [*parts, f"block {directions.site}s"] if part)[:120]


def _thinned(coordinates: np.ndarray) -> np.ndarray:
    step = -(-coordinates.shape[1] // _MOST_DRAWN) or 1
    return np.asarray(coordinates[:, ::step])
