"""What visitors of a page may ask of its model; asked by the host and by handlers, whatever the page shows."""

from __future__ import annotations

from dataclasses import dataclass

from ace_core.errors import EngineError

__all__ = ["OPEN", "RECORDED_ONLY", "Policy"]

RECORDED_ONLY = "This page shows recorded runs only: pick one under “Recorded runs” and press Replay."
_NO_WORK = "This page is read-only, so fits and sweeps are off: look at the recorded ones, or run your own copy."
_NO_FILES = "This page is read-only, so it takes no files: run your own copy to use them."


@dataclass(frozen=True)
class Policy:
    """Rules of one page.

    Args:
        runs: whether comparisons may run; without them no model is loaded.
        work: whether fits and sweeps may run, and prompt sets be fetched from the hub for them.
        files: whether files may be uploaded.
        models: what may be loaded; empty for anything.
    """

    runs: bool = True
    work: bool = True
    files: bool = True
    models: tuple[str, ...] = ()

    def check_run(self) -> None:
        """Raises :class:`EngineError` if no comparison may run."""
        if not self.runs:
            raise EngineError(RECORDED_ONLY)

    def check_work(self) -> None:
        """Raises :class:`EngineError` if no fit or sweep may run."""
        if not self.runs:
            raise EngineError(RECORDED_ONLY)
        if not self.work:
            raise EngineError(_NO_WORK)

    def check_files(self) -> None:
        """Raises :class:`EngineError` if no file may be uploaded."""
        if not self.files:
            raise EngineError(_NO_FILES)

    def check_model(self, name: str) -> None:
        """Raises :class:`EngineError` if a model may not be loaded."""
        if not self.runs:
            raise EngineError(RECORDED_ONLY)
        if self.models and name not in self.models:
            raise EngineError(f"This page does not offer that model: choose one of {', '.join(self.models)}.")

    @property
    def notice(self) -> str:
        """What a visitor should know at once; empty if everything is allowed."""
        if not self.runs:
            return RECORDED_ONLY
        return "" if self.work and self.files else "Read-only: runs are live; fits, sweeps and uploads are off here."


OPEN = Policy()
"""Everything is allowed."""
