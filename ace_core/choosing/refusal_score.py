"""How strongly a model is about to refuse, read off the logits of its first answer token.

The refusal score of Arditi et al. (arXiv 2406.11717, appendix B) is the log-odds of starting the answer with a refusal
token. Which tokens those are is taken from the model's own refusals rather than from a list a model family.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.activations import Progress, Stopped
from ace_core.answering import Answer, answer_all
from ace_core.models import ChatModel

__all__ = ["RefusalTokens", "find_refusal_tokens", "refusal_score", "tokens_from_answers"]

_RATIO = 2.0
"""A refusal token opens at least this many times as large a share of refusals as of answers to harmless prompts."""

_LEAST_SHARE = 0.02
"""Openings rarer than this among the refusals are left out: each would bring in a word that opens many answers."""

_NEW_TOKENS = 24


@dataclass(frozen=True)
class RefusalTokens:
    """First tokens by which one model's refusals are known.

    Args:
        ids: token ids, the commonest first; empty if there are none.
        texts: the same tokens as text.
        refused: how many of the harmful prompts the model refused.
        harmful, harmless: how many prompts it was asked.
        note: one sentence where ``ids`` came from, or why it is empty.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    refused: int
    harmful: int
    harmless: int
    note: str


def refusal_score(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Log-odds ``log P - log(1 - P)`` of a refusal token, in nats, float32.

    Computed as a difference of two log-sums, so it stays exact where P rounds to 0 or 1.

    Args:
        logits: ``(..., vocabulary)`` of any float dtype, at the last prompt position.
        ids: refusal tokens; without any the score is NaN, since nothing is known rather than P = 0.

    Returns:
        Tensor ``(...)`` on the device of ``logits``.
    """
    logits = logits.float()
    if not ids:
        return torch.full(logits.shape[:-1], math.nan, device=logits.device)
    chosen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    chosen[list(ids)] = True
    inside = logits[..., chosen].logsumexp(-1)
    outside = logits[..., ~chosen].logsumexp(-1)
    return inside - outside


def tokens_from_answers(
    harmful: Sequence[Answer], harmless: Sequence[Answer], decode: Callable[[int], str] = str
) -> RefusalTokens:
    """Refusal tokens of a model from its greedy answers, see :func:`find_refusal_tokens`.

    Args:
        harmful, harmless: answers to prompts of each class.
        decode: text of a token.
    """
    refusals = Counter(answer.ids[0] for answer in harmful if answer.ids and answer.verdict == "refused")
    # over-refusals would hide the tokens that are looked for
    others = Counter(answer.ids[0] for answer in harmless if answer.ids and answer.verdict != "refused")
    refused, answered = refusals.total(), others.total()
    least = max(1, math.ceil(_LEAST_SHARE * refused))
    ids = tuple(
        token
        for token, count in sorted(refusals.items(), key=lambda item: (-item[1], item[0]))
        if count >= least and count / refused >= _RATIO * others[token] / max(1, answered)
    )
    texts = tuple(decode(token) for token in ids)
    if refused == 0:
        note = f"This model refuses none of the {len(harmful)} harmful prompts, so it has no refusal tokens."
    elif not ids:
        note = (
            f"The model's {refused} refusals start like its answers to harmless prompts, so no first token tells them "
            "apart."
        )
    else:
        shown = ", ".join(repr(text) for text in texts[:8])
        note = f"Refusal tokens {shown}: first tokens of its {refused} refusals of {len(harmful)} harmful prompts."
    return RefusalTokens(ids, texts, refused, len(harmful), len(harmless), note)


def find_refusal_tokens(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    max_new_tokens: int = _NEW_TOKENS,
    batch_size: int = 48,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RefusalTokens:
    """Tokens that open the model's own refusals at least twice as often as its answers to harmless prompts.

    Args:
        model: a loaded model, unsteered here.
        harmful, harmless: validation prompts.
        max_new_tokens: tokens an answer; enough to tell a refusal by its wording.
        batch_size: rows a batch.
        progress: called with (prompts done, prompts in all).
        cancelled: polled between batches.

    Raises:
        EngineError: for an unusable prompt. Stopped: when ``cancelled`` turns true.
    """
    total = len(harmful) + len(harmless)

    def report(base: int) -> Progress:
        def note(done: int, _: int) -> None:
            progress(base + done, total)
            if cancelled():
                raise Stopped("The search for refusal tokens was stopped.")

        return note

    found = [
        answer_all(model, texts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=report(base))
        for texts, base in ((harmful, 0), (harmless, len(harmful)))
    ]
    return tokens_from_answers(*found, decode=lambda token: model.tokenizer.decode([token]))
