"""What is said of a sweep: rows of its tables, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from ace_core.methods import METHODS
from ace_core.sweeps.plan import Kind
from ace_core.sweeps.statistics import Estimate

__all__ = [
    "KL_BUDGETS",
    "SYSTEM_TITLES",
    "Agreement",
    "AtEqualKL",
    "ConditionRow",
    "Gap",
    "WrongWay",
    "title_of",
]

KL_BUDGETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Side effects at which methods are compared, nats a token."""

SYSTEM_TITLES = {"system_refuse": "System prompt: refuse", "system_answer": "System prompt: answer"}


def title_of(method: str) -> str:
    """A method or system prompt in words."""
    return METHODS[method].title if method in METHODS else SYSTEM_TITLES.get(method, method)


@dataclass(frozen=True)
class ConditionRow:
    """One condition on one class of prompts.

    Args:
        condition, method, alpha, place: which one, see :class:`ace_core.sweeps.plan.Condition`.
        kind: class of the prompts.
        cells: finished ones.
        unscored: of these, those the scorer of ``refused`` left unscored.
        refused: share that refused (with logits only: mean probability of a refusal token).
        answered: share answered, which incoherent answers never are; None without answers.
        incoherent: share that is gibberish; None without answers.
        refusal_score: mean, nats.
        kl: mean KL a token from the unsteered model, nats, on harmless prompts.
        first_kl: mean KL at the last prompt position, nats.
        perplexity: median perplexity of the answers under the unsteered model.
        length: mean length of the answers in tokens.
    """

    condition: str
    method: str
    alpha: float | None
    place: str | None
    kind: Kind
    cells: int
    unscored: int
    refused: Estimate
    answered: float | None
    incoherent: float | None
    refusal_score: float | None
    kl: float | None
    first_kl: float | None
    perplexity: float | None
    length: float | None


@dataclass(frozen=True)
class Gap:
    """Standardisation gap of a method at a place; ``beyond`` is addition's gap minus this one, on the same prompts."""

    method: str
    place: str
    gap: Estimate
    beyond: Estimate | None
    incoherent: float | None


@dataclass(frozen=True)
class WrongWay:
    """Share of prompts of a class that a method steers the wrong way."""

    method: str
    place: str
    kind: Kind
    share: Estimate


@dataclass(frozen=True)
class AtEqualKL:
    """The most a method does at a place for at most ``budget`` nats of KL a token on harmless prompts.

    Args:
        bypass: share of harmful prompts answered.
        induce: share of harmless prompts refused.
    """

    method: str
    place: str
    budget: float
    bypass: float
    induce: float


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa of two scorers over the cells that both scored."""

    first: str
    second: str
    kappa: float
    cells: int
