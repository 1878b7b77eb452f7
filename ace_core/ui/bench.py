"""One visitor's place in the direction lab: prompt sets, a fit and its files."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.host import HostState, ModelInfo
from ace_core.lab import BlockChoice, LabFit, LabSet, Look
from ace_core.tasks import Task

__all__ = ["Bench"]


@dataclass
class Bench:
    """What the server remembers between two clicks.

    ``files`` are uploads by class, ``hub`` sets of the hub by class, and ``upload`` is a file of vectors; ``fit``, its
    ``choices`` of a block by method, of which that for ``method`` counts, and its ``look`` belong to the model that
    ``info`` describes. ``opened`` tells whether the visitor has been here at all.
    """

    files: dict[str, Path] = field(default_factory=dict)
    hub: dict[str, LabSet] = field(default_factory=dict)
    fit: LabFit | None = None
    choices: dict[str, BlockChoice] = field(default_factory=dict)
    method: str = ""
    look: Look | None = None
    info: ModelInfo | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    _task: Task[Any] | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)
    upload: Path | None = None
    opened: bool = False
    _folder: Path | None = None
    _closed: bool = False

    def begin(self) -> bool:
        """Start working; False if something is going on already."""
        begun = self._busy.acquire(blocking=False)
        if begun:
            self.stopped.clear()
        return begun

    def hold(self, task: Task[Any]) -> None:
        """Make a task reachable for :meth:`stop`."""
        self._task = task
        if self.stopped.is_set():
            task.cancel()

    def release(self) -> None:
        """The work is over; a task still going is asked to stop. Returns at once."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if self._busy.locked():
            self._busy.release()

    def stop(self) -> None:
        """Ask the work to end; what is done is kept if it is enough."""
        self.stopped.set()
        task = self._task
        if task is not None:
            task.cancel()

    def keep(self, fit: LabFit, look: Look, info: ModelInfo | None) -> None:
        """A new fit takes the place of the last."""
        self.fit, self.choices, self.look, self.info = fit, {}, look, info

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
            self.fit = self.look = self.info = None
            self.choices = {}
        return self.fit is not None

    def folder(self) -> Path:
        """A folder for files to take away, made at first use where the page's server may read it.

        Raises:
            EngineError: once the page is gone.
        """
        if self._closed:
            raise EngineError("The page was closed.")
        if self._folder is None:
            parent = Path(get_upload_folder())
            parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="directions-", dir=parent))
        return self._folder

    def close(self) -> None:
        """The page is gone: end the work and remove the files."""
        self._closed = True
        self.stop()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
