"""Figure of methods at equal side effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ace_core.plots import style
from ace_core.plots.style import Figure

__all__ = ["CostLine", "equal_costs"]

_PANELS = (("bypass", "Harmful prompts answered"), ("induce", "Harmless prompts refused"))
_DASHES = ("solid", "dot", "dash")


@dataclass(frozen=True)
class CostLine:
    """The most one method does within each budget, ``(budgets,)`` shares, NaN where nothing stays within it.

    Args:
        method: for colour and marker.
        label: for the legend.
        bypass: share of harmful prompts answered.
        induce: share of harmless prompts refused.
        place: number of the place among those drawn, a second cue.
    """

    method: str
    label: str
    bypass: np.ndarray
    induce: np.ndarray
    place: int = 0


def equal_costs(budgets: Sequence[float], lines: Sequence[CostLine], key: str, height: int = 340) -> Figure:
    """What every method does for at most so much KL, one panel a direction of steering.

    Args:
        budgets: KL on harmless prompts, nats a token, increasing.
        lines: one a method (and place).
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    if not any(np.isfinite(line.bypass).any() or np.isfinite(line.induce).any() for line in lines):
        return style.empty("No coefficient whose side effects are known yet.", height)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    notes = []
    x, room = [f"{budget:g}" for budget in budgets], 0.08
    width = (1 - room) / 2
    for number, (name, title) in enumerate(_PANELS):
        suffix = "" if number == 0 else str(number + 1)
        start = number * (width + room)
        for line in lines:
            values = getattr(line, name)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": style.plain(line.label, 60),
                    "legendgroup": line.label,
                    "showlegend": number == 0,
                    "x": x,
                    "y": style.numbers(values),
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                    "line": {
                        "color": style.METHOD_COLOURS[line.method],
                        "width": 2,
                        "dash": _DASHES[line.place % len(_DASHES)],
                    },
                    "marker": {"symbol": style.METHOD_SYMBOLS[line.method], "size": 9},
                    "hovertemplate": f"{style.plain(line.label, 60)}, KL at most %{{x}}: %{{y:.0%}}<extra></extra>",
                }
            )
        layout[f"xaxis{suffix}"] = style.axis(
            "KL a token at most, nats", domain=[start, min(1.0, start + width)], anchor=f"y{suffix}", type="category",
            categoryarray=x,
        )  # fmt: skip
        layout[f"yaxis{suffix}"] = style.axis(
            "", range=[-0.04, 1.04], anchor=f"x{suffix}", zeroline=False, tickformat=".0%", automargin=True
        )
        notes.append(
            style.note(
                f"<b>{title}</b>", x=start + width / 2, y=1, xref="paper", yref="paper", xanchor="center",
                yanchor="bottom",
            )
        )  # fmt: skip
    told = "; ".join(
        f"{line.label}: {title.lower()} {_spoken(budgets, getattr(line, name))}"
        for name, title in _PANELS
        for line in lines
    )
    return {
        "data": data,
        "layout": {
            **style.layout(height, key, f"The most each method does at equal KL. {told}."),
            **layout,
            "annotations": notes,
            "legend": style.LEGEND,
            "margin": {"l": 44, "r": 10, "t": 56, "b": 44},
            "hovermode": "closest",
        },
    }


def _spoken(budgets: Sequence[float], values: np.ndarray) -> str:
    known = np.flatnonzero(np.isfinite(values))
    return ", ".join(f"{values[i]:.0%} for {budgets[int(i)]:g}" for i in known) or "never"
