"""Greedy answers to many prompts, steered or not, and their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ace_core.activations import Progress, batches
from ace_core.arms import Arm
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.generation import Row, stream_rows
from ace_core.methods import Baseline
from ace_core.models import ChatModel
from ace_core.sampling import Sampling
from ace_core.scoring import verdict

__all__ = ["Answer", "Tally", "answer_all", "tally"]


@dataclass(frozen=True)
class Answer:
    """One greedy answer; ``ids`` ends with the stop token if the answer ended by itself."""

    prompt: str
    ids: tuple[int, ...]
    text: str

    @property
    def verdict(self) -> str:
        return verdict(self.text)


@dataclass(frozen=True)
class Tally:
    """How many answers of a set fell under each verdict."""

    count: int
    refused: int
    answered: int
    incoherent: int

    @property
    def refused_rate(self) -> float:
        return self.refused / max(1, self.count)

    @property
    def answered_rate(self) -> float:
        return self.answered / max(1, self.count)


def tally(answers: Sequence[Answer]) -> Tally:
    """Verdicts of ``answers``, counted."""
    verdicts = [answer.verdict for answer in answers]
    return Tally(len(verdicts), *(verdicts.count(kind) for kind in ("refused", "answered", "incoherent")))


def answer_all(
    model: ChatModel,
    prompts: Sequence[str],
    arms: Sequence[Arm] | None = None,
    *,
    directions: RefusalDirections | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 48,
    progress: Progress = lambda done, total: None,
    keep: Callable[[list[Answer]], None] = lambda answers: None,
) -> list[Answer]:
    """Greedy answers, in the order of ``prompts``.

    Args:
        model: a loaded model.
        prompts: what the user says.
        arms: how each prompt's answer is steered; None leaves the model alone.
        directions: fitted on ``model``; needed with arms.
        max_new_tokens: tokens an answer.
        batch_size: rows a batch.
        progress: called with (prompts done, prompts in all).
        keep: called with the answers of every batch.

    Raises:
        EngineError: for arms without directions or not one for every prompt, or an unusable prompt.
    """
    if arms is None:
        directions, arms = _anywhere(model), [Arm(Baseline(), 0)] * len(prompts)
    if directions is None or len(arms) != len(prompts):
        raise EngineError("Steered answers need vectors and one arm for every prompt.")
    sampling = Sampling(max_new_tokens=max_new_tokens)
    rows = [Row(model.encode(prompt), arm, sampling) for prompt, arm in zip(prompts, arms, strict=True)]
    out: list[Answer | None] = [None] * len(rows)
    for indices in batches([len(row.ids) for row in rows], model.recurrent, batch_size):
        ids: list[list[int]] = [[] for _ in indices]
        texts = [""] * len(indices)
        for step in stream_rows(model, directions, [rows[i] for i in indices], read=False):
            for row, token in enumerate(step.tokens):
                texts[row] += step.text[row]
                if token is not None:
                    ids[row].append(token)
        answers = [Answer(prompts[i], tuple(ids[k]), texts[k]) for k, i in enumerate(indices)]
        for i, answer in zip(indices, answers, strict=True):
            out[i] = answer
        keep(answers)
        progress(sum(answer is not None for answer in out), len(out))
    return [answer for answer in out if answer is not None]


def _anywhere(model: ChatModel) -> RefusalDirections:
    """Stand-in directions for rows that are not steered, on which nothing depends."""
    shape, none = (len(model.blocks), model.width), torch.empty(len(model.blocks), 0)
    return RefusalDirections(torch.zeros(shape), torch.ones(shape), none, none, 0)
