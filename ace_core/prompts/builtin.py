"""The prompt sets that come with the project."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from ace_core.errors import EngineError
from ace_core.prompts.files import read_prompts
from ace_core.prompts.sets import Prompt

__all__ = ["BUILTIN_LICENCE", "BUILTIN_NAMES", "LANGUAGES", "display_prompts", "load_builtin", "load_language"]

BUILTIN_NAMES = ("harmful", "harmless", "lookalike", "multilingual")
BUILTIN_LICENCE = "CC0-1.0"
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "pt": "Portuguese", "zh": "Chinese"}
"""Languages of the multilingual set by code."""

_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "prompts"


def load_builtin(name: str, split: str | None = None) -> tuple[Prompt, ...]:
    """Return a built-in set, or one split of it; `label` is the file's own, else the set's name."""
    if name not in BUILTIN_NAMES:
        raise ValueError(f"Unknown prompt set {name!r}: choose one of {', '.join(BUILTIN_NAMES)}.")
    prompts = _builtin(name)
    if split is None:
        return prompts
    chosen = tuple(prompt for prompt in prompts if prompt.split == split)
    if not chosen:
        known = ", ".join(sorted({prompt.split for prompt in prompts}))
        raise ValueError(f"The prompt set {name!r} has no split {split!r}: choose one of {known}.")
    return chosen


def load_language(label: str, language: str = "all") -> tuple[Prompt, ...]:
    """The multilingual set's `harmful` or `harmless` prompts, in one language or in all of them.

    Raises:
        EngineError: for a language there are none in.
    """
    if language != "all" and language not in LANGUAGES:
        raise EngineError(f"There are no prompts in {language!r}: choose all or one of {', '.join(LANGUAGES)}.")
    return tuple(p for p in load_builtin("multilingual") if p.label == label and language in ("all", p.language))


def display_prompts() -> tuple[Prompt, ...]:
    """Return the short examples that the app offers to click on; `label` is their kind."""
    rows = json.loads((_FOLDER / "display.json").read_text(encoding="utf-8"))
    return tuple(Prompt(text=row["text"], label=row["kind"]) for row in rows)


@cache
def _builtin(name: str) -> tuple[Prompt, ...]:
    prompts = read_prompts(_FOLDER / f"{name}.jsonl", column="text")
    return tuple(replace(prompt, label=prompt.label or name) for prompt in prompts)
