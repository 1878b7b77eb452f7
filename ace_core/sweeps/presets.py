"""Sweeps to start from: the paper's experiment, a quick look, and a map of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.prompts import evenly, load_builtin
from ace_core.sweeps.plan import Kind, Place, SweepPlan, SweepPrompt

__all__ = ["PRESETS", "Preset", "preset_plan", "sweep_prompts"]


@dataclass(frozen=True)
class Preset:
    """Settings of a plan, less what depends on the model.

    Args:
        summary: one sentence.
        prompts: of each class.
        settings: fields of :class:`ace_core.sweeps.plan.SweepPlan`.
        places: from the directions.
    """

    summary: str
    prompts: int
    settings: dict[str, Any]
    places: Callable[[RefusalDirections], tuple[Place, ...]]


def _recommended(directions: RefusalDirections) -> tuple[Place, ...]:
    return (Place(directions.recommended_layer),)


def _every(directions: RefusalDirections) -> tuple[Place, ...]:
    return tuple(Place(layer) for layer in range(directions.blocks))


def _grid(low: float, high: float, step: float) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in np.arange(low, high + step / 2, step))


PRESETS: dict[str, Preset] = {
    # 25 prompts a class, answers of 50 tokens drawn at temperature 1 without a cut: steer.py of the public code of
    # arXiv 2411.09003 (20 answers a prompt there; 4 here, --samples sets it)
    "paper": Preset(
        "The paper's experiment: ACE, addition and both ablations, answers of 50 tokens drawn at temperature 1.",
        25,
        {
            "methods": ("ace", "addition", "ablation", "affine_ablation"),
            "alphas": _grid(-1.5, 2.5, 0.5),
            "tokens": 50,
            "temperature": 1.0,
            "samples": 4,
            "scorers": ("logit", "phrase", "perplexity", "kl"),
        },
        _recommended,
    ),
    "quick": Preset(
        "A look of two minutes: ACE, addition and both ablations, short greedy answers.",
        12,
        {
            "methods": ("ace", "addition", "ablation", "affine_ablation"),
            "alphas": _grid(-1.0, 2.0, 0.5),
            "tokens": 16,
            "scorers": ("logit", "phrase", "kl"),
        },
        _recommended,
    ),
    "layers": Preset(
        "A map of every layer and nine coefficients by refusal score, without answers.",
        16,
        {
            "methods": ("ace", "addition"),
            "alphas": _grid(-2.0, 2.0, 0.5),
            "tokens": 0,
            "scorers": ("logit",),
            "system_prompts": False,
        },
        _every,
    ),
}
"""By name."""


def sweep_prompts(harmful: Sequence[str], harmless: Sequence[str], limit: int | None = None) -> tuple[SweepPrompt, ...]:
    """Prompts of both classes for a plan, each text once.

    Raises:
        EngineError: if a text is in both classes, or a class is empty.
    """
    sets: dict[Kind, Sequence[str]] = {"harmful": harmful, "harmless": harmless}
    out: list[SweepPrompt] = []
    for kind, given in sets.items():
        texts = list(dict.fromkeys(given))
        if not texts:
            raise EngineError(f"The sweep has no {kind} prompts: add some.")
        out += [SweepPrompt(kind, text) for text in (texts if limit is None else evenly(texts, limit))]
    if both := set(harmful) & set(harmless):
        raise EngineError(f"The prompt '{min(both)[:80]}' is in both classes: remove it from one of them.")
    return tuple(out)


def preset_plan(
    name: str, directions: RefusalDirections, prompts: Sequence[SweepPrompt] | None = None, **changes: Any
) -> SweepPlan:
    """The plan of a preset for a model.

    Args:
        name: a key of :data:`PRESETS`.
        directions: of the model.
        prompts: None takes some of the built-in test split, on which nothing was fitted or chosen.
        changes: fields of the plan to set otherwise.

    Raises:
        EngineError: for an unknown preset or changes that make no sense.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise EngineError(f"Unknown preset '{name[:40]}': choose one of {', '.join(PRESETS)}.")
    if prompts is None:
        sets = [[p.text for p in load_builtin(kind, "test")] for kind in ("harmful", "harmless")]
        prompts = sweep_prompts(*sets, limit=preset.prompts)
    settings = {"places": preset.places(directions), "prompts": tuple(prompts), "name": name, **preset.settings}
    return SweepPlan(**{**settings, **changes})
