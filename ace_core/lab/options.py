"""How directions are to be fitted: what can be chosen, and a checked choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ace_core.activations import SITES, Site
from ace_core.errors import EngineError
from ace_core.fitting.positions import POSITIONS, Position, parse_position
from ace_core.fitting.variants import VARIANTS

__all__ = ["LIMIT_RANGE", "POSITION_CHOICES", "SITE_CHOICES", "VARIANT_CHOICES", "LabOptions", "lab_options"]

LIMIT_RANGE = (10, 2_000)
"""Prompts of each class, over all three parts."""

SEED_LIMIT = 2**31 - 1

VARIANT_CHOICES: dict[str, tuple[str, str]] = {v.name: (v.title, v.explanation) for v in VARIANTS.values()}
"""Title and one sentence by name."""

POSITION_CHOICES: dict[str, str] = dict(POSITIONS)
"""In words by name; a negative number that counts tokens from the end is allowed too."""

SITE_CHOICES: dict[str, str] = {str(site): words for site, words in SITES.items()}


@dataclass(frozen=True)
class LabOptions:
    """A checked choice.

    Args:
        seed: of the split and of samples.
        limit: most prompts of each class.
        variant, position, site: see :func:`ace_core.fitting.extraction.fit_directions`.
        behaving: keep only prompts on which the model behaves as their class says.
    """

    seed: int = 0
    limit: int = 100
    variant: str = "mean_difference"
    position: Position = "last"
    site: Site = "output"
    behaving: bool = False


def lab_options(values: Mapping[str, Any]) -> LabOptions:
    """Options from raw values of a page, which may be anything at all.

    Raises:
        EngineError: one sentence on the first value that can't be used.
    """
    low, high = LIMIT_RANGE
    seed = _whole(values.get("seed"), 0, SEED_LIMIT, "The seed")
    limit = _whole(values.get("limit"), low, high, "The number of prompts")
    variant, position, site = (values.get(name) for name in ("variant", "position", "site"))
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise EngineError("Choose a variant from the list.")
    if not isinstance(position, (str, int)) or len(str(position)) > 40:
        raise EngineError("Choose a position from the list, or type a negative number such as -2.")
    if not isinstance(site, str) or site not in SITE_CHOICES:
        raise EngineError("Choose whether to read block outputs or block inputs.")
    where = parse_position(position if isinstance(position, str) else str(position))
    if site == "input" and where == "last":
        # the input of block 0 is the embedding of one and the same template token
        raise EngineError("At the last prompt token all prompts enter block 0 alike: choose another position.")
    return LabOptions(
        seed, limit, variant, where, "input" if site == "input" else "output",
        values.get("behaving") is True,
    )  # fmt: skip


def _whole(value: Any, low: int, high: int, name: str) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or value != int(value):
        raise EngineError(f"{name} must be a whole number from {low:,} to {high:,}.")
    return int(value)
