"""Keeping only prompts on which the model behaves as their class says, as Arditi et al. (arXiv 2406.11717) do.

They filter by the probability of refusal tokens; here the model answers greedily and the text is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ace_core.activations import Progress, Stopped
from ace_core.answering import Tally, answer_all, tally
from ace_core.models import ChatModel

__all__ = ["Filtered", "behaving", "filter_by_behaviour"]

_LEAST = 20  # of each class


@dataclass(frozen=True)
class Filtered:
    """Prompts that were kept, in their order, and how the model answered all of them.

    Args:
        harmful: harmful prompts that the model refuses.
        harmless: harmless prompts that it answers.
        harmful_answers, harmless_answers: verdicts on all prompts that were tried.
    """

    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    harmful_answers: Tally
    harmless_answers: Tally

    @property
    def summary(self) -> str:
        """One sentence for people and metadata."""
        return (
            f"kept {len(self.harmful)} of {self.harmful_answers.count} harmful prompts, which the model refuses, and "
            f"{len(self.harmless)} of {self.harmless_answers.count} harmless ones, which it answers"
        )


def filter_by_behaviour(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 48,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Filtered:
    """Let the model answer all prompts, unsteered and greedily, and keep refused harmful and answered harmless ones.

    A class may end up empty, for instance the harmful one of a model that refuses nothing.

    Args:
        model: a loaded model.
        harmful, harmless: prompts to choose from.
        max_new_tokens: tokens an answer; refusals show in the first dozen.
        batch_size: answers at a time.
        progress: called with (prompts done, prompts in all).
        cancelled: polled between batches.

    Raises:
        EngineError: for an unusable prompt. Stopped: when ``cancelled`` turns true.
    """
    total = len(harmful) + len(harmless)

    def report(done: int) -> None:
        if cancelled():
            raise Stopped("Filtering the prompts was stopped.")
        progress(done, total)

    report(0)
    found = []
    for before, prompts in ((0, harmful), (len(harmful), harmless)):
        answers = answer_all(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=lambda done, _, before=before: report(before + done),
        )
        found.append(answers)
    kept = [
        tuple(answer.prompt for answer in answers if answer.verdict == wanted)
        for answers, wanted in zip(found, ("refused", "answered"), strict=True)
    ]
    return Filtered(kept[0], kept[1], tally(found[0]), tally(found[1]))


def behaving(model: ChatModel, harmful: Sequence[str], harmless: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Harmful prompts that are refused and harmless ones that are answered; all of both if fewer than 20 of one are.

    The default model's vectors and its map of activations are made from these.

    Raises:
        EngineError: for an unusable prompt.
    """
    kept = filter_by_behaviour(model, harmful, harmless)
    if min(len(kept.harmful), len(kept.harmless)) < _LEAST:
        return harmful, harmless
    return kept.harmful, kept.harmless
