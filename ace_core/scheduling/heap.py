"""Memory that the C library keeps after tensors are freed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

__all__ = ["Heap", "release_free_memory"]


def _found() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None


_TRIM = _found()


def release_free_memory() -> bool:
    """Give whole free pages back to the system; False where this C library can't."""
    if _TRIM is None:
        return False
    _TRIM(0)
    return True


class Heap:
    """Gives memory back now and then, from the thread that uses the model.

    Caches of changing sizes leave gaps between those that live on, and glibc returns only what lies at the end of its
    heap, so a process that serves visitors for long would hold several times what it uses.

    Args:
        every: seconds between two times while runs go on; it takes a tenth of a second per gigabyte.
        idle: the same while nobody waits for a token.
    """

    def __init__(self, every: float = 5.0, idle: float = 1.0) -> None:
        self._every, self._idle = every, idle
        self._freed, self._last = False, -every

    def look(self, freed: bool, idle: bool) -> None:
        """Give memory back if some was freed and it is time.

        Args:
            freed: something large was, since the last look.
            idle: nothing is being computed for anybody.
        """
        self._freed |= freed
        now = time.monotonic()
        if self._freed and now - self._last >= (self._idle if idle else self._every):
            release_free_memory()
            self._freed, self._last = False, time.monotonic()
