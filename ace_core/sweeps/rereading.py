"""Reading prompt and answer once more, steered or not, for what a model would have said at every answer token."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ace_core.activations import batches
from ace_core.arms import Arm
from ace_core.choosing.effects import kl_divergence
from ace_core.directions import RefusalDirections
from ace_core.interventions import Plan
from ace_core.models import ChatModel

__all__ = ["answer_kl", "answer_perplexity"]

_LOGIT_BYTES = 128 << 20
"""Most memory that one batch's logits take."""


def answer_perplexity(
    model: ChatModel,
    directions: RefusalDirections,
    arm: Arm,
    texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    batch_rows: int = 32,
) -> list[float]:
    """Perplexity a token of answers ``(prompt ids, answer ids)`` under one arm; NaN for empty answers."""
    out = [float("nan")] * len(texts)
    rows = [(prompt, answer, arm) for prompt, answer in texts]
    for i, logits in _reread(model, directions, rows, batch_rows):
        target = torch.tensor(texts[i][1])
        losses = torch.nn.functional.cross_entropy(logits, target, reduction="mean")
        out[i] = float(losses.exp())
    return out


def answer_kl(
    model: ChatModel,
    directions: RefusalDirections,
    plain: Arm,
    arms: Sequence[Arm],
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
    batch_rows: int = 32,
) -> list[float]:
    """Mean KL divergence a token of every arm's next-token distributions from the ``plain`` arm's, nats.

    All arms read the same text, the unsteered answer, so that what is compared is predictions and not texts.

    Returns:
        One number an arm, NaN for an empty answer.
    """
    out = [float("nan")] * len(arms)
    if not answer:
        return out
    rows = [(prompt, answer, arm) for arm in (plain, *arms)]
    reference: Tensor | None = None
    for i, logits in _reread(model, directions, rows, batch_rows):
        if reference is None:  # rows of equal length keep their order
            reference = logits
        else:
            out[i - 1] = float(kl_divergence(reference, logits).mean())
    return out


@torch.inference_mode()
def _reread(
    model: ChatModel,
    directions: RefusalDirections,
    rows: Sequence[tuple[tuple[int, ...], tuple[int, ...], Arm]],
    batch_rows: int,
) -> Iterator[tuple[int, Tensor]]:
    """Row number and float32 logits ``(answer tokens, vocabulary)`` on the CPU that predict each answer token."""
    some = [i for i, (_, answer, _) in enumerate(rows) if answer]
    if not some:
        return
    longest = max(len(rows[i][1]) for i in some)
    vocabulary = model.network.get_output_embeddings().weight.shape[0] if _has_weight(model) else 50_000
    size = max(1, min(batch_rows if model.batched else 1, _LOGIT_BYTES // (4 * vocabulary * (longest + 1))))
    lengths = [len(rows[i][0]) + len(rows[i][1]) for i in some]
    for group in batches(lengths, model.recurrent, size):
        members = [some[k] for k in group]
        logits = _logits(model, directions, [rows[i] for i in members])
        for row, i in enumerate(members):
            count = len(rows[i][1])
            yield i, logits[row, -count - 1 : -1].float().cpu()


def _has_weight(model: ChatModel) -> bool:
    head = model.network.get_output_embeddings()
    return getattr(head, "weight", None) is not None


def _logits(
    model: ChatModel, directions: RefusalDirections, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...], Arm]]
) -> Tensor:
    """Logits of one left-padded batch at its last positions, ``(B, longest answer + 1 or more, vocabulary)``."""
    texts = [[*prompt, *answer] for prompt, answer, _ in rows]
    # up to the first edited block rows of one text are one row, which the edit itself turns into several
    shared = model.shares_prompts and all(text == texts[0] for text in texts)
    read = 1 if shared else len(rows)
    longest = max(map(len, texts))
    pads = torch.tensor([longest - len(text) for text in texts], device=model.device).unsqueeze(1)
    ids = torch.tensor([[model.pad_id] * (longest - len(text)) + text for text in texts], device=model.device)
    columns = torch.arange(longest, device=model.device).unsqueeze(0)
    positions = columns - pads
    accepted = _accepted(model.network.forward)
    inputs: dict[str, Any] = {"input_ids": ids[:read], "use_cache": False}
    if bool((pads > 0).any()):
        inputs["attention_mask"] = (columns >= pads).long()
    if "position_ids" in accepted:
        inputs["position_ids"] = positions[:read].clamp(min=0)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = max(len(answer) for _, answer, _ in rows) + 1
    plan = Plan(directions, [arm for _, _, arm in rows], [len(prompt) for prompt, _, _ in rows], read=False)
    with plan.applied(model.blocks, positions):
        logits = model.network(**inputs).logits
    return logits.expand(len(rows), -1, -1)


def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
