"""The one error type whose text is written for the person at the screen, and how other exceptions become one."""

from __future__ import annotations

import errno
import logging

from ace_core.journal import tell, whereabouts

__all__ = ["EngineError", "explained", "out_of_memory"]


class EngineError(ValueError):
    """Bad input or an unavailable resource; the message is one sentence that says what to do.

    Args:
        message: the sentence.
        reason: one fixed word for the journal, which never holds the sentence.
    """

    def __init__(self, message: str, *, reason: str = "refused") -> None:
        super().__init__(message)
        self.reason = reason


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on an accelerator."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
    )


def explained(error: BaseException, what: str, smaller: str) -> EngineError:
    """An exception as a sentence for the person who asked; an :class:`EngineError` is one already.

    Others are told to the journal, by type and place in the code.

    Args:
        error: what was raised.
        what: what stopped, such as ``run``.
        smaller: what to ask for when memory ran out, such as ``fewer arms``.
    """
    if isinstance(error, EngineError):
        return error
    kind = type(error).__name__
    memory = out_of_memory(error)
    level = logging.WARNING if memory else logging.ERROR
    tell("out of memory" if memory else "unexpected error", level=level, what=what, error=kind, at=whereabouts(error))
    if memory:
        return EngineError(f"The {what} stopped because of too little memory: use {smaller}.", reason="memory")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(f"The {what} stopped because the server's disk is full: try again later.", reason="disk")
    return EngineError(f"The {what} stopped because of an unexpected {kind}.", reason=kind)
