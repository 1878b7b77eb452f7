"""One visitor's place in the direction lab: prompt sets, a fit and its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ace_core.directions import RefusalDirections
from ace_core.host import HostState, ModelInfo
from ace_core.lab import Achieved, BlockChoice, LabFit, LabSet, Look
from ace_core.ui.workplace import Workplace

__all__ = ["Bench"]


@dataclass
class Bench(Workplace):
    """What the server remembers between two clicks.

    ``files`` are uploads by class, ``hub`` sets of the hub and ``languages`` codes by class, and ``upload`` is a file
    of vectors; ``fit``, its ``choices`` of a block by method, of which that for ``method`` counts, its ``tables`` of
    coordinates by block and its ``look`` belong to the model that ``info`` describes. ``block`` is the one looked at,
    and ``words`` are a block and a sentence on its table while there is none. ``kept`` are directions, their name and
    their model that the visitor put aside, and ``beside`` is what a fit is compared with: ``shipped`` or ``kept``.
    ``opened`` tells whether the visitor has been here at all.
    """

    prefix: ClassVar[str] = "directions-"

    files: dict[str, Path] = field(default_factory=dict)
    hub: dict[str, LabSet] = field(default_factory=dict)
    languages: dict[str, str] = field(default_factory=dict)
    fit: LabFit | None = None
    choices: dict[str, BlockChoice] = field(default_factory=dict)
    method: str = ""
    tables: dict[int, tuple[Achieved, ...]] = field(default_factory=dict)
    block: int | None = None
    words: tuple[int, str] | None = None
    look: Look | None = None
    info: ModelInfo | None = None
    kept: tuple[RefusalDirections, str, ModelInfo | None] | None = None
    beside: str = "shipped"
    upload: Path | None = None
    opened: bool = False

    def keep(self, fit: LabFit, look: Look, info: ModelInfo | None) -> None:
        """A new fit takes the place of the last."""
        self.fit, self.choices, self.tables, self.words, self.look, self.info = fit, {}, {}, None, look, info

    def choose(self, method: str, choice: BlockChoice) -> None:
        """A choice counts from now on."""
        self.choices[method], self.method = choice, method
        if choice.achieved:
            self.tables[choice.selection.recommended] = choice.achieved

    @property
    def choice(self) -> BlockChoice | None:
        """The choice that counts, if there is one."""
        return self.choices.get(self.method)

    @property
    def directions(self) -> RefusalDirections | None:
        """The fit, recommending the chosen block if one was chosen."""
        if self.choice is not None:
            return self.choice.directions
        return None if self.fit is None else self.fit.directions

    def current(self, state: HostState) -> bool:
        """Whether there is a fit of the loaded model; one of another model is dropped."""
        if self.fit is not None and self.info is not state.info:
            self.fit = self.look = self.info = self.words = None
            self.choices, self.tables = {}, {}
        if self.kept is not None and self.kept[2] is not state.info:
            self.kept = None
        return self.fit is not None
