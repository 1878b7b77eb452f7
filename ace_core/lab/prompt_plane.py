"""One prompt on a map of activations: where every token lies in the plane that recorded prompts are drawn in.

A run reports ``(v . e - low) / (high - low)`` of every token at every block for whatever directions it is read along.
Along directions whose class means are zero and ``e`` that is ``v . e`` itself, so both places of a token on the map
come from two comparisons of :data:`ace_core.lab.prompt_layers.READING`: they wait in the line of everybody's runs, and
are allowed wherever runs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.inspecting.plane import GEOMETRY, Plane, read_plane
from ace_core.methods import Baseline
from ace_core.runs import Run

__all__ = ["PlaneReading", "PromptPlane"]


@dataclass(frozen=True)
class PromptPlane:
    """A prompt's tokens on a map, unedited.

    Args:
        tokens: text of every token of the templated prompt.
        places: ``(tokens, 2)`` float64 in units of activation, as in :class:`ace_core.inspecting.plane.Plane`.
    """

    tokens: tuple[str, ...]
    places: np.ndarray


class PlaneReading:
    """Reads prompts for one map.

    Args:
        plane: the map.
    """

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    @classmethod
    def of_file(cls, path: Path = GEOMETRY) -> PlaneReading:
        """For a map on disk.

        Raises:
            EngineError: as :func:`ace_core.inspecting.plane.read_plane`.
        """
        return cls(read_plane(path))

    def check_model(self, model_id: str, name: str) -> None:
        """Raise :class:`EngineError` if the loaded model, ``name`` in words, is not the map's."""
        if model_id != self.plane.model_id:
            raise EngineError(
                f"This map belongs to {self.plane.model_id}, and {name} is loaded: start the page with the map's model "
                "to put tokens on it."
            )

    def agrees(self, directions: RefusalDirections) -> bool:
        """Whether directions point along the map's x axis, with the class means that it shows."""
        return self.plane.agrees(directions)

    def axes(self, blocks: int) -> tuple[RefusalDirections, RefusalDirections]:
        """What to read a prompt along, first for x and then for y; the same at each of ``blocks`` blocks."""
        return self._along(self.plane.unit, blocks), self._along(self.plane.principal, blocks)

    def places(self, runs: Sequence[Run]) -> PromptPlane:
        """The map's positions from two runs of one prompt, read along :meth:`axes`.

        Raises:
            EngineError: if a run ended before the prompt was read, or they read different prompts.
        """
        across, up = runs
        if across.prompt_tokens != up.prompt_tokens:
            raise EngineError("Another model was loaded meanwhile: put the tokens on the map again.")
        components = np.stack([self._components(across), self._components(up)], axis=-1)
        return PromptPlane(across.prompt_tokens, self.plane.origin + components)

    def _along(self, axis: np.ndarray, blocks: int) -> RefusalDirections:
        rows = torch.tensor(axis, dtype=torch.float32).expand(blocks, -1).contiguous()
        none = torch.zeros(blocks, 0)
        return RefusalDirections(torch.zeros_like(rows), rows, none, none, self.plane.block)

    def _components(self, run: Run) -> np.ndarray:
        """``v . e`` of every token of the prompt at the map's block, ``(tokens,)``."""
        arm = next((arm for arm in run.arms if arm.method == Baseline.name), None)
        count = len(run.prompt_tokens)
        if arm is None or arm.before.shape[0] <= self.plane.block or arm.before.shape[1] < count:
            raise EngineError("The prompt was not read to its end: put its tokens on the map again.")
        return arm.before[self.plane.block, :count].astype(np.float64)
