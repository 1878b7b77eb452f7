"""What a program asked for: raw JSON values in, checked ones out; every error is one sentence that names the argument.

A value may be anything JSON can hold. Functions take it with the name of its argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ace_core.errors import EngineError
from ace_core.methods import Method, parse_method
from ace_core.prompts import MAX_PROMPT_CHARACTERS

__all__ = ["DEFAULT_METHODS", "MOST_METHODS", "choice", "layers", "methods", "number", "prompt", "prompts", "whole"]

DEFAULT_METHODS = ("baseline", "addition:-1", "ablation", "ace:0")
MOST_METHODS = 8
_LONGEST_METHOD = 60


def prompt(value: object, name: str = "prompt") -> str:
    """A text with something in it, at most :data:`ace_core.prompts.MAX_PROMPT_CHARACTERS` long."""
    if not isinstance(value, str) or not value.strip():
        raise EngineError(f"'{name}' must be a text that is not empty.")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise EngineError(f"'{name}' has {len(value):,} characters: shorten it to {MAX_PROMPT_CHARACTERS:,} or fewer.")
    if not _encodable(value):
        raise EngineError(f"'{name}' holds half a character (a lone surrogate): send whole ones.")
    return value


def prompts(value: object, name: str, least: int, most: int) -> list[str]:
    """A list of prompts."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise EngineError(f"'{name}' must be a list of {least} to {most} prompts.")
    return [prompt(text, f"{name}[{place}]") for place, text in enumerate(value)]


def whole(value: object, name: str, low: int, high: int) -> int:
    """A whole number in a range; ``3.0`` is one, ``true`` is none."""
    if not _within(value, low, high) or value != int(value):  # type: ignore[call-overload]
        raise EngineError(f"'{name}' must be a whole number from {low:,} to {high:,}.")
    return int(value)  # type: ignore[call-overload]


def number(value: object, name: str, low: float, high: float) -> float:
    """A number in a range."""
    if not _within(value, low, high):
        raise EngineError(f"'{name}' must be a number from {low:g} to {high:g}.")
    return float(value)  # type: ignore[arg-type]


def choice(value: object, name: str, choices: Sequence[str]) -> Any:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise EngineError(f"'{name}' must be one of {', '.join(choices)}.")
    return value


def methods(value: object, name: str = "methods") -> tuple[Method, ...]:
    """Methods with their coefficients, such as ``ace:0.5``; None is :data:`DEFAULT_METHODS`."""
    texts = list(DEFAULT_METHODS) if value is None else value
    if not isinstance(texts, list) or not 0 < len(texts) <= MOST_METHODS:
        raise EngineError(f"'{name}' must be a list of 1 to {MOST_METHODS} methods, such as {list(DEFAULT_METHODS)}.")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_METHOD and _encodable(text) for text in texts):
        raise EngineError(f"Every entry of '{name}' must be a short text, such as 'baseline' or 'ace:0.5'.")
    return tuple(parse_method(text) for text in texts)


def layers(value: object, name: str, blocks: int, default: int) -> list[int]:
    """0-based blocks, each once; None is ``default`` alone."""
    if value is None:
        return [default]
    if not isinstance(value, list) or not 0 < len(value) <= blocks:
        raise EngineError(f"'{name}' must be a list of 1 to {blocks} layers, numbered from 0 to {blocks - 1}.")
    return list(dict.fromkeys(whole(layer, f"{name}[{place}]", 0, blocks - 1) for place, layer in enumerate(value)))


def _within(value: object, low: float, high: float) -> bool:
    # NaN lies in no range, so that one comparison refuses it too
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
