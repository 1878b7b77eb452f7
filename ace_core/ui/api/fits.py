"""Directions that programs fitted, kept for their next calls."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.host import HostState, ModelInfo

__all__ = ["Fits"]


class Fits:
    """A registry of the newest fits, by names nobody can guess; older ones are forgotten.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[RefusalDirections, ModelInfo | None]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, directions: RefusalDirections, info: ModelInfo | None) -> str:
        """Keep a fit made on the model that ``info`` describes; its name."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = (directions, info)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return name

    def find(self, name: object, state: HostState) -> RefusalDirections:
        """The fit of that name, or the model's own directions if it is empty.

        Raises:
            EngineError: if there is none, or it belongs to a model that is not loaded any more.
        """
        if name == "":
            if state.directions is None:
                raise EngineError(state.message)
            return state.directions
        with self._lock:
            kept = self._kept.get(name) if isinstance(name, str) else None
            if kept is None or kept[1] is not state.info:
                raise EngineError(
                    "'directions' must be empty, for the model's own, or what extract returned lately for this model."
                )
            self._kept.move_to_end(str(name))
        return kept[0]
