"""One visitor's sweep and its files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ace_core.directions import RefusalDirections
from ace_core.host import HostState, ModelInfo
from ace_core.lab import LabSweep, SweepRequest
from ace_core.ui.workplace import Workplace

__all__ = ["SweepDesk"]


@dataclass
class SweepDesk(Workplace):
    """What the server remembers between two clicks: the newest ``sweep``, run on the model that ``info`` describes."""

    prefix: ClassVar[str] = "sweep-"

    sweep: LabSweep | None = None
    info: ModelInfo | None = None

    def new(self, request: SweepRequest, directions: RefusalDirections, info: ModelInfo | None, own: bool) -> LabSweep:
        """A sweep in a folder of its own takes the place of the last, whose files are removed.

        Raises:
            EngineError: for a plan that does not fit the model, or once the page is gone.
        """
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder()))
        made = LabSweep(request, directions, folder, own)
        if self.sweep is not None:
            self.sweep.discard()
        self.sweep, self.info = made, info
        return made

    def resumable(self, state: HostState) -> LabSweep | None:
        """The sweep, if it can go on with the loaded model."""
        sweep = self.sweep
        return None if sweep is None or sweep.finished or self.info is not state.info else sweep

    def close(self) -> None:
        """The page is gone: end the sweep and remove the files."""
        super().close()
        if self.sweep is not None:
            self.sweep.discard()
