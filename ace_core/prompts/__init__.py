"""Prompt sets: built in, from files and from the hub, and how they are split."""

from ace_core.prompts.builtin import (
    BUILTIN_LICENCE,
    BUILTIN_NAMES,
    LANGUAGES,
    display_prompts,
    load_builtin,
    load_language,
)
from ace_core.prompts.files import PromptFileError, read_prompts
from ace_core.prompts.sets import (
    MAX_PROMPT_CHARACTERS,
    TEXT_COLUMNS,
    Prompt,
    duplicates_across,
    evenly,
    normalised,
    prompts_digest,
)

__all__ = [
    "BUILTIN_LICENCE",
    "BUILTIN_NAMES",
    "LANGUAGES",
    "MAX_PROMPT_CHARACTERS",
    "TEXT_COLUMNS",
    "Prompt",
    "PromptFileError",
    "display_prompts",
    "duplicates_across",
    "evenly",
    "load_builtin",
    "load_language",
    "normalised",
    "prompts_digest",
    "read_prompts",
]
