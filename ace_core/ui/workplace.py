"""What every place for long work on the model needs: one thing at a time, a way to stop it, and a folder for files."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gradio.utils import get_upload_folder

from ace_core.errors import EngineError
from ace_core.tasks import Task

__all__ = ["Workplace"]


@dataclass
class Workplace:
    """One visitor's; ``stopped`` is set once somebody asked the work to end.

    Args:
        visitor: any text that tells whose it is, for the cap on the work of one; None is somebody new.
    """

    prefix: ClassVar[str] = "work-"

    visitor: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    _task: Task[Any] | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _folder: Path | None = None
    _closed: bool = False

    def begin(self) -> bool:
        """Start working; False if something is going on already."""
        begun = self._busy.acquire(blocking=False)
        if begun:
            self.stopped.clear()
        return begun

    @property
    def busy(self) -> bool:
        """Whether something is going on."""
        return self._busy.locked()

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
        if self.busy:
            self._busy.release()

    def stop(self) -> None:
        """Ask the work to end; what is done is kept if it is enough."""
        self.stopped.set()
        task = self._task
        if task is not None:
            task.cancel()

    def folder(self) -> Path:
        """A folder for files to take away, made at first use where the page's server may read it.

        Raises:
            EngineError: once the page is gone, or if there is no room on the disk.
        """
        if self._closed:
            raise EngineError("The page was closed.")
        if self._folder is None:
            parent = Path(get_upload_folder())
            try:
                parent.mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(prefix=self.prefix, dir=parent))
            except OSError:
                raise EngineError("The server has no room for files: try again later.") from None
        return self._folder

    def close(self) -> None:
        """The page is gone: end the work and remove the files."""
        self._closed = True
        self.stop()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
