"""Figures of a sweep, finished or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ace_core.plots.style import Figure
from ace_core.plots.sweep_costs import CostLine, equal_costs
from ace_core.plots.sweeps import Band, GapBar, MapPanel, alpha_curves, gap_bars, layer_maps
from ace_core.sweeps.findings import KL_BUDGETS, title_of
from ace_core.sweeps.plan import KINDS, Place
from ace_core.sweeps.summary import SweepSummary, mean_map, steered_curve, unsteered

__all__ = ["COSTS_TITLE", "GAPS_TITLE", "Picture", "sweep_figures"]

COSTS_TITLE, GAPS_TITLE = "Methods at equal side effects", "Standardisation gap"

_FEW_PLACES = 3


@dataclass(frozen=True)
class Picture:
    """A figure with a title and what it shows."""

    title: str
    caption: str
    figure: Figure


def sweep_figures(summary: SweepSummary, gaps: bool = True) -> list[Picture]:
    """Figures of a sweep, finished or not: curves, a map where there are many places, methods at equal KL, gaps.

    Args:
        summary: of the sweep.
        gaps: also draw side effects and gaps, whose intervals take seconds where there are many places.
    """
    plan, alphas = summary.plan, np.array(summary.plan.alphas)
    told = {
        "logit": "the mean probability of a refusal token at the last prompt position",
        "phrase": "the share of answers that open with a refusal",
        "judge": "the share of answers that the judge calls a refusal",
    }[summary.scorer]
    out: list[Picture] = []
    if summary.scaled and len(plan.places) <= _FEW_PLACES:
        out += [_curves(summary, place, alphas, told) for place in plan.places]
    if summary.scaled and len(plan.places) > 1:
        for method in summary.scaled:
            panels = [MapPanel(f"{kind} prompts", mean_map(summary, method, kind)) for kind in KINDS]
            figure = layer_maps(alphas, [place.key for place in plan.places], panels, f"map {method}")
            out.append(Picture(f"{title_of(method)} at every layer", f"Colour is {told}.", figure))
    if gaps:
        out += _costs(summary)
    if gaps and summary.scaled and plan.alphas:
        several = len(plan.places) > 1
        bars = [
            GapBar(
                gap.method,
                f"{title_of(gap.method)}, block {gap.place}" if several else title_of(gap.method),
                gap.gap.value,
                gap.gap.low,
                gap.gap.high,
            )
            for gap in _fewest(summary)
        ]
        caption = (
            "How differently a method treats harmful and harmless prompts, ∫ |harmful − harmless| dα over all "
            "coefficients; 0 is control that does not depend on the prompt. Whiskers are 95 % bootstrap intervals over "
            "prompts."
        )
        out.append(Picture(GAPS_TITLE, caption, gap_bars(bars, "gaps")))
    return out


def _costs(summary: SweepSummary) -> list[Picture]:
    """Methods at equal KL; of many places each method's best at every KL."""
    rows, lines = summary.equal_kl, []
    if not any(np.isfinite(row.bypass) or np.isfinite(row.induce) for row in rows):
        return []
    places = [place.key for place in summary.plan.places]
    few = len(places) <= _FEW_PLACES
    for number, group in enumerate([[place] for place in places] if few else [places]):
        for method in summary.plan.methods:
            mine = [row for row in rows if row.method == method and row.place in group]
            best = np.array(
                [[_most([getattr(r, name) for r in mine if r.budget == budget]) for budget in KL_BUDGETS]
                 for name in ("bypass", "induce")]
            )  # fmt: skip
            label = f"{title_of(method)}, block {group[0]}" if few and len(places) > 1 else title_of(method)
            lines.append(CostLine(method, label, best[0], best[1], number))
    caption = (
        "The same KL a token on harmless prompts is the same price, which the same coefficient is not: the most each "
        "method does at any coefficient within it" + ("." if few else ", at its best block.")
    )
    return [Picture(COSTS_TITLE, caption, equal_costs(KL_BUDGETS, lines, "costs"))]


def _most(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return max(known, default=float("nan"))


def _fewest(summary: SweepSummary) -> list[Any]:
    """Gaps to draw: of many places each method's three smallest."""
    if len(summary.plan.places) <= _FEW_PLACES:
        return list(summary.gaps)
    ranked = sorted((g for g in summary.gaps if np.isfinite(g.gap.value)), key=lambda g: g.gap.value)
    return [gap for method in summary.scaled for gap in [g for g in ranked if g.method == method][:_FEW_PLACES]]


def _curves(summary: SweepSummary, place: Place, alphas: np.ndarray, told: str) -> Picture:
    bands = []
    for method in summary.scaled:
        for kind in KINDS:
            points = steered_curve(summary, method, place, kind)
            rate, low, high = (np.array([getattr(p, name) for p in points]) for name in ("value", "low", "high"))
            bands.append(Band(method, title_of(method), kind, rate, low, high))
    plain = {kind: unsteered(summary, kind) for kind in KINDS}
    levels = {kind: found["baseline"].value for kind, found in plain.items() if "baseline" in found}
    caption = (
        f"Refusal is {told}, with 95 % intervals. Filled markers are harmful prompts, open ones harmless; the area "
        "between the two lines is the standardisation gap. Grey lines are the unsteered model."
    )
    figure = alpha_curves(alphas, bands, levels, f"curves {place.key}")
    return Picture(f"Refusal against the coefficient, block {place.key}", caption, figure)
