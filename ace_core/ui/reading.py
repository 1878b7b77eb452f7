"""Reading a prompt once on the model, in the line of everybody's runs."""

from __future__ import annotations

from collections.abc import Iterator

from ace_core import lab
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.host import ModelHost
from ace_core.runs import Run
from ace_core.ui.waiting import in_line

__all__ = ["PromptReading"]

_POLL_SECONDS = 0.25


class PromptReading:
    """One forward pass without any edit; iterating does it, and says in words what it waits for.

    Args:
        host: with a model.
        prompt: what the user says.
        directions: to read along; None takes the model's own.
        visitor: see :meth:`ace_core.host.ModelHost.compare`.

    Raises:
        EngineError: at once, or while it is iterated over, as for any run.
    """

    def __init__(self, host: ModelHost, prompt: str, directions: RefusalDirections | None, visitor: str | None) -> None:
        self._stream = host.compare(prompt, lab.READING, lab.READING_METHODS, directions, visitor=visitor)

    def __iter__(self) -> Iterator[str]:
        try:
            while (place := self._stream.wait(_POLL_SECONDS)) is not None:
                yield in_line(place)
            for _ in self._stream:
                pass
        finally:
            self._stream.cancel()

    def run(self) -> Run:
        """What was read, once the iteration is over.

        Raises:
            EngineError: if it ended before.
        """
        if self._stream.builder is None:
            raise EngineError("The prompt was not read to its end: read it again.")
        return self._stream.builder.snapshot()
