"""The one error type whose text is written for the person at the screen, and how other exceptions become one."""

from __future__ import annotations

__all__ = ["EngineError", "explained", "out_of_memory"]


class EngineError(ValueError):
    """Bad input or an unavailable resource; the message is one sentence that says what to do."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on an accelerator."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
    )


def explained(error: BaseException, what: str, smaller: str) -> EngineError:
    """An exception as a sentence for the person who asked; an :class:`EngineError` is one already.

    Args:
        error: what was raised.
        what: what stopped, such as ``run``.
        smaller: what to ask for when memory ran out, such as ``fewer arms``.
    """
    if isinstance(error, EngineError):
        return error
    if out_of_memory(error):
        return EngineError(f"The {what} stopped because of too little memory: use {smaller}.")
    return EngineError(f"The {what} stopped because of an unexpected {type(error).__name__}.")
