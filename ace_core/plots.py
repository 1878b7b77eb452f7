"""Figures from plain arrays, as the plain dictionaries that plotly.js draws.

Every function returns ``{"data": [...], "layout": {...}}``, ready to be sent to a page; ``plotly.graph_objects.Figure``
turns it into a Python figure. Plain dictionaries because a live plot is rebuilt many times a second, where plotly-py's
validation would cost more than the model's own step. Colours that depend on the page's theme are written
``var(--name, #fallback)``, the fallback being the light theme's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

__all__ = [
    "CLASS_SCALE",
    "METHOD_COLOURS",
    "METHOD_SYMBOLS",
    "Figure",
    "Line",
    "distribution",
    "empty",
    "heatmap",
    "projection",
    "sparkline",
]

Figure = dict[str, Any]

METHOD_COLOURS = {
    "baseline": "#6B7280",
    "addition": "#D55E00",
    "ablation": "#0072B2",
    "affine_ablation": "#B5518B",
    "ace": "#009E73",
}
"""One colour a method everywhere: told apart by colour-blind people, 3:1 or more on white and on near-black."""

METHOD_SYMBOLS = {
    "baseline": "circle",
    "addition": "triangle-up",
    "ablation": "square",
    "affine_ablation": "x",
    "ace": "diamond",
}
"""The second cue beside the colour."""

CLASS_SCALE = ("#6A51A3", "#E8A200")
"""Ends of the diverging scale of coordinates: the harmless mean (0) and the harmful mean (1)."""

_INK = "var(--ace-ink, #374151)"
_FAINT = "var(--ace-faint, #9ca3af)"
_GRID = "var(--ace-grid, #e5e7eb)"
_MIDDLE = "var(--ace-middle, #eceef1)"
_VEIL = "var(--ace-veil, rgba(255,255,255,0.7))"
_COORDINATE = "refusal coordinate c"
_LEGEND = {"orientation": "h", "xref": "container", "yref": "container", "x": 0, "y": 1, "yanchor": "top"}
_MARKER_EVERY = 8
_TOKEN_CHARACTERS = 14


@dataclass(frozen=True)
class Line:
    """One arm at one block.

    ``before`` and ``after`` are coordinates ``(positions,)`` around the edit, ``tokens`` the text at each position.
    """

    label: str
    method: str
    before: np.ndarray
    after: np.ndarray
    tokens: Sequence[str] = ()


def empty(message: str, height: int) -> Figure:
    """A figure that only says why there is nothing to see yet."""
    axis = {"visible": False, "fixedrange": True}
    note = {"text": _plain(message), "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    return {
        "data": [],
        "layout": {
            **_layout(height, "empty", message),
            "xaxis": axis,
            "yaxis": axis,
            "annotations": [{**note, "font": {"color": _INK}}],
        },
    }


def projection(
    lines: Sequence[Line], prompt_length: int, positions: int, block: int, key: str, height: int = 340
) -> Figure:
    """Refusal coordinate over token position at one block, before the edit (dotted) and after it (solid).

    Args:
        lines: one an arm, any number of positions so far.
        prompt_length: positions below this belong to the prompt.
        positions: how many positions the axis has room for, so that it stands still while lines grow.
        block: the block they were read at, for the description.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    data: list[dict[str, Any]] = []
    edited = [line for line in lines if line.method != "baseline"]
    for line in edited:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": list(range(len(line.before))),
                "y": _numbers(line.before),
                "line": {"color": METHOD_COLOURS[line.method], "width": 1.2, "dash": "dot"},
                "opacity": 0.75,
                "legendgroup": _plain(line.label, 60),
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
    for order, line in enumerate(lines):
        count = len(line.after)
        colour = METHOD_COLOURS[line.method]
        after = _numbers(line.after)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": _plain(line.label, 60),
                "x": list(range(count)),
                "y": after,
                "text": [_token(token) for token in line.tokens[:count]],
                "hovertemplate": "%{y:.2f} at %{x} “%{text}”<extra>%{fullData.name}</extra>",
                "line": {"color": colour, "width": 2},
                "legendgroup": _plain(line.label, 60),
                "showlegend": False,
            }
        )
        # Few markers, because each costs the browser as much as a whole line, and shifted from arm to arm, so that
        # those of lines on top of each other stay visible.
        marked = range(2 * order % _MARKER_EVERY, count, _MARKER_EVERY)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _plain(line.label, 60),
                "x": list(marked),
                "y": [after[k] for k in marked],
                "marker": {"symbol": METHOD_SYMBOLS[line.method], "size": 9, "color": colour},
                "legendgroup": _plain(line.label, 60),
                "hoverinfo": "skip",
            }
        )
    if edited:
        dotted = {"color": _FAINT, "width": 1.2, "dash": "dot"}
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "before the edit",
                "x": [None],
                "y": [None],
                "line": dotted,
            }
        )
    # Position 0 often holds an extreme activation that says nothing about the prompt.
    spread = [values[1:] for line in lines for values in (line.before, line.after)]
    start = _vertical(prompt_length - 0.5)
    layout = {
        **_layout(height, key, f"Refusal coordinate of every token at block {block}, one line an arm. {_ends(lines)}"),
        "xaxis": _axis("token position", range=[-0.5, max(positions, 2) - 0.5]),
        "yaxis": _axis(_COORDINATE, range=_span(spread), zeroline=False),
        "shapes": [start, _horizontal(0.0), _horizontal(1.0)],
        "annotations": [
            _note("answer starts", x=prompt_length - 0.5, y=1, yref="paper", xanchor="left", yanchor="top", xshift=3),
            _note("harmful mean", x=1, xref="paper", y=1.0, xanchor="right", yanchor="bottom"),
            _note("harmless mean", x=1, xref="paper", y=0.0, xanchor="right", yanchor="bottom"),
        ],
        "legend": _LEGEND,
        "margin": {"l": 56, "r": 12, "t": 30, "b": 44},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def heatmap(
    values: np.ndarray, tokens: Sequence[str], prompt_length: int, block: int, label: str, key: str, height: int = 420
) -> Figure:
    """Refusal coordinate after the edit, block by token.

    Args:
        values: float ``(blocks, positions)``.
        tokens: text at each position.
        prompt_length: positions below this belong to the prompt.
        block: marked by a line.
        label: whose coordinates these are.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    blocks, count = values.shape
    if not count:
        return empty("Appears with the first token.", height)
    low, high = CLASS_SCALE
    trace = {
        "type": "heatmap",
        # Numbered, because a category axis merges equal names.
        "x": [f"{k} {_token(token, 10)}" for k, token in enumerate(tokens[:count])],
        "z": _numbers(values),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, low], [0.5, _MIDDLE], [1, high]],
        "hovertemplate": "block %{y}, token %{x}<br>c = %{z:.2f}<extra></extra>",
        "colorbar": {
            "orientation": "h",
            "y": 1.01,
            "yanchor": "bottom",
            "x": 0,
            "xanchor": "left",
            "len": 1,
            "thickness": 10,
            "tickvals": [0, 0.5, 1],
            "ticktext": ["≤ 0, harmless mean", "0.5", "harmful mean, ≥ 1"],
            "ticklabeloverflow": "allow",
            "outlinewidth": 0,
        },
    }
    layout = {
        **_layout(height, key, f"Refusal coordinate of {label} at every block and token, after the edit."),
        "xaxis": _axis("token", type="category", nticks=24, tickangle=-55, tickfont={"size": 10}, showgrid=False),
        "yaxis": _axis("block", range=[-0.5, blocks - 0.5], showgrid=False, zeroline=False),
        "shapes": [
            _vertical(prompt_length - 0.5),
            {**_horizontal(block - 0.5), "line": {"color": _INK, "width": 1}},
            {**_horizontal(block + 0.5), "line": {"color": _INK, "width": 1}},
        ],
        "margin": {"l": 48, "r": 16, "t": 8, "b": 96},
    }
    return {"data": [trace], "layout": layout}


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
    for name, values, fill in (("harmful", harmful, _FAINT), ("harmless", harmless, "rgba(0,0,0,0)")):
        if len(values):
            marker = {"color": fill, "line": {"color": _INK, "width": 0 if fill == _FAINT else 1.5}}
            data.append({**bars, "name": name, "x": _numbers(values), "marker": marker, "hovertemplate": hover})
    names = [_plain(line.label, 40) for line in lines]
    for line, name in zip(lines, names, strict=True):
        if not len(line.after):
            continue
        colour = METHOD_COLOURS[line.method]
        ends = _numbers(np.array([line.before[-1], line.after[-1]]))
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
                    "symbol": [f"{METHOD_SYMBOLS[line.method]}-open", METHOD_SYMBOLS[line.method]],
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
        _note(name, x=0, xref="paper", xanchor="left", y=name, yref="y2", yanchor="bottom", yshift=3) for name in names
    ]
    layout = {
        **_layout(height, key, summary),
        "barmode": "overlay",
        "xaxis": _axis("c at the last prompt token", range=_room(data), zeroline=False, anchor="y2"),
        "yaxis": _axis("% of prompts", domain=[rows + 0.06, 1], zeroline=False, fixedrange=True),
        "yaxis2": {
            "domain": [0, rows],
            "categoryorder": "array",
            "categoryarray": names[::-1],
            "range": [-0.6, len(lines) - 0.4],
            "showgrid": False,
            "showticklabels": False,
            "fixedrange": True,
        },
        "shapes": [_vertical(0.0, "dash"), _vertical(1.0, "dash")],
        "annotations": [
            _note("harmless mean", x=0.0, y=1, yref="paper", yanchor="bottom", xanchor="center"),
            _note("harmful mean", x=1.0, y=1, yref="paper", yanchor="bottom", xanchor="center"),
            *titles,
        ],
        "legend": {**_LEGEND, "traceorder": "reversed"},
        "margin": {"l": 48, "r": 16, "t": 50, "b": 44},
    }
    return {"data": data, "layout": layout}


def sparkline(auroc: np.ndarray, block: int, height: int = 64) -> Figure:
    """Held-out separation by block, the chosen one marked. ``auroc`` is ``(blocks,)`` with NaN where unknown."""
    if not np.isfinite(auroc).any():
        return empty("No held-out prompts to judge layers by.", height)
    here = min(max(block, 0), len(auroc) - 1)
    hover = "block %{x}: AUROC %{y:.2f}<extra></extra>"
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": list(range(len(auroc))),
        "y": _numbers(auroc),
        "line": {"color": _INK, "width": 1.5},
        "hovertemplate": hover,
    }
    mark = {
        "type": "scatter",
        "mode": "markers",
        "x": [here],
        "y": _numbers(auroc[here : here + 1]),
        "marker": {"color": _INK, "size": 8},
        "hovertemplate": hover,
    }
    right = here > len(auroc) / 2
    number = _note(
        f"{auroc[here]:.2f}", x=here, y=0.62, xanchor="right" if right else "left", xshift=-4 if right else 4
    )
    layout = {
        **_layout(height, "separation", f"AUROC by block; {auroc[here]:.2f} at block {here}."),
        "xaxis": {"visible": False, "range": [-0.7, len(auroc) - 0.3], "fixedrange": True},
        "yaxis": {"visible": False, "range": [0.35, 1.08], "fixedrange": True},
        "shapes": [_horizontal(0.5), _vertical(here)],
        "annotations": [number],
        "showlegend": False,
        "margin": {"l": 8, "r": 8, "t": 2, "b": 2},
    }
    return {"data": [line, mark], "layout": layout}


def _layout(height: int, key: str, summary: str) -> dict[str, Any]:
    return {
        "height": height,
        "uirevision": key,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": _INK, "size": 12},
        "hoverlabel": {"font": {"size": 12}},
        "meta": {"summary": summary},
    }


def _axis(title: str, **more: Any) -> dict[str, Any]:
    base = {"title": {"text": title, "standoff": 6}, "gridcolor": _GRID, "linecolor": _GRID, "zerolinecolor": _GRID}
    return {**base, **more}


def _horizontal(y: float) -> dict[str, Any]:
    line = {"color": _FAINT, "width": 1, "dash": "dash"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def _vertical(x: float, dash: str = "solid") -> dict[str, Any]:
    line = {"color": _FAINT, "width": 1, "dash": dash}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line}


def _note(text: str, **where: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 11, "color": _INK}, "bgcolor": _VEIL, **where}


def _numbers(values: np.ndarray) -> Any:
    """Nested lists, rounded for the wire; JSON has no NaN or infinity."""
    rounded = np.round(np.asarray(values, np.float64), 3)
    known = np.isfinite(rounded)
    if not known.all():
        rounded = rounded.astype(object)
        rounded[~known] = None
    return rounded.tolist()


def _span(parts: Sequence[np.ndarray]) -> list[float]:
    """Axis range that holds nearly all values and both class means, in steps of a half so that it rarely moves."""
    values = np.concatenate([np.zeros(1), *parts])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [0.5, 99.5])
    return [float(np.floor(min(low, -0.3) * 2) / 2), float(np.ceil(max(high, 1.3) * 2) / 2)]


def _room(data: Sequence[dict[str, Any]]) -> list[float]:
    """Axis range that holds every value on x and both class means with their names."""
    values = [value for trace in data for value in trace["x"] if value is not None]
    low, high = min([-0.35, *values]), max([1.35, *values])
    edge = 0.04 * (high - low)
    return [low - edge, high + edge]


def _ends(lines: Sequence[Line]) -> str:
    return "; ".join(f"{line.label}: {line.after[-1]:.2f} at the newest token" for line in lines if len(line.after))


def _plain(text: str, limit: int = 200) -> str:
    """Text that plotly draws as it is: its labels read a little HTML."""
    return escape(text if len(text) <= limit else text[: limit - 1] + "…", quote=False)


def _token(text: str, limit: int = _TOKEN_CHARACTERS) -> str:
    return _plain(text.replace("\n", "⏎").strip(" ") or ("␣" if text else ""), limit)
