"""One prompt read once: where every token lies at every block, and where the two classes separate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ace_core.default_model.adapter import REFUSING_ID
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.methods import Baseline
from ace_core.runs import Run, RunSettings
from ace_core.store import load_directions, vectors_path

__all__ = ["READING", "READING_METHODS", "SEPARATES", "PromptLayers", "prompt_layers", "recorded_layers"]

READING = RunSettings(layer=0, max_new_tokens=1)
READING_METHODS = (Baseline(),)
"""A comparison of these is one forward pass over the prompt, and waits in the same line as everybody's runs."""

SEPARATES = 0.9
"""Held-out AUROC from which on a block is said to tell the classes apart."""


@dataclass(frozen=True)
class PromptLayers:
    """Refusal coordinates of one prompt without any edit.

    Args:
        tokens: text of every token of the templated prompt.
        coordinates: float32 ``(blocks, tokens)``; 0 is the harmless and 1 the harmful mean.
        auroc: ``(blocks,)`` of held-out prompts, NaN where unknown.
        recommended: 0-based block.
    """

    tokens: tuple[str, ...]
    coordinates: np.ndarray
    auroc: np.ndarray
    recommended: int

    @property
    def separating(self) -> tuple[tuple[int, int], ...]:
        """First and last block of every stretch whose held-out AUROC is at least :data:`SEPARATES`."""
        clear = np.concatenate([[False], self.auroc >= SEPARATES, [False]])
        edges = np.flatnonzero(clear[1:] != clear[:-1])
        return tuple((int(first), int(end) - 1) for first, end in edges.reshape(-1, 2))

    @property
    def last(self) -> float:
        """Coordinate of the last token at the recommended block, from which the model goes on to answer."""
        return float(self.coordinates[self.recommended, -1])


def prompt_layers(run: Run, directions: RefusalDirections) -> PromptLayers:
    """What a run with an unedited arm says about its prompt.

    Args:
        run: of :data:`READING`, or any other with a baseline.
        directions: that it was read along.

    Raises:
        EngineError: if no arm is unedited, or the run ended before the prompt was read.
    """
    arm = next((arm for arm in run.arms if arm.method == Baseline.name), None)
    count = len(run.prompt_tokens)
    if arm is None or arm.before.shape[1] < count:
        raise EngineError("The prompt was not read to its end: read it again.")
    auroc = np.array([part.auroc for part in directions.separation], np.float32)
    return PromptLayers(run.prompt_tokens, arm.before[:, :count], auroc, directions.recommended_layer)


def recorded_layers(run: Run | None, path: Path | None = None) -> PromptLayers | None:
    """What a recorded run of the default model says about its prompt; None if nothing, or there are no such vectors.

    Args:
        run: with the default model's shipped directions.
        path: of the directions; None takes those.
    """
    if run is None:
        return None
    try:
        directions = load_directions(path or vectors_path(REFUSING_ID))
        found = prompt_layers(run, directions)
    except EngineError:
        return None
    return found if len(found.coordinates) == directions.blocks else None
