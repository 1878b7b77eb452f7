"""Scorers: what is said about a finished cell, cheapest first, each behind one protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ace_core.choosing.effects import kl_divergence
from ace_core.choosing.refusal_score import refusal_score
from ace_core.directions import RefusalDirections
from ace_core.models import ChatModel
from ace_core.scoring import verdict
from ace_core.sweeps.plan import Cell, Condition, Kind
from ace_core.sweeps.rereading import answer_kl, answer_perplexity

__all__ = ["LogitScorer", "PerplexityScorer", "PhraseScorer", "Scorer", "Scores", "TokenKL", "Work", "finite"]

Scores = dict[str, Any]

INCOHERENT_SHARE = 0.5
"""An answer is incoherent if a token of it surprises the unsteered model by more than this share of log(vocabulary),
what a token drawn blindly costs."""

_LEAST_TOKENS = 4


@dataclass
class Work:
    """One cell on its way to being finished.

    Args:
        cell: which one.
        kind: class of its prompt.
        request: what the user says.
        prompt: token ids, system prompt included.
        answer: token ids; empty where none was generated.
        text: of the answer.
        stop: why the answer ended; None where none was generated.
        logits: ``(vocabulary,)`` at the last prompt position, or None.
        scores: what scorers before said.
    """

    cell: Cell
    kind: Kind
    request: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    text: str = ""
    stop: str | None = None
    logits: Tensor | None = None
    scores: Scores = field(default_factory=dict)


class Scorer(Protocol):
    """Says something about cells. Values are numbers, words, or None for what could not be scored."""

    def score(self, works: Sequence[Work]) -> list[Scores]:
        """Scores of every cell, in their order; they are added to :attr:`Work.scores`."""
        ...


def finite(value: float) -> float | None:
    """A number as JSON knows it: None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class LogitScorer:
    """Refusal score at the last prompt position, nats, and KL divergence there from the unsteered model.

    Args:
        refusal_ids: tokens that open refusals; without any there is no refusal score.
        baseline: unsteered logits of every prompt, by its number in the plan.
    """

    refusal_ids: tuple[int, ...]
    baseline: Mapping[int, Tensor]

    def score(self, works: Sequence[Work]) -> list[Scores]:
        out: list[Scores] = []
        for work in works:
            if work.logits is None:
                out.append({"refusal_score": None, "first_kl": None})
                continue
            score = float(refusal_score(work.logits, self.refusal_ids))
            kl = float(kl_divergence(self.baseline[work.cell.prompt], work.logits))
            out.append({"refusal_score": finite(score), "first_kl": finite(kl)})
        return out


@dataclass(frozen=True)
class PerplexityScorer:
    """Perplexity of the answer under the unsteered model, given the prompt without a system prompt."""

    model: ChatModel
    directions: RefusalDirections
    prompts: Sequence[tuple[int, ...]]

    def score(self, works: Sequence[Work]) -> list[Scores]:
        texts = [(self.prompts[work.cell.prompt], work.answer) for work in works]
        found = answer_perplexity(self.model, self.directions, Condition("baseline").arm, texts)
        return [{"perplexity": finite(value)} for value in found]


@dataclass(frozen=True)
class PhraseScorer:
    """Verdict from the answer's words, and its length; gibberish is a class of its own.

    Args:
        vocabulary: number of tokens, for what counts as gibberish where perplexity was measured.
    """

    vocabulary: int

    def score(self, works: Sequence[Work]) -> list[Scores]:
        out: list[Scores] = []
        for work in works:
            perplexity = work.scores.get("perplexity")
            gibberish = (
                perplexity is not None
                and len(work.answer) >= _LEAST_TOKENS
                and math.log(perplexity) > INCOHERENT_SHARE * math.log(self.vocabulary)
            )
            broken = gibberish or work.stop == "nan"
            out.append({"verdict": "incoherent" if broken else verdict(work.text), "length": len(work.answer)})
        return out


@dataclass(frozen=True)
class TokenKL:
    """KL divergence a token from the unsteered model along its own answer, on harmless prompts; None on others.

    Args:
        answers: the unsteered model's answers to harmless prompts, by the prompt's number in the plan.
        prompts: token ids of every prompt.
    """

    model: ChatModel
    directions: RefusalDirections
    prompts: Sequence[tuple[int, ...]]
    answers: Mapping[int, tuple[int, ...]]

    def score(self, works: Sequence[Work]) -> list[Scores]:
        out: list[Scores] = [{"kl": None} for _ in works]
        by_prompt: dict[int, list[int]] = {}
        for i, work in enumerate(works):
            # a system prompt changes what is read, so its predictions are not a steered version of the plain ones
            if work.kind == "harmless" and work.cell.condition.system is None:
                by_prompt.setdefault(work.cell.prompt, []).append(i)
        for prompt, members in by_prompt.items():
            found = answer_kl(
                self.model,
                self.directions,
                Condition("baseline").arm,
                [works[i].cell.condition.arm for i in members],
                self.prompts[prompt],
                self.answers.get(prompt, ()),
            )
            for i, value in zip(members, found, strict=True):
                out[i]["kl"] = finite(value)
        return out
