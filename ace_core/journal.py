"""What an operator should know: one JSON object a line, in numbers and fixed words, never a visitor's text."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

__all__ = ["RunRecord", "journal_to_stderr", "tell", "whereabouts"]

_LOGGER = logging.getLogger("ace_core.journal")
_LOGGER.addHandler(logging.NullHandler())  # a library is silent until somebody wants to hear
_LOGGER.propagate = False
_LONGEST_WORD = 400
_FRAMES = 6
_numbers: Iterator[int] = itertools.count(1)

Fact = str | int | float | bool | None


def tell(event: str, *, level: int = logging.INFO, **facts: Fact) -> None:
    """Log an event.

    Args:
        event: what happened, a few fixed words.
        level: of :mod:`logging`.
        facts: numbers, and words that the program or its operator chose, never what a visitor or a model wrote; None
            is left out.
    """
    _LOGGER.log(level, event, extra={"facts": facts})


def journal_to_stderr() -> None:
    """Write events to standard error from now on; for the program that serves the page, not for the library."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)


def whereabouts(error: BaseException) -> str:
    """The innermost lines of code an exception passed, innermost last, without any value that they handled."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)


class RunRecord:
    """What the journal keeps of one run: when it was asked for, began and ended, and how many tokens it wrote."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._asked = time.monotonic()
        self._begun: float | None = None
        self._rows = self._tokens = 0
        self._over = False

    def begun(self) -> None:
        """It left the line."""
        self._begun = time.monotonic()
        tell("run started", run=self._number, waited_seconds=round(self._begun - self._asked, 3))

    def wrote(self, tokens: int, rows: int) -> None:
        """One step: a token for so many of its rows."""
        self._rows = rows
        self._tokens += tokens

    def ended(self, outcome: str, reason: str | None = None) -> None:
        """It is over: ``finished``, ``cancelled`` or ``failed`` for a reason in one word; said once."""
        if self._over:
            return
        self._over = True
        seconds = 0.0 if self._begun is None else time.monotonic() - self._begun
        tell(
            f"run {outcome}",
            run=self._number,
            arms=self._rows,
            tokens=self._tokens,
            seconds=round(seconds, 3),
            reason=reason,
        )


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        facts: dict[str, Fact] = getattr(record, "facts", {})
        known = {name: fact for name, fact in facts.items() if fact is not None}
        short = {name: fact[:_LONGEST_WORD] if isinstance(fact, str) else fact for name, fact in known.items()}
        return json.dumps({"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **short})
