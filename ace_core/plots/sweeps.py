"""Figures of sweeps: refusal against the coefficient, maps of layers, standardisation gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ace_core.plots import style
from ace_core.plots.style import Figure

__all__ = ["Band", "GapBar", "MapPanel", "alpha_curves", "gap_bars", "layer_maps"]

_DASHES = {"harmful": "solid", "harmless": "dot"}
_BAND = 0.16


@dataclass(frozen=True)
class Band:
    """Refusal of one class under one method: rate with interval, each ``(coefficients,)``, NaN where unknown."""

    method: str
    title: str
    kind: str
    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class MapPanel:
    """One map: ``values`` ``(layers, coefficients)`` from 0 to 1, NaN where not measured yet."""

    title: str
    values: np.ndarray


@dataclass(frozen=True)
class GapBar:
    """One method's standardisation gap with its interval, in class gaps."""

    method: str
    label: str
    value: float
    low: float
    high: float


def alpha_curves(
    alphas: np.ndarray, bands: Sequence[Band], levels: Mapping[str, float], key: str, height: int = 380
) -> Figure:
    """One panel a method: refusal of both classes with intervals; the area between the lines is the gap.

    Args:
        alphas: ``(coefficients,)``, class gaps.
        bands: both classes of every method.
        levels: what no steering gives, by class, as thin lines.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    methods = list(dict.fromkeys(band.method for band in bands))
    if not any(np.isfinite(band.rate).any() for band in bands):
        return style.empty("No coefficient has been measured yet.", height)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    notes, shapes = [], []
    room = 0.06
    width = (1 - room * (len(methods) - 1)) / len(methods)
    for number, method in enumerate(methods):
        suffix = "" if number == 0 else str(number + 1)
        start = number * (width + room)
        shown = [band for band in bands if band.method == method]
        colour = style.METHOD_COLOURS[method]
        for band in shown:
            data += _band(alphas, band, colour, suffix, legend=number == 0)
        layout[f"xaxis{suffix}"] = style.axis(
            "coefficient α", domain=[start, min(1.0, start + width)], anchor=f"y{suffix}", zeroline=False
        )
        layout[f"yaxis{suffix}"] = style.axis(
            "refusal rate" if number == 0 else "",
            range=[-0.04, 1.04],
            anchor=f"x{suffix}",
            zeroline=False,
            tickformat=".0%",
            showticklabels=number == 0,
        )
        for kind, level in levels.items():
            if np.isfinite(level):
                line = {"color": style.METHOD_COLOURS["baseline"], "width": 1, "dash": _DASHES.get(kind, "solid")}
                where = {"xref": f"x{suffix} domain", "yref": f"y{suffix}"}
                shapes.append({"type": "line", **where, "x0": 0, "x1": 1, "y0": level, "y1": level, "line": line})
        title = f"<b>{style.plain(shown[0].title, 40)}</b>"
        notes.append(
            style.note(title, x=start + width / 2, y=1, xref="paper", yref="paper", xanchor="center", yanchor="bottom")
        )
    summary = "Refusal rate against the coefficient. " + " ".join(
        f"{band.title}, {band.kind}: {_spoken(alphas, band.rate)}." for band in bands
    )
    return {
        "data": data,
        "layout": {
            **style.layout(height, key, summary),
            **layout,
            "annotations": notes,
            "shapes": shapes,
            "legend": style.LEGEND,
            "margin": {"l": 52, "r": 10, "t": 56, "b": 44},
            "hovermode": "closest",
        },
    }


def layer_maps(
    alphas: np.ndarray, layers: Sequence[str], panels: Sequence[MapPanel], key: str, height: int = 420
) -> Figure:
    """Maps of layer × coefficient side by side; the harmless mean's purple is no refusal, amber is refusal throughout.

    Args:
        alphas: ``(coefficients,)``.
        layers: names of the rows, from the first block on.
        panels: maps of the same shape.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    if not any(np.isfinite(panel.values).any() for panel in panels):
        return style.empty("No cell of the map has been measured yet.", height)
    data, notes, layout = [], [], {}
    room = 0.03
    width = (1 - room * (len(panels) - 1)) / len(panels)
    for number, panel in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        start = number * (width + room)
        data.append(
            {
                "type": "heatmap",
                "x": [f"{alpha:g}" for alpha in alphas],
                "y": list(layers),
                "z": style.numbers(panel.values),
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "coloraxis": "coloraxis",
                "hovertemplate": "block %{y}, α = %{x}: %{z:.2f}<extra>" + style.plain(panel.title, 60) + "</extra>",
                "hoverongaps": False,
            }
        )
        layout[f"xaxis{suffix}"] = style.axis(
            "α", domain=[start, min(1.0, start + width)], anchor=f"y{suffix}", type="category", showgrid=False
        )
        layout[f"yaxis{suffix}"] = style.axis(
            "block" if number == 0 else "",
            anchor=f"x{suffix}",
            type="category",
            showgrid=False,
            showticklabels=number == 0,
        )
        notes.append(
            style.note(
                style.plain(panel.title, 40), x=start + width / 2, y=1, xref="paper", yref="paper", xanchor="center",
                yanchor="bottom",
            )
        )  # fmt: skip
    low, high = style.CLASS_SCALE
    means = "; ".join(
        f"{panel.title} {float(np.nanmean(panel.values)):.2f}" for panel in panels if np.isfinite(panel.values).any()
    )
    return {
        "data": data,
        "layout": {
            **style.layout(height, key, f"Refusal by block and coefficient; means over each map: {means}."),
            **layout,
            "coloraxis": {
                "cmin": 0,
                "cmax": 1,
                "colorscale": [[0, low], [0.5, style.MIDDLE], [1, high]],
                "colorbar": {
                    "thickness": 10,
                    "len": 1,
                    "outlinewidth": 0,
                    "tickvals": [0, 0.5, 1],
                    "ticktext": ["0", "½", "1"],
                    "title": {"text": "refusal", "side": "right"},
                },
            },
            "annotations": notes,
            "margin": {"l": 48, "r": 8, "t": 26, "b": 44},
        },
    }


def gap_bars(bars: Sequence[GapBar], key: str, height: int = 0) -> Figure:
    """Standardisation gaps with intervals; shorter is better.

    Args:
        bars: one a method (and place), top to bottom.
        key: zoom is kept between figures of equal key.
        height: in pixels; 0 takes what the bars need.
    """
    height = height or 96 + 34 * max(1, len(bars))
    known = [bar for bar in bars if np.isfinite(bar.value)]
    if not known:
        return style.empty("A gap needs two coefficients of both classes.", height)
    names = [style.plain(bar.label, 60) for bar in known]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [round(bar.value, 4) for bar in known],
        "y": names,
        "marker": {"color": [style.METHOD_COLOURS[bar.method] for bar in known]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [round(bar.high - bar.value, 4) for bar in known],
            "arrayminus": [round(bar.value - bar.low, 4) for bar in known],
            "color": style.INK,
            "thickness": 1.5,
        },
        "customdata": [[round(bar.low, 4), round(bar.high, 4)] for bar in known],
        "hovertemplate": "%{y}: %{x:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]<extra></extra>",
        "width": 0.6,
    }
    told = "; ".join(f"{bar.label} {bar.value:.2f}, from {bar.low:.2f} to {bar.high:.2f}" for bar in known)
    return {
        "data": [trace],
        "layout": {
            **style.layout(height, key, f"Standardisation gaps: {told}."),
            "xaxis": style.axis("standardisation gap (class gaps)", rangemode="tozero"),
            "yaxis": {
                "automargin": True,
                "ticklabelstandoff": 6,
                "autorange": "reversed",
                "fixedrange": True,
                "showgrid": False,
            },
            "showlegend": False,
            "margin": {"l": 8, "r": 16, "t": 8, "b": 48},
        },
    }


def _band(alphas: np.ndarray, band: Band, colour: str, suffix: str, legend: bool) -> list[dict[str, Any]]:
    known = np.isfinite(band.rate)
    x = style.numbers(alphas[known])
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    edges = style.numbers(np.concatenate([band.high[known], band.low[known][::-1]]))
    open_mark = "-open" if band.kind == "harmless" else ""
    fill = {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *x[::-1]],
        "y": edges,
        "fill": "toself",
        "fillcolor": _faded(colour, _BAND),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        **axes,
    }
    spread = np.stack([band.low[known], band.high[known]], axis=-1)
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": band.kind,
        "legendgroup": band.kind,
        "showlegend": legend,
        "x": x,
        "y": style.numbers(band.rate[known]),
        "customdata": style.numbers(spread),
        "line": {"color": colour, "width": 2, "dash": _DASHES[band.kind]},
        "marker": {"symbol": style.METHOD_SYMBOLS[band.method] + open_mark, "size": 8, "color": colour},
        "hovertemplate": (
            f"{style.plain(band.title, 40)}, α = %{{x:g}}: %{{y:.0%}} of {band.kind} prompts refused "
            "[%{customdata[0]:.0%}, %{customdata[1]:.0%}]<extra></extra>"
        ),
        **axes,
    }
    return [fill, line]


def _faded(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _spoken(alphas: np.ndarray, rate: np.ndarray) -> str:
    known = np.flatnonzero(np.isfinite(rate))
    return ", ".join(f"{rate[i]:.0%} at {alphas[i]:g}" for i in known) or "not measured yet"
