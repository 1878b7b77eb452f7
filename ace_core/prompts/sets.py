"""A prompt, and what sets of them have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "MAX_PROMPT_CHARACTERS",
    "TEXT_COLUMNS",
    "Prompt",
    "duplicates_across",
    "evenly",
    "normalised",
    "prompts_digest",
]

Item = TypeVar("Item")

MAX_PROMPT_CHARACTERS = 4_000
"""Longest prompt that is accepted, from a file, a data set or a person."""

TEXT_COLUMNS = ("prompt", "text", "goal", "instruction", "question", "behavior", "query")
"""Names under which files and data sets hold prompts, the likeliest first."""


@dataclass(frozen=True)
class Prompt:
    """One request to a model, with what is known about it."""

    text: str
    id: str = ""
    category: str = ""
    form: str = ""
    split: str = ""
    label: str = ""
    language: str = "en"


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """Return the SHA-256 (hex) of the texts in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        data = prompt.text.encode("utf-8")
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def duplicates_across(a: Iterable[Prompt], b: Iterable[Prompt]) -> tuple[str, ...]:
    """Return the texts of `a`, each once, that `b` holds too when case and white space are ignored."""
    seen = {normalised(prompt.text) for prompt in b}
    return tuple({key: prompt.text for prompt in a if (key := normalised(prompt.text)) in seen}.values())


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the items, at equal distances and in their order."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def normalised(text: str) -> str:
    """`text` with case and white space evened out, by which prompts are called equal."""
    return " ".join(text.casefold().split())
