"""Cells of prompts × arms that are to be computed, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ace_core.arms import Arm
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.models import ChatModel

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """Some prompts under some arms.

    Args:
        model: a loaded model.
        directions: fitted on it.
        prompts: token ids, each non-empty.
        arms: what steers.
        cells: pairs (prompt index, arm index), each once.
        batch_rows: rows a forward pass.
        should_stop: polled often; once true, no further cell is computed.
    """

    model: ChatModel
    directions: RefusalDirections
    prompts: Sequence[tuple[int, ...]]
    arms: Sequence[Arm]
    cells: Sequence[tuple[int, int]]
    batch_rows: int
    should_stop: Callable[[], bool]

    @classmethod
    def of(
        cls,
        model: ChatModel,
        directions: RefusalDirections,
        prompts: Sequence[tuple[int, ...]],
        arms: Sequence[Arm],
        cells: Sequence[tuple[int, int]] | None,
        batch_rows: int,
        should_stop: Callable[[], bool],
    ) -> Grid:
        """The grid of the given cells without repeats, or of every one if they are None.

        Raises:
            EngineError: for an empty prompt, a cell outside the grid, or directions of another model.
        """
        model.accepts(directions)
        if any(not ids for ids in prompts):
            raise EngineError("A prompt of the sweep is empty: leave it out.")
        if cells is None:
            wanted = [(p, a) for p in range(len(prompts)) for a in range(len(arms))]
        elif any(not (0 <= p < len(prompts) and 0 <= a < len(arms)) for p, a in cells):
            raise EngineError("A cell of the sweep lies outside its prompts and arms.")
        else:
            wanted = list(dict.fromkeys(cells))
        return cls(model, directions, prompts, arms, wanted, batch_rows, should_stop)

    @property
    def used(self) -> list[int]:
        """Prompts that some cell names."""
        return sorted({prompt for prompt, _ in self.cells})
