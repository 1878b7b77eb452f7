"""Prompt sets named on the command line: built in, a file, or from the hub; whole or one part of them."""

from __future__ import annotations

from pathlib import Path

from ace_core.cli.options import say
from ace_core.errors import EngineError
from ace_core.prompts import BUILTIN_LICENCE, BUILTIN_NAMES, Prompt, evenly, load_builtin, load_language, read_prompts
from ace_core.prompts.hub import load_hub_prompts
from ace_core.prompts.known_sets import KNOWN_SETS
from ace_core.prompts.splitting import PromptSplit, split_both

__all__ = ["PARTS", "both_parts", "chosen_texts", "find_set", "read_set"]

PARTS = ("fit", "validation", "test", "all")
_SUFFIXES = (".txt", ".csv", ".json", ".jsonl")


def read_set(name: str, kind: str, column: str | None = None) -> tuple[Prompt, ...]:
    """The prompts of :func:`find_set`."""
    return find_set(name, kind, column)[0]


def find_set(name: str, kind: str, column: str | None = None) -> tuple[tuple[Prompt, ...], str]:
    """Prompts and their licence, empty if unknown, of a built-in set, else of a file, else of a data set on the hub.

    Args:
        name: what the user wrote.
        kind: ``harmful`` or ``harmless``; the built-in multilingual set holds both, as does ``multilingual:de``, its
            German part.
        column: field that holds the text, in files and hub sets.

    Raises:
        EngineError: one sentence for a name that is none of these, or a set that can't be read.
    """
    known, _, language = name.partition(":")
    if known == "multilingual":
        return load_language(kind, language or "all"), BUILTIN_LICENCE
    if name in BUILTIN_NAMES:
        return load_builtin(name), BUILTIN_LICENCE
    path = Path(name).expanduser()
    if path.suffix.lower() in _SUFFIXES or path.exists():
        return read_prompts(path, column=column), ""
    if name.strip().casefold() in KNOWN_SETS or name.count("/") == 1:
        found = load_hub_prompts(name, column=column, progress=say)
        say(f"{len(found.prompts)} prompts from {found.source}; licence: {found.licence}")
        return found.prompts, found.licence
    raise EngineError(
        f"'{name[:60]}' is no prompt set: give a built-in one ({', '.join(BUILTIN_NAMES)}), a file ending in "
        f"{', '.join(_SUFFIXES)}, a known set such as advbench, or owner/name of one on the hub."
    )


def both_parts(harmful: str, harmless: str, column: str | None, seed: int) -> tuple[PromptSplit, PromptSplit]:
    """Both sets split into fit, validation and test, and checked for prompts that are in both."""
    return split_both(read_set(harmful, "harmful", column), read_set(harmless, "harmless", column), seed=seed)


def chosen_texts(
    harmful: str, harmless: str, column: str | None, part: str, seed: int, limit: int
) -> tuple[list[str], list[str]]:
    """Texts of one part of both sets, at most ``limit`` each, at equal distances.

    Raises:
        EngineError: for an unknown part, an empty one, or sets that can't be read or split.
    """
    if part not in PARTS:
        raise EngineError(f"Unknown part '{part[:40]}': choose one of {', '.join(PARTS)}.")
    if part == "all":
        sets = [read_set(harmful, "harmful", column), read_set(harmless, "harmless", column)]
    else:
        sets = [getattr(split, part) for split in both_parts(harmful, harmless, column, seed)]
    texts = [evenly([prompt.text for prompt in prompts], limit) for prompts in sets]
    return texts[0], texts[1]
