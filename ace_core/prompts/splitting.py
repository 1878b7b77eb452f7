"""Splitting a prompt set into prompts to fit on, to validate on and to test on, the same way every time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ace_core.errors import EngineError
from ace_core.prompts.sets import Prompt, duplicates_across, normalised

__all__ = ["PromptSplit", "joint_rule", "split_both", "split_prompts"]

_PLACES = ("fit", "validation", "test")
_LEAST = 5


@dataclass(frozen=True)
class PromptSplit:
    """Three disjoint parts of one prompt set.

    Attributes:
        fit: prompts that directions are fitted on.
        validation: prompts that layer and coefficient are chosen on.
        test: prompts that results are reported on.
        rule: in words, how to get the same parts again.
        dropped: prompts left out because they are empty or repeat another (case and white space ignored).
        left_out: prompts left out because their own `split` names none of the three parts.
    """

    fit: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    rule: str
    dropped: int = 0
    left_out: int = 0


def split_prompts(
    prompts: Sequence[Prompt], *, seed: int = 0, shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
) -> PromptSplit:
    """Split a set by the prompts' own `split` field, or else by a hash of seed and text.

    The field decides if every prompt has one and each of ``fit``, ``validation`` and ``test`` occurs; the
    parts then keep the order of the set. Otherwise prompts are sorted by the SHA-256 of seed, line break and
    text (case and white space ignored) and cut at exact sizes. So the order of the set does not matter, and
    a prompt that is added or removed moves at most one other prompt across each of the two cuts. A part with
    a share gets at least one prompt.

    Args:
        prompts: the set; repeated and empty prompts are dropped and counted.
        seed: another one gives another split; without effect where the field decides.
        shares: of fit, validation and test, summing to 1; the last two may be 0.

    Raises:
        EngineError: if fewer than five different prompts are left, or the shares make no sense.
    """
    _check_shares(shares)
    fields = [prompt.split.strip().casefold() for prompt in prompts]
    by_field = all(fields) and set(_PLACES) <= set(fields)
    order = {place: rank for rank, place in enumerate(_PLACES)}
    usable = [i for i, field in enumerate(fields) if not by_field or field in order]
    unique: dict[str, int] = {}
    # Which of several equal prompts stays must not depend on their order.
    for i in sorted(usable, key=lambda i: (order.get(fields[i], 3), prompts[i].text, prompts[i].id)):
        if key := normalised(prompts[i].text):
            unique.setdefault(key, i)
    if len(unique) < _LEAST:
        raise EngineError(f"The set has {len(unique)} different prompts: add some, {_LEAST} are the least to split.")
    left_out, dropped = len(prompts) - len(usable), len(usable) - len(unique)
    notes = f"; {dropped} empty or repeated prompts dropped" if dropped else ""
    if by_field:
        kept = sorted(unique.values())
        fit, validation, test = (tuple(prompts[i] for i in kept if fields[i] == place) for place in _PLACES)
        notes += f"; {left_out} prompts of other splits left out" if left_out else ""
        rule = f"the prompts' own field 'split' (fit, validation, test){notes}"
        return PromptSplit(fit, validation, test, rule, dropped, left_out)
    ranked = [prompts[unique[key]] for key in sorted(unique, key=lambda key: _digest(seed, key))]
    first, second = _cuts(len(ranked), shares)
    if any(fields):
        notes += "; the prompts' own field 'split' not used, it does not name fit, validation and test throughout"
    rule = (
        f"prompts sorted by the SHA-256 of '{seed}', a line break and the text (case-folded, white space as single "
        f"spaces, UTF-8), of {len(ranked)} the first {first} to fit, the next {second - first} to validate, "
        f"the last {len(ranked) - second} to test{notes}"
    )
    fit, validation, test = tuple(ranked[:first]), tuple(ranked[first:second]), tuple(ranked[second:])
    return PromptSplit(fit, validation, test, rule, dropped)


def split_both(
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    *,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
) -> tuple[PromptSplit, PromptSplit]:
    """Split a harmful and a harmless set, see :func:`split_prompts`.

    Raises:
        EngineError: if a prompt occurs in both sets (case and white space ignored), or one can't be split.
    """
    if shared := duplicates_across(harmful, harmless):
        first, *others = shared
        more = f" and {len(others)} more are" if others else " is"
        shown = " ".join(first.split())
        shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
        raise EngineError(f"The prompt '{shown}'{more} in both sets: remove it from one of them.")
    parts = []
    for name, prompts in (("harmful", harmful), ("harmless", harmless)):
        try:
            parts.append(split_prompts(prompts, seed=seed, shares=shares))
        except EngineError as error:
            raise EngineError(str(error).replace("The set", f"The {name} set", 1)) from None
    return parts[0], parts[1]


def joint_rule(harmful: PromptSplit, harmless: PromptSplit) -> str:
    """In words, how to get the parts of both sets again."""
    if harmful.rule == harmless.rule:
        return harmful.rule
    return f"harmful: {harmful.rule}; harmless: {harmless.rule}"


def _check_shares(shares: Sequence[float]) -> None:
    proper = len(shares) == 3 and all(0 <= share <= 1 for share in shares) and shares[0] > 0
    if not proper or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise EngineError(
            f"The shares {tuple(shares)} don't fit: give three from 0 to 1 that sum to 1, the first above 0."
        )


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()


def _cuts(count: int, shares: tuple[float, float, float]) -> tuple[int, int]:
    validating, testing = (int(share > 0) for share in shares[1:])
    first = min(max(1, math.floor(count * shares[0] + 0.5)), count - validating - testing)
    second = max(first + validating, math.floor(count * (shares[0] + shares[1]) + 0.5))
    return first, min(second, count - testing) if testing else count
