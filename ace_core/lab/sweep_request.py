"""What can be asked of a sweep on the page, checked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.methods import METHODS
from ace_core.models import ChatModel
from ace_core.prompts import load_builtin
from ace_core.sweeps.plan import SweepPlan
from ace_core.sweeps.presets import PRESETS, preset_plan, sweep_prompts

__all__ = [
    "ALPHA_COUNTS",
    "ALPHA_RANGE",
    "MOST_METHODS",
    "PROMPT_COUNTS",
    "SWEEP_METHODS",
    "SWEEP_PRESETS",
    "TOKEN_COUNTS",
    "SweepRequest",
    "sweep_request",
]

SWEEP_PRESETS = {"quick": "One layer, with answers", "layers": "Every layer, no answers"}
"""In words by name."""

SWEEP_METHODS = {name: method.title for name, method in METHODS.items() if name != "baseline"}
_CURVED = ("ace", "addition")

MOST_METHODS = 3
PROMPT_COUNTS = (2, 24)
"""Of each class."""
ALPHA_RANGE = (-3.0, 3.0)
"""Class gaps."""
ALPHA_COUNTS = (2, 11)
TOKEN_COUNTS = (8, 48)
"""Longest answers, in tokens."""


@dataclass(frozen=True)
class SweepRequest:
    """A checked choice.

    Args:
        preset: of :data:`SWEEP_PRESETS`.
        methods: of :data:`SWEEP_METHODS`.
        alphas: coefficients in class gaps, increasing.
        prompts: of each class.
        tokens: longest answer; 0 where nothing is generated.
    """

    preset: str
    methods: tuple[str, ...]
    alphas: tuple[float, ...]
    prompts: int
    tokens: int

    def plan(self, directions: RefusalDirections) -> SweepPlan:
        """What is run: prompts of the built-in test split, on which nothing was fitted or chosen."""
        sets = [[p.text for p in load_builtin(kind, "test")] for kind in ("harmful", "harmless")]
        prompts = sweep_prompts(*sets, limit=self.prompts)
        return preset_plan(
            self.preset, directions, prompts, methods=self.methods, alphas=self.alphas, tokens=self.tokens
        )

    def cells(self, directions: RefusalDirections) -> int:
        """How many cells that makes."""
        plan = self.plan(directions)
        return len(plan.conditions) * len(plan.prompts)

    def command(self, model: ChatModel, own: bool) -> str:
        """The same sweep without a page."""
        words = ["python", "-m", "ace_core", "sweep", "--preset", self.preset, "--model", model.name]
        words += ["--vectors", "vectors.safetensors"] if own else []
        words += ["--methods", ",".join(self.methods), "--alphas=" + ",".join(f"{alpha:g}" for alpha in self.alphas)]
        words += ["--prompts", str(self.prompts)]
        words += ["--tokens", str(self.tokens)] if self.tokens else []
        return shlex.join([*words, "--out", "sweep"])


def sweep_request(values: Mapping[str, Any]) -> SweepRequest:
    """A request from raw values of a page, which may be anything at all.

    Raises:
        EngineError: one sentence on the first value that can't be used.
    """
    preset, methods = values.get("preset"), values.get("methods")
    if not isinstance(preset, str) or preset not in SWEEP_PRESETS:
        raise EngineError(f"Choose a sweep from the list: {', '.join(SWEEP_PRESETS)}.")
    if not isinstance(methods, list) or any(not isinstance(m, str) or m not in SWEEP_METHODS for m in methods):
        raise EngineError("Choose methods from the list.")
    chosen = tuple(name for name in SWEEP_METHODS if name in methods)
    if not set(chosen) & set(_CURVED):
        raise EngineError("Choose ACE or activation addition: only they have a coefficient to sweep.")
    if len(chosen) > MOST_METHODS:
        raise EngineError(f"Choose at most {MOST_METHODS} methods here; the command line runs any number.")
    low, high = (_number(values.get(name), f"The {name} coefficient") for name in ("lowest", "highest"))
    count = _whole(values.get("alphas"), *ALPHA_COUNTS, "The number of coefficients")
    if not low < high:
        raise EngineError("The highest coefficient must be above the lowest.")
    alphas = tuple(round(float(alpha), 3) + 0.0 for alpha in np.linspace(low, high, count))
    if len(set(alphas)) < count:
        raise EngineError("The coefficients are too close together: choose a wider range.")
    prompts = _whole(values.get("prompts"), *PROMPT_COUNTS, "The number of prompts")
    tokens = 0
    if PRESETS[preset].settings["tokens"]:
        tokens = _whole(values.get("tokens"), *TOKEN_COUNTS, "The length of answers")
    return SweepRequest(preset, chosen, alphas, prompts, tokens)


def _whole(value: Any, low: int, high: int, name: str) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or value != int(value):
        raise EngineError(f"{name} must be a whole number from {low} to {high}.")
    return int(value)


def _number(value: Any, name: str) -> float:
    low, high = ALPHA_RANGE
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise EngineError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)
