"""The one error type whose text is written for the person at the screen."""

from __future__ import annotations

__all__ = ["EngineError"]


class EngineError(ValueError):
    """Bad input or an unavailable resource; the message is one sentence that says what to do."""
