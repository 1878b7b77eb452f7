"""Choosing the block to steer: measure every candidate on validation prompts, then apply the rules.

Measuring every block on every prompt is what takes time. With a screen, every block is first tried on a few prompts,
and only the best ones by the same rules are measured on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ace_core.choosing.block_effects import measure_blocks
from ace_core.choosing.effects import STEERING_PAIRS, BlockEffects, Effect, Separability
from ace_core.choosing.layer_choice import DEFAULT_THRESHOLDS, BlockScore, Thresholds, choose_layer
from ace_core.choosing.refusal_score import RefusalTokens, find_refusal_tokens
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.models import ChatModel
from ace_core.prompts import evenly

__all__ = ["FINALISTS", "SCREEN", "Candidate", "Selection", "Thresholds", "select_from_effects", "select_layer"]

Progress = Callable[[str, float | None], None]

SCREEN = 8
"""Prompts a class that tell good blocks from hopeless ones."""

FINALISTS = 6
"""Blocks that are measured on all prompts after a screen."""


@dataclass(frozen=True)
class Candidate:
    """One block with everything measured on it.

    Args:
        block: 0-based decoder block.
        separability: how it tells the classes apart without steering.
        effects: what steering it does, by method name.
        passed: whether it keeps all limits asked for.
        reason: why it is not recommended; empty for the recommended one.
        screened: it was measured on the few prompts of a screen only.
    """

    block: int
    separability: Separability
    effects: Mapping[str, Effect]
    passed: bool
    reason: str
    screened: bool = False


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
    screen: int = 0,
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
        screen: prompts a class on which every candidate is tried first, so that only the best :data:`FINALISTS` are
            measured on all prompts; 0 measures every candidate on all. Without effect where it would save nothing.
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
    names, ids = list(dict.fromkeys((method, *also))), tokens.ids

    def measure(texts: tuple[Sequence[str], Sequence[str]], some: Sequence[int]) -> BlockEffects:
        return measure_blocks(
            model, directions, *texts, ids, names, some, batch_size=batch_size, progress=progress, cancelled=cancelled
        )

    every = harmful, harmless
    if not 0 < screen < max(map(len, every)) or len(chosen) <= FINALISTS:
        return select_from_effects(measure(every, chosen), directions.blocks, tokens, method, thresholds)
    few = evenly(harmful, screen), evenly(harmless, screen)
    progress(f"Trying every block on {len(few[0])} harmful and {len(few[1])} harmless prompts first", None)
    tried = measure(few, chosen)
    finalists = _best(tried, directions.blocks, method, thresholds)
    progress(f"Measuring blocks {', '.join(map(str, finalists))} on all prompts", None)
    first = select_from_effects(tried, directions.blocks, tokens, method, thresholds)
    last = select_from_effects(measure(every, finalists), directions.blocks, tokens, method, thresholds)
    return _merged(first, last)


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
    choice = choose_layer(_scores(measured, method), blocks, thresholds)
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


def _scores(measured: BlockEffects, method: str) -> list[BlockScore]:
    scores = []
    for block, effects in measured.effects.items():
        e, apart = effects[method], measured.separability[block]
        scores.append(BlockScore(block, e.bypass, e.induce, e.kl, e.cosmic, apart.d_prime))
    return scores


def _best(measured: BlockEffects, blocks: int, method: str, thresholds: Thresholds) -> list[int]:
    """The blocks that the rules would choose one after another, ascending."""
    left, best = _scores(measured, method), []
    while left and len(best) < FINALISTS:
        best.append(choose_layer(left, blocks, thresholds).block)
        left = [score for score in left if score.block != best[-1]]
    return sorted(best)


def _merged(first: Selection, last: Selection) -> Selection:
    """The selection among finalists, with the others as the screen found them."""
    final = {candidate.block: candidate for candidate in last.candidates}
    screened = [
        replace(candidate, reason=f"Left out on the first prompts: {candidate.reason}", screened=True)
        for candidate in first.candidates
        if candidate.block not in final
    ]
    candidates = sorted([*screened, *final.values()], key=lambda candidate: candidate.block)
    reason = f"{last.reason} It is one of {len(final)} blocks measured on all prompts, after a trial of all on a few."
    return replace(last, candidates=tuple(candidates), reason=reason)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
