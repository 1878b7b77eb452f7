"""Choosing the block to steer: measure every candidate on validation prompts, then apply the rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ace_core.choosing.block_effects import measure_blocks
from ace_core.choosing.effects import STEERING_PAIRS, BlockEffects, Effect, Separability
from ace_core.choosing.layer_choice import DEFAULT_THRESHOLDS, BlockScore, Thresholds, choose_layer
from ace_core.choosing.refusal_score import RefusalTokens, find_refusal_tokens
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.models import ChatModel

__all__ = ["Candidate", "Selection", "Thresholds", "select_from_effects", "select_layer"]

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Candidate:
    """One block with everything measured on it.

    Args:
        block: 0-based decoder block.
        separability: how it tells the classes apart without steering.
        effects: what steering it does, by method name.
        passed: whether it keeps all limits asked for.
        reason: why it is not recommended; empty for the recommended one.
    """

    block: int
    separability: Separability
    effects: Mapping[str, Effect]
    passed: bool
    reason: str


@dataclass(frozen=True)
class Selection:
    """Every candidate with its numbers, and exactly one recommendation.

    Args:
        method: what the recommendation is for, see :data:`ace_core.choosing.effects.STEERING_PAIRS`.
        recommended: 0-based decoder block.
        reason: why, in words.
        relaxed: one sentence a step by which limits gave way; empty if they held.
        criterion: number that decided: ``bypass``, ``cosmic``, ``d_prime`` or ``depth``.
        candidates: in the order of blocks.
        thresholds: limits asked for.
        tokens: refusal tokens the scores were read with.
        baseline_harmful, baseline_harmless: mean refusal scores without steering, nats.
    """

    method: str
    recommended: int
    reason: str
    relaxed: tuple[str, ...]
    criterion: str
    candidates: tuple[Candidate, ...]
    thresholds: Thresholds
    tokens: RefusalTokens
    baseline_harmful: float
    baseline_harmless: float

    def to_json(self) -> dict[str, Any]:
        """Plain data without NaN or infinity, which JSON lacks; they become None."""
        return _plain(asdict(self))


def select_layer(
    model: ChatModel,
    directions: RefusalDirections,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    method: str = "ace",
    also: Sequence[str] = ("ace", "ablation"),
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    blocks: Sequence[int] | None = None,
    tokens: RefusalTokens | None = None,
    batch_size: int = 16,
    progress: Progress = lambda message, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Selection:
    """Measure every candidate block on validation prompts and recommend the one where ``method`` works.

    Args:
        model: a loaded model.
        directions: fitted on it.
        harmful, harmless: prompts that were not used in fitting.
        method: ``ace``, ``ablation`` (with addition to bring refusals about) or ``addition``.
        also: further methods to measure, for comparison.
        thresholds: limits a block has to keep.
        blocks: candidates; None takes all.
        tokens: refusal tokens if already known; None finds them on the same prompts.
        batch_size: rows a forward pass.
        progress: called with a sentence and a fraction or None.
        cancelled: polled between batches.

    Raises:
        EngineError: for an unknown method, no prompts, blocks outside the model or directions of another model.
        Stopped: when ``cancelled`` turns true.
    """
    for name in (method, *also):
        if name not in STEERING_PAIRS:
            raise EngineError(f"No block can be chosen for '{name[:40]}': use one of {', '.join(STEERING_PAIRS)}.")
    if not harmful or not harmless:
        raise EngineError("Choosing a block needs harmful and harmless validation prompts: give at least one of each.")
    model.accepts(directions)
    chosen = sorted(set(range(directions.blocks) if blocks is None else blocks))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < directions.blocks:
        raise EngineError(f"Choose candidate blocks from 0 to {directions.blocks - 1}, at least one.")
    if tokens is None:
        message = "Looking for the model's refusal tokens"
        tokens = find_refusal_tokens(
            model, harmful, harmless, progress=lambda done, total: progress(message, done / total), cancelled=cancelled
        )
        progress(tokens.note, None)
    measured = measure_blocks(
        model,
        directions,
        harmful,
        harmless,
        tokens.ids,
        list(dict.fromkeys((method, *also))),
        chosen,
        batch_size=batch_size,
        progress=progress,
        cancelled=cancelled,
    )
    return select_from_effects(measured, directions.blocks, tokens, method, thresholds)


def select_from_effects(
    measured: BlockEffects,
    blocks: int,
    tokens: RefusalTokens,
    method: str = "ace",
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Selection:
    """Apply the rules to what was measured; runs no model, so other methods and limits can be tried at no cost.

    Args:
        measured: effects of ``method`` among others.
        blocks: number of blocks in the model.
        tokens: refusal tokens the scores were read with.
        method: what the recommendation is for.
        thresholds: limits.

    Raises:
        EngineError: if ``method`` was not measured.
    """
    if not all(method in effects for effects in measured.effects.values()):
        raise EngineError(f"The method '{method[:40]}' was not measured: measure it first.")
    scores = []
    for block, effects in measured.effects.items():
        e = effects[method]
        d_prime = measured.separability[block].d_prime
        scores.append(BlockScore(block, e.bypass, e.induce, e.kl, e.cosmic, d_prime))
    choice = choose_layer(scores, blocks, thresholds)
    reason = choice.reason
    if choice.criterion == "bypass":
        reason += (
            f" Without steering harmful prompts score {measured.baseline_harmful:+.2f} and harmless ones "
            f"{measured.baseline_harmless:+.2f}."
        )
    elif not tokens.ids:
        reason = f"{tokens.note} {reason}"
    candidates = tuple(
        Candidate(block, measured.separability[block], effects, block in choice.passed, choice.rejected.get(block, ""))
        for block, effects in sorted(measured.effects.items())
    )
    return Selection(
        method,
        choice.block,
        reason,
        choice.relaxed,
        choice.criterion,
        candidates,
        thresholds,
        tokens,
        measured.baseline_harmful,
        measured.baseline_harmless,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
