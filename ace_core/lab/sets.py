"""Prompt sets that somebody chose, and their split into parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ace_core.errors import EngineError
from ace_core.prompts import (
    BUILTIN_LICENCE,
    LANGUAGES,
    Prompt,
    evenly,
    load_builtin,
    load_language,
    read_prompts,
)
from ace_core.prompts.hub import load_hub_prompts
from ace_core.prompts.known_sets import KNOWN_SETS
from ace_core.prompts.splitting import PromptSplit, joint_rule, split_both

__all__ = [
    "KINDS",
    "REFERENCE",
    "LabParts",
    "LabSet",
    "builtin_set",
    "file_set",
    "hub_names",
    "hub_set",
    "language_choices",
    "language_set",
    "split_sets",
]

KINDS = ("harmful", "harmless")

REFERENCE = "reference"
"""A third set, whose mean ACE may start from; it belongs to no class."""

_FILE_BYTES = 20_000_000
_HUB_PROMPTS = 5_000
_NAME_CHARACTERS = 200
_SHARES = (0.6, 0.2, 0.2)


@dataclass(frozen=True)
class LabSet:
    """One class of prompts.

    Args:
        prompts: all of them.
        source: where they come from, in words; may hold what a visitor wrote.
        licence: as far as known.
    """

    prompts: tuple[Prompt, ...]
    source: str
    licence: str

    @property
    def summary(self) -> str:
        """One sentence."""
        return f"{len(self.prompts):,} prompts, {self.source}. Licence: {self.licence}."


@dataclass(frozen=True)
class LabParts:
    """Both classes, split and cut to size.

    Args:
        harmful, harmless: three parts each.
        rule: how to get the same parts again.
        licence: of both sets' prompts.
    """

    harmful: PromptSplit
    harmless: PromptSplit
    rule: str
    licence: str = ""

    def texts(self, part: str) -> tuple[list[str], list[str]]:
        """Harmful and harmless texts of ``fit``, ``validation`` or ``test``."""
        return (
            [prompt.text for prompt in getattr(self.harmful, part)],
            [prompt.text for prompt in getattr(self.harmless, part)],
        )

    def keeping(self, harmful: set[str], harmless: set[str]) -> LabParts:
        """The same parts with only these texts."""
        return replace(self, harmful=_only(self.harmful, harmful), harmless=_only(self.harmless, harmless))

    @property
    def counts(self) -> str:
        """One sentence."""
        fit, validation, test = (
            " + ".join(str(len(texts)) for texts in self.texts(part)) for part in ("fit", "validation", "test")
        )
        return f"{fit} prompts to fit on, {validation} to choose the layer, {test} to test (harmful + harmless)."


def builtin_set(kind: str) -> LabSet:
    """The project's own set of a class; as the third set, prompts that only look harmful."""
    name, words = ("lookalike", "built in, they only look harmful") if kind == REFERENCE else (kind, "built in")
    return LabSet(load_builtin(_checked(name)), words, BUILTIN_LICENCE)


def language_choices() -> list[tuple[str, str]]:
    """Names and codes of the languages that there are built-in prompts in."""
    return [("All six", "all"), *((name, code) for code, name in LANGUAGES.items())]


def language_set(kind: str, language: str = "all") -> LabSet:
    """The built-in prompts of a class in another language than English, or in all of them.

    Raises:
        EngineError: for a language there are none in.
    """
    prompts = load_language(_checked(kind), language)
    return LabSet(prompts, f"built in, {LANGUAGES.get(language, 'six languages')}", BUILTIN_LICENCE)


def file_set(path: Path) -> LabSet:
    """A prompt file.

    Raises:
        EngineError: one sentence on what is wrong with it.
    """
    prompts = read_prompts(path, max_bytes=_FILE_BYTES)
    return LabSet(prompts, f"from {path.name[:80]}", "your file's own")


def hub_names(kind: str) -> list[str]:
    """Short names of published sets of a class, or of all that are not harmful for the third set."""
    labels = ("harmful",) if kind == "harmful" else ("harmless", "lookalike")
    return [name for label in labels for name, known in KNOWN_SETS.items() if known.label == label]


def hub_set(name: object, progress: Callable[[str, float | None], None] = lambda message, fraction: None) -> LabSet:
    """A set of the hub by short name or owner/name, its first thousands of prompts.

    Raises:
        EngineError: one sentence for a name that can't be used or a hub that can't be reached.
    """
    if not isinstance(name, str) or not name.strip():
        raise EngineError("Choose a set from the list, or type the owner/name of one on the hub.")
    if len(name) > _NAME_CHARACTERS:
        raise EngineError("That name is too long for a data set: type its owner/name.")
    found = load_hub_prompts(name, limit=_HUB_PROMPTS, progress=progress)
    more = "" if found.complete else f" (the first {len(found.prompts):,})"
    skipped = f"; {found.skipped:,} unusable rows left out" if found.skipped else ""
    return LabSet(found.prompts, f"{found.source}{more}{skipped}", found.licence)


def split_sets(harmful: LabSet, harmless: LabSet, seed: int, limit: int) -> LabParts:
    """Both sets in three parts of together at most ``limit`` prompts a class.

    Raises:
        EngineError: if a prompt is in both sets, or one has too few.
    """
    halves = split_both(harmful.prompts, harmless.prompts, seed=seed)
    rule = joint_rule(*halves)
    most = [max(1, round(limit * share)) for share in _SHARES]
    cut = []
    for half in halves:
        parts = [
            tuple(evenly(part, count)) for part, count in zip((half.fit, half.validation, half.test), most, strict=True)
        ]
        cut.append(replace(half, fit=parts[0], validation=parts[1], test=parts[2]))
    if any(_size(after) < _size(before) for after, before in zip(cut, halves, strict=True)):
        rule += f"; at most {most[0]}, {most[1]} and {most[2]} prompts of the parts used, at equal distances"
    return LabParts(cut[0], cut[1], rule, "; ".join(dict.fromkeys((harmful.licence, harmless.licence))))


def _size(split: PromptSplit) -> int:
    return len(split.fit) + len(split.validation) + len(split.test)


def _only(split: PromptSplit, texts: set[str]) -> PromptSplit:
    fit, validation, test = (
        tuple(prompt for prompt in part if prompt.text in texts) for part in (split.fit, split.validation, split.test)
    )
    return replace(split, fit=fit, validation=validation, test=test)


def _checked(kind: str) -> str:
    if kind not in (*KINDS, "lookalike"):
        raise EngineError(f"There is no class '{kind[:20]}': choose harmful or harmless.")
    return kind
