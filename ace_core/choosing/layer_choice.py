"""Choosing one block from a table of measured effects: pure rules, no model.

The rules are those of Arditi et al. (arXiv 2406.11717, appendix C): drop blocks without numbers, the last fifth of the
model, those whose edit changes harmless prompts too much and those that cannot bring a refusal about; the lowest bypass
score of the rest wins. Where nothing is left their tool stops with an assertion; here limits give way one step at a
time, and each step is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ace_core.errors import EngineError

__all__ = ["DEFAULT_THRESHOLDS", "BlockScore", "Choice", "Criterion", "Thresholds", "choose_layer"]

Criterion = Literal["bypass", "cosmic", "d_prime", "depth"]
_DOUBLINGS = 4
_NAN = math.nan


@dataclass(frozen=True)
class Thresholds:
    """Limits a block has to keep.

    Args:
        kl: largest mean KL divergence of harmless last-token distributions under the edit, nats.
        induce: smallest mean refusal score of harmless prompts under the inducing edit; 0 means even odds.
        last: share of the model's last blocks left out, because they already choose the next token.

    Raises:
        EngineError: for limits that make no sense.
    """

    kl: float = 0.1
    induce: float = 0.0
    last: float = 0.2

    def __post_init__(self) -> None:
        if not self.kl >= 0:
            raise EngineError("The KL limit must be a number from 0 upwards, in nats.")
        if math.isnan(self.induce) or self.induce == math.inf:
            raise EngineError("The induce limit must be a number: 0 means even odds of a refusal.")
        if not 0 <= self.last < 1:
            raise EngineError("The share of last blocks left out must be from 0 up to, not including, 1.")

    def first_excluded(self, blocks: int) -> int:
        """First of the last blocks left out, in a model of ``blocks`` blocks."""
        return int(blocks * (1 - self.last) + 1e-9)


DEFAULT_THRESHOLDS = Thresholds()
"""The limits of Arditi et al."""


@dataclass(frozen=True)
class BlockScore:
    """What steering one block does; NaN for what could not be measured.

    ``bypass`` and ``induce`` are mean refusal scores (nats), ``kl`` is in nats, ``cosmic`` a sum of two cosines,
    ``d_prime`` the held-out separation.
    """

    block: int
    bypass: float = _NAN
    induce: float = _NAN
    kl: float = _NAN
    cosmic: float = _NAN
    d_prime: float = _NAN


@dataclass(frozen=True)
class Choice:
    """The chosen block and why.

    Args:
        block: the recommendation.
        criterion: which number decided.
        reason: one or two sentences on the recommendation.
        rejected: for every other block, by number, why not; reasons refer to the limits asked for.
        passed: blocks that keep all limits asked for.
        relaxed: one sentence a step by which limits gave way; empty if they held.
    """

    block: int
    criterion: Criterion
    reason: str
    rejected: dict[int, str]
    passed: frozenset[int]
    relaxed: tuple[str, ...] = ()


def choose_layer(scores: Sequence[BlockScore], blocks: int, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> Choice:
    """The block with the lowest bypass score among those that keep the limits; see the module for the order of rules.

    Without refusal scores anywhere the highest COSMIC score decides under the same KL and depth rules, without that
    the largest d', without that the depth alone. Ties go to the lower KL, then to the earlier block. The order of
    ``scores`` does not matter.

    Args:
        scores: one a candidate block, at least one, no block twice.
        blocks: number of blocks in the model.
        thresholds: limits.

    Raises:
        EngineError: without candidates, or for blocks that repeat or lie outside the model.
    """
    numbers = [score.block for score in scores]
    if not scores or len(set(numbers)) != len(numbers) or not all(0 <= n < blocks for n in numbers):
        raise EngineError(f"Give each candidate block once, from 0 to {blocks - 1}, and at least one.")
    criterion = _criterion(scores)
    failures = {score.block: _failure(score, blocks, thresholds, criterion) for score in scores}
    passed = frozenset(block for block, problem in failures.items() if not problem)
    left = [score for score in scores if score.block in passed]
    steps: dict[str, str] = {}
    if not left:
        for stage, limits, step in _relaxations(thresholds, criterion):
            left = [score for score in scores if not _failure(score, blocks, limits, criterion)]
            # of several limits that let nothing through, the loosest is told
            steps[stage] = f"{step} {_count(left)} left."
            if left:
                break
    best = min(left, key=lambda score: _rank(score, blocks, criterion))
    rejected = {
        score.block: failures[score.block] or _lost(score, best, blocks, criterion)
        for score in sorted(scores, key=lambda s: s.block)
        if score.block != best.block
    }
    reason = _reason(best, criterion, len(left), failures[best.block], bool(steps))
    return Choice(best.block, criterion, reason, rejected, passed, tuple(steps.values()))


def _criterion(scores: Sequence[BlockScore]) -> Criterion:
    """The best measured criterion: one that at least one block has all numbers for."""
    for name in ("bypass", "cosmic"):
        if any(all(map(math.isfinite, _needed(score, name))) for score in scores):
            return name
    return "d_prime" if any(not math.isnan(score.d_prime) for score in scores) else "depth"


def _needed(score: BlockScore, criterion: Criterion) -> tuple[float, ...]:
    return {
        "bypass": (score.bypass, score.induce, score.kl),
        "cosmic": (score.cosmic, score.kl),
        "d_prime": (score.d_prime,),
        "depth": (),
    }[criterion]


def _failure(score: BlockScore, blocks: int, limits: Thresholds, criterion: Criterion) -> str:
    """The first rule the block breaks, in words; empty if none."""
    needed = _needed(score, criterion)
    # d' is infinite where the classes do not overlap at all
    if any(map(math.isnan, needed)) or (criterion != "d_prime" and not all(map(math.isfinite, needed))):
        return "Its numbers are not finite or could not be measured."
    first = limits.first_excluded(blocks)
    if score.block >= first:
        return f"It is among the last blocks, {first} to {blocks - 1}, which already choose the next token."
    if criterion in ("d_prime", "depth"):
        return ""
    if score.kl > limits.kl:
        return f"Its edit changes harmless prompts too much: KL {score.kl:.3g} above {limits.kl:.3g} nats."
    if criterion == "bypass" and score.induce < limits.induce:
        return (
            f"It does not bring refusals about: harmless prompts score {score.induce:+.2f} under the inducing edit, "
            f"below {limits.induce:+.2f}."
        )
    return ""


def _relaxations(asked: Thresholds, criterion: Criterion) -> Iterator[tuple[str, Thresholds, str]]:
    """Looser and looser limits: stage, limits and what is given up; the last lets every measured block through."""
    first = max(asked.kl, 0.01)
    doubled = [first * 2**n for n in range(1, _DOUBLINGS + 1)] if math.isfinite(first) else []
    if criterion in ("bypass", "cosmic"):
        for kl in doubled:
            limits = replace(asked, kl=kl)
            yield "KL", limits, f"No block keeps all limits, so KL up to {kl:.3g} nats is let through:"
    if criterion == "bypass":
        free = replace(asked, induce=-math.inf)
        yield "induce", free, f"The induce limit is dropped instead, with KL up to {asked.kl:.3g} nats as asked:"
        for kl in doubled:
            yield "both", replace(free, kl=kl), f"KL up to {kl:.3g} nats is let through as well:"
    free = replace(asked, kl=math.inf, induce=-math.inf)
    if criterion in ("bypass", "cosmic"):
        yield "no KL", free, "The KL limit is dropped too:"
    yield "last", replace(free, last=0.0), "The last blocks are let in as well:"


def _rank(score: BlockScore, blocks: int, criterion: Criterion) -> tuple[float, float, int]:
    cost = {
        "bypass": score.bypass,
        "cosmic": -score.cosmic,
        "d_prime": -score.d_prime,
        "depth": abs(score.block - 2 * blocks / 3),
    }[criterion]
    return cost, score.kl if math.isfinite(score.kl) else math.inf, score.block


_NAMES = {"bypass": "bypass score", "cosmic": "COSMIC score", "d_prime": "d′", "depth": "depth"}


def _shown(score: BlockScore, criterion: Criterion) -> str:
    if criterion == "depth":
        return f"depth {score.block}"
    return {"bypass": f"{score.bypass:+.2f}", "cosmic": f"{score.cosmic:.3f}", "d_prime": f"{score.d_prime:.2f}"}[
        criterion
    ]


def _value(score: BlockScore, criterion: Criterion) -> str:
    return "depth" if criterion == "depth" else f"{_NAMES[criterion]} {_shown(score, criterion)}"


def _lost(score: BlockScore, best: BlockScore, blocks: int, criterion: Criterion) -> str:
    tie = _rank(score, blocks, criterion)[0] == _rank(best, blocks, criterion)[0]
    how = "is as good, with a lower KL or earlier" if tie else f"is better than its {_shown(score, criterion)}"
    return f"It keeps all limits, but the {_value(best, criterion)} of block {best.block} {how}."


def _count(left: Sequence[BlockScore]) -> str:
    return {0: "none", 1: "1 block"}.get(len(left), f"{len(left)} blocks")


def _reason(best: BlockScore, criterion: Criterion, left: int, failure: str, relaxed: bool) -> str:
    among = f"of the {left} blocks" if left > 1 else "the only block"
    kept = "let through by the relaxed limits" if relaxed else f"that {'keep' if left > 1 else 'keeps'} all limits"
    how = {
        "bypass": f"lowest bypass score ({best.bypass:+.2f}), harmless prompts score {best.induce:+.2f} under the "
        f"inducing edit, KL {best.kl:.3g} nats",
        "cosmic": f"highest COSMIC score ({best.cosmic:.3f}), KL {best.kl:.3g} nats; there are no refusal scores to go "
        "by",
        "d_prime": f"largest d′ ({best.d_prime:.2f}); the effect of steering could not be measured",
        "depth": "nearest to two thirds of the depth; nothing could be measured",
    }[criterion]
    own = f" At the limits asked for: {failure}" if failure else ""
    return f"Block {best.block}, {among} {kept}: {how}.{own}"
