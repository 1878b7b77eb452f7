"""Figures of fitted directions: every layer at once, and both classes at one of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ace_core.plots import style
from ace_core.plots.style import Figure

__all__ = ["beside", "by_layer", "classes", "cosines", "plane"]

_PROMPT_CHARACTERS = 120
_MARKS = {"harmful": "triangle-down", "harmless": "circle-open"}


def by_layer(auroc: np.ndarray, d_prime: np.ndarray, recommended: int, key: str, height: int = 340) -> Figure:
    """How well every block tells held-out classes apart: AUROC above, d' below, the recommended block marked.

    Args:
        auroc, d_prime: ``(blocks,)``, NaN where unknown.
        recommended: 0-based block.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    if not np.isfinite(auroc).any():
        return style.empty("No held-out prompts to judge layers by.", height)
    count = len(auroc)
    data = []
    for name, values, axis in (("AUROC", auroc, "y"), ("d′", d_prime, "y2")):
        sizes = [9 if block == recommended else 4 for block in range(count)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": list(range(count)),
                "y": style.numbers(values),
                "yaxis": axis,
                "line": {"color": style.INK, "width": 1.5},
                "marker": {"color": style.INK, "size": sizes, "symbol": "circle"},
                "hovertemplate": f"block %{{x}}: {name} %{{y:.2f}}<extra></extra>",
                "showlegend": False,
            }
        )
    right = recommended > count / 2
    mark = style.note(
        f"recommended: block {recommended}",
        x=recommended,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="right" if right else "left",
    )
    chance = {**style.horizontal(0.5), "yref": "y"}
    summary = (
        f"AUROC and d′ of held-out prompts by block; at the recommended block {recommended} they are "
        f"{auroc[recommended]:.2f} and {d_prime[recommended]:.2f}."
    )
    layout = {
        **style.layout(height, key, summary),
        "xaxis": style.axis("block", range=[-0.7, count - 0.3], anchor="y2", zeroline=False),
        "yaxis": style.axis("AUROC", domain=[0.55, 1], range=[_floor(auroc), 1.04], zeroline=False),
        "yaxis2": style.axis("d′", domain=[0, 0.45], rangemode="tozero", zeroline=False),
        "shapes": [style.vertical(recommended), chance],
        "annotations": [mark],
        "margin": {"l": 52, "r": 12, "t": 26, "b": 44},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def cosines(values: np.ndarray, recommended: int, key: str, height: int = 340) -> Figure:
    """Cosine of every block's direction with every other's.

    Args:
        values: ``(blocks, blocks)``.
        recommended: 0-based block, marked by a frame.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    count = len(values)
    line = {"color": style.INK, "width": 1, "dash": "dot"}
    trace = {
        "type": "heatmap",
        "z": style.numbers(values),
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, style.CLASS_SCALE[0]], [0.5, style.MIDDLE], [1, style.INK]],
        "hovertemplate": "blocks %{x} and %{y}: cosine %{z:.2f}<extra></extra>",
        "colorbar": {
            "thickness": 10,
            "len": 1,
            "outlinewidth": 0,
            "tickvals": [-1, 0, 1],
            "ticktext": ["−1", "0", "1"],
        },
    }
    near = values[recommended, max(0, recommended - 1) : recommended + 2]
    summary = (
        "Cosine of the refusal directions of any two blocks; next to the recommended block "
        f"{recommended} it is at least {float(near.min()):.2f}."
    )
    layout = {
        **style.layout(height, key, summary),
        "xaxis": style.axis("block", range=[-0.5, count - 0.5], showgrid=False, zeroline=False),
        "yaxis": style.axis("block", range=[-0.5, count - 0.5], showgrid=False, zeroline=False),
        "shapes": [
            {**style.vertical(recommended), "line": line},
            {**style.horizontal(recommended), "line": line},
        ],
        "margin": {"l": 48, "r": 12, "t": 12, "b": 44},
    }
    return {"data": [trace], "layout": layout}


def beside(values: np.ndarray, words: tuple[str, str], recommended: int, key: str, height: int = 300) -> Figure:
    """Cosine of one fit's direction with another's at every block.

    Args:
        values: ``(blocks,)``.
        words: what the two are.
        recommended: 0-based block of the first, marked.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    count = len(values)
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(range(count)),
        "y": style.numbers(values),
        "line": {"color": style.INK, "width": 1.5},
        "marker": {"color": style.INK, "size": [9 if block == recommended else 4 for block in range(count)]},
        "hovertemplate": "block %{x}: cosine %{y:.2f}<extra></extra>",
        "showlegend": False,
    }
    summary = (
        f"Cosine by block of {style.plain(words[0])} and {style.plain(words[1])}: from {values.min():.2f} to "
        f"{values.max():.2f}, and {values[recommended]:.2f} at block {recommended}."
    )
    layout = {
        **style.layout(height, key, summary),
        "xaxis": style.axis("block", range=[-0.7, count - 0.3], zeroline=False),
        "yaxis": style.axis("cosine", range=[min(-0.08, float(values.min()) - 0.08), 1.08], zeroline=False),
        "shapes": [style.vertical(recommended), style.horizontal(0.0), style.horizontal(1.0)],
        "margin": {"l": 52, "r": 12, "t": 12, "b": 44},
        "hovermode": "closest",
    }
    return {"data": [trace], "layout": layout}


def classes(
    harmless: np.ndarray, harmful: np.ndarray, origin: float, block: int, key: str, height: int = 340
) -> Figure:
    """Held-out coordinates of both classes at one block, with both means and the origin.

    Args:
        harmless, harmful: ``(n,)`` and ``(m,)``.
        origin: coordinate of the zero vector.
        block: for the description.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    if not len(harmless) and not len(harmful):
        return style.empty("No held-out prompts came with these directions.", height)
    hover = "c from %{x}: %{y:.0f} % of the %{fullData.name} prompts<extra></extra>"
    data = []
    for name, values, fill in (("harmful", harmful, style.FAINT), ("harmless", harmless, "rgba(0,0,0,0)")):
        if len(values):
            marker = {"color": fill, "line": {"color": style.INK, "width": 0 if fill == style.FAINT else 1.5}}
            bars = {
                "type": "histogram",
                "histnorm": "percent",
                "bingroup": "classes",
                "nbinsx": 28,
                "x": style.numbers(values),
            }
            data.append({**bars, "name": name, "marker": marker, "hovertemplate": hover})
    low, high = _room([harmless, harmful])
    shapes = [style.vertical(0.0, "dash"), style.vertical(1.0, "dash")]
    notes = _means(y=1)
    if low <= origin <= high:
        shapes.append(style.vertical(origin, "dot"))
        notes.append(style.note("origin", x=origin, y=0.9, yref="paper", xanchor="left"))
    parts = [
        f"{name} {values.mean():.2f}" for name, values in (("harmless", harmless), ("harmful", harmful)) if len(values)
    ]
    layout = {
        **style.layout(height, key, f"Held-out coordinates at block {block}; means: {', '.join(parts)}."),
        "barmode": "overlay",
        "xaxis": style.axis(style.COORDINATE, range=[low, high], zeroline=False),
        "yaxis": style.axis("% of held-out prompts", zeroline=False, rangemode="tozero"),
        "shapes": shapes,
        "annotations": notes,
        "legend": {**style.LEGEND, "traceorder": "reversed"},
        "margin": {"l": 48, "r": 16, "t": 50, "b": 44},
    }
    return {"data": data, "layout": layout}


def plane(
    harmless: np.ndarray,
    harmful: np.ndarray,
    harmless_prompts: Sequence[str],
    harmful_prompts: Sequence[str],
    explained: float,
    block: int,
    key: str,
    height: int = 400,
) -> Figure:
    """Every prompt at one block: refusal coordinate against what the rest of it varies in most.

    Args:
        harmless, harmful: ``(n, 2)`` and ``(m, 2)``.
        harmless_prompts, harmful_prompts: shown on hover, cut and escaped.
        explained: share of the rest's variance on the second axis.
        block: for the description.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    data: list[dict[str, Any]] = []
    for name, points, prompts in (("harmful", harmful, harmful_prompts), ("harmless", harmless, harmless_prompts)):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": style.numbers(points[:, 0]),
                "y": style.numbers(points[:, 1]),
                "text": [_hover(prompt) for prompt in prompts],
                "marker": {"symbol": _MARKS[name], "size": 8, "color": style.INK, "opacity": 0.8},
                "hovertemplate": f"%{{text}}<br>{name}, c = %{{x:.2f}}<extra></extra>",
            }
        )
    share = f" ({explained:.0%})" if np.isfinite(explained) else ""
    layout = {
        **style.layout(height, key, f"{len(harmful)} harmful and {len(harmless)} harmless prompts at block {block}."),
        "xaxis": style.axis(style.COORDINATE, range=_room([harmless[:, 0], harmful[:, 0]]), zeroline=False),
        "yaxis": style.axis(f"main component of the rest{share}", zeroline=False),
        "shapes": [style.vertical(0.0, "dash"), style.vertical(1.0, "dash")],
        "annotations": _means(y=1),
        "legend": style.LEGEND,
        "margin": {"l": 56, "r": 16, "t": 50, "b": 44},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
    }
    return {"data": data, "layout": layout}


def _means(y: float) -> list[dict[str, Any]]:
    where = {"y": y, "yref": "paper", "yanchor": "bottom", "xanchor": "center"}
    return [style.note("harmless mean", x=0.0, **where), style.note("harmful mean", x=1.0, **where)]


def _hover(prompt: str) -> str:
    words = " ".join(prompt.split())
    cut = words if len(words) <= _PROMPT_CHARACTERS else words[: _PROMPT_CHARACTERS - 1] + "…"
    # plotly.js does not break lines of a hover text itself
    return "<br>".join(style.plain(line) for line in textwrap.wrap(cut, 44))


def _room(parts: Sequence[np.ndarray]) -> list[float]:
    values = np.concatenate([np.array([-0.35, 1.35]), *parts])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    edge = 0.04 * (high - low)
    return [low - edge, high + edge]


def _floor(auroc: np.ndarray) -> float:
    return min(0.45, float(np.nanmin(auroc)) - 0.05)
