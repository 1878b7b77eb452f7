"""Figures of the held-out classes, and of a prompt among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ace_core.plots import style
from ace_core.plots.style import Figure, Line

__all__ = ["distribution", "sparkline"]


def distribution(
    harmless: np.ndarray, harmful: np.ndarray, lines: Sequence[Line], block: int, key: str, height: int = 420
) -> Figure:
    """Held-out coordinates of both classes at one block, and below them where each arm moves this prompt.

    Args:
        harmless, harmful: coordinates ``(n,)`` and ``(m,)`` of held-out prompts; may be empty.
        lines: the last value of ``before`` and ``after`` is the prompt's, an open and a filled marker.
        block: for the description.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    data: list[dict[str, Any]] = []
    bars = {"type": "histogram", "histnorm": "percent", "bingroup": "classes", "nbinsx": 28}
    hover = "c from %{x}: %{y:.0f} % of the %{fullData.name} prompts<extra></extra>"
    # Classes are told apart by fill, since hue means a method: harmful ones filled, harmless ones outlined on top.
    for name, values, fill in (("harmful", harmful, style.FAINT), ("harmless", harmless, "rgba(0,0,0,0)")):
        if len(values):
            marker = {"color": fill, "line": {"color": style.INK, "width": 0 if fill == style.FAINT else 1.5}}
            data.append({**bars, "name": name, "x": style.numbers(values), "marker": marker, "hovertemplate": hover})
    names = [style.plain(line.label, 40) for line in lines]
    for line, name in zip(lines, names, strict=True):
        if not len(line.after):
            continue
        colour = style.METHOD_COLOURS[line.method]
        ends = style.numbers(np.array([line.before[-1], line.after[-1]]))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": ends,
                "y": [name, name],
                "yaxis": "y2",
                "showlegend": False,
                "line": {"color": colour, "width": 2},
                "marker": {
                    "symbol": [f"{style.METHOD_SYMBOLS[line.method]}-open", style.METHOD_SYMBOLS[line.method]],
                    "size": [9, 12],
                    "color": colour,
                },
                "text": ["before the edit", "after the edit"],
                "hovertemplate": "%{x:.2f} %{text}<extra>%{fullData.name}</extra>",
            }
        )
    ends_text = ", ".join(f"{line.label} {line.after[-1]:.2f}" for line in lines if len(line.after))
    summary = f"Coordinates of held-out harmless and harmful prompts at block {block}; this prompt: {ends_text}."
    rows = 0.11 * max(1, len(lines))
    titles = [
        style.note(name, x=0, xref="paper", xanchor="left", y=name, yref="y2", yanchor="bottom", yshift=3)
        for name in names
    ]
    layout = {
        **style.layout(height, key, summary),
        "barmode": "overlay",
        "xaxis": style.axis("c at the last prompt token", range=_room(data), zeroline=False, anchor="y2"),
        "yaxis": style.axis("% of prompts", domain=[rows + 0.06, 1], zeroline=False, fixedrange=True),
        "yaxis2": {
            "domain": [0, rows],
            "categoryorder": "array",
            "categoryarray": names[::-1],
            "range": [-0.6, len(lines) - 0.4],
            "showgrid": False,
            "showticklabels": False,
            "fixedrange": True,
        },
        "shapes": [style.vertical(0.0, "dash"), style.vertical(1.0, "dash")],
        "annotations": [
            style.note("harmless mean", x=0.0, y=1, yref="paper", yanchor="bottom", xanchor="center"),
            style.note("harmful mean", x=1.0, y=1, yref="paper", yanchor="bottom", xanchor="center"),
            *titles,
        ],
        "legend": {**style.LEGEND, "traceorder": "reversed"},
        "margin": {"l": 48, "r": 16, "t": 50, "b": 44},
    }
    return {"data": data, "layout": layout}


def sparkline(auroc: np.ndarray, block: int, height: int = 64) -> Figure:
    """Held-out separation by block, the chosen one marked. ``auroc`` is ``(blocks,)`` with NaN where unknown."""
    if not np.isfinite(auroc).any():
        return style.empty("No held-out prompts to judge layers by.", height)
    here = min(max(block, 0), len(auroc) - 1)
    hover = "block %{x}: AUROC %{y:.2f}<extra></extra>"
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": list(range(len(auroc))),
        "y": style.numbers(auroc),
        "line": {"color": style.INK, "width": 1.5},
        "hovertemplate": hover,
    }
    mark = {
        "type": "scatter",
        "mode": "markers",
        "x": [here],
        "y": style.numbers(auroc[here : here + 1]),
        "marker": {"color": style.INK, "size": 8},
        "hovertemplate": hover,
    }
    right = here > len(auroc) / 2
    number = style.note(
        f"{auroc[here]:.2f}", x=here, y=0.62, xanchor="right" if right else "left", xshift=-4 if right else 4
    )
    layout = {
        **style.layout(height, "separation", f"AUROC by block; {auroc[here]:.2f} at block {here}."),
        "xaxis": {"visible": False, "range": [-0.7, len(auroc) - 0.3], "fixedrange": True},
        "yaxis": {"visible": False, "range": [0.35, 1.08], "fixedrange": True},
        "shapes": [style.horizontal(0.5), style.vertical(here)],
        "annotations": [number],
        "showlegend": False,
        "margin": {"l": 8, "r": 8, "t": 2, "b": 2},
    }
    return {"data": [line, mark], "layout": layout}


def _room(data: Sequence[dict[str, Any]]) -> list[float]:
    """Axis range that holds every value on x and both class means with their names."""
    values = [value for trace in data for value in trace["x"] if value is not None]
    low, high = min([-0.35, *values]), max([1.35, *values])
    edge = 0.04 * (high - low)
    return [low - edge, high + edge]
