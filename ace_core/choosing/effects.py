"""What steering a block does, in numbers: refusal scores, KL, COSMIC's cosines, and how the classes lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.directions import RefusalDirections
from ace_core.methods import ACE, Addition, DirectionalAblation, Method

__all__ = [
    "STEERING_PAIRS",
    "BlockEffects",
    "Effect",
    "Separability",
    "SteeringPair",
    "cosmic_blocks",
    "kl_divergence",
]


@dataclass(frozen=True)
class SteeringPair:
    """How one method takes refusals away (``bypass``) and brings them about (``induce``)."""

    bypass: Method
    induce: Method


STEERING_PAIRS: Mapping[str, SteeringPair] = {
    "ace": SteeringPair(ACE(0.0), ACE(1.0)),
    "ablation": SteeringPair(DirectionalAblation(), Addition(1.0)),
    "addition": SteeringPair(Addition(-1.0), Addition(1.0)),
}
"""Methods a block can be chosen for. Directional ablation cannot add, so it is paired with addition as in Arditi et al.
(arXiv 2406.11717); unlike there, every edit is made at the one block and not at all of them."""


@dataclass(frozen=True)
class Effect:
    """What one method does when it edits one block at all positions.

    Args:
        bypass: mean refusal score of harmful prompts under the removing edit, nats.
        induce: mean refusal score of harmless prompts under the inducing edit, nats.
        kl: mean KL divergence of harmless last-token distributions, unsteered from steered by the removing edit, nats.
        cosmic: COSMIC score (arXiv 2506.00085), the sum of two cosines: harmful prompts under the removing edit with
            harmless ones, and harmless prompts under the inducing edit with harmful ones; each side is a mean over
            prompts and :func:`cosmic_blocks` of block outputs at the last token, as in the authors' code.
    """

    bypass: float
    induce: float
    kl: float
    cosmic: float


@dataclass(frozen=True)
class Separability:
    """How one block tells the classes apart without steering, at the last prompt token.

    Args:
        auroc, d_prime: of the refusal coordinates along the block's direction, of the prompts held out when it was
            fitted (at the fitting position), or of the validation prompts if there were none.
        agreement: mean cosine with the direction of each harmful prompt's difference from the harmless mean.
        gap_ratio: class gap over the mean length of the activations.
    """

    auroc: float
    d_prime: float
    agreement: float
    gap_ratio: float


@dataclass(frozen=True)
class BlockEffects:
    """Everything measured.

    Args:
        baseline_harmful, baseline_harmless: mean refusal scores without steering, nats.
        separability: by block.
        effects: by block and method name.
    """

    baseline_harmful: float
    baseline_harmless: float
    separability: Mapping[int, Separability]
    effects: Mapping[int, Mapping[str, Effect]]


def cosmic_blocks(directions: RefusalDirections) -> tuple[int, ...]:
    """The tenth of the blocks, at least one, where the two class means have the lowest cosine (arXiv 2506.00085)."""
    cosines = torch.cosine_similarity(directions.mean_harmless, directions.mean_harmful, dim=-1)
    count = max(1, directions.blocks // 10)
    return tuple(sorted(cosines.argsort(stable=True)[:count].tolist()))


def kl_divergence(plain: Tensor, steered: Tensor) -> Tensor:
    """KL divergence of steered from plain next-token distributions, in nats; NaN where logits hold NaN.

    Args:
        plain, steered: logits ``(..., vocabulary)``.

    Returns:
        float32 tensor ``(...)``.
    """
    log_p, log_q = plain.float().log_softmax(-1), steered.float().log_softmax(-1)
    p = log_p.exp()
    # a token of probability 0 contributes nothing, however its logarithm comes out
    return (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1)
