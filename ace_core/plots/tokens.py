"""Figures over the tokens of one prompt and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ace_core.plots import style
from ace_core.plots.style import Figure, Line

__all__ = ["coordinate_map", "heatmap", "projection"]

_MARKER_EVERY = 8


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
                "y": style.numbers(line.before),
                "line": {"color": style.METHOD_COLOURS[line.method], "width": 1.2, "dash": "dot"},
                "opacity": 0.75,
                "legendgroup": style.plain(line.label, 60),
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
    for order, line in enumerate(lines):
        count = len(line.after)
        colour = style.METHOD_COLOURS[line.method]
        after = style.numbers(line.after)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": style.plain(line.label, 60),
                "x": list(range(count)),
                "y": after,
                "text": [style.token(token) for token in line.tokens[:count]],
                "hovertemplate": "%{y:.2f} at %{x} “%{text}”<extra>%{fullData.name}</extra>",
                "line": {"color": colour, "width": 2},
                "legendgroup": style.plain(line.label, 60),
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
                "name": style.plain(line.label, 60),
                "x": list(marked),
                "y": [after[k] for k in marked],
                "marker": {"symbol": style.METHOD_SYMBOLS[line.method], "size": 9, "color": colour},
                "legendgroup": style.plain(line.label, 60),
                "hoverinfo": "skip",
            }
        )
    if edited:
        dotted = {"color": style.FAINT, "width": 1.2, "dash": "dot"}
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
    start = prompt_length - 0.5
    summary = f"Refusal coordinate of every token at block {block}, one line an arm. {_ends(lines)}"
    layout = {
        **style.layout(height, key, summary),
        "xaxis": style.axis("token position", range=[-0.5, max(positions, 2) - 0.5]),
        "yaxis": style.axis(style.COORDINATE, range=_span(spread), zeroline=False),
        "shapes": [style.vertical(start), style.horizontal(0.0), style.horizontal(1.0)],
        "annotations": [
            style.note("answer starts", x=start, y=1, yref="paper", xanchor="left", yanchor="top", xshift=3),
            style.note("harmful mean", x=1, xref="paper", y=1.0, xanchor="right", yanchor="bottom"),
            style.note("harmless mean", x=1, xref="paper", y=0.0, xanchor="right", yanchor="bottom"),
        ],
        "legend": style.LEGEND,
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
        return style.empty("Appears with the first token.", height)
    trace = coordinate_map(values, tokens)
    layout = {
        **style.layout(height, key, f"Refusal coordinate of {label} at every block and token, after the edit."),
        "xaxis": style.axis("token", type="category", nticks=24, tickangle=-55, tickfont={"size": 10}, showgrid=False),
        "yaxis": style.axis("block", range=[-0.5, blocks - 0.5], showgrid=False, zeroline=False),
        "shapes": [
            style.vertical(prompt_length - 0.5),
            {**style.horizontal(block - 0.5), "line": {"color": style.INK, "width": 1}},
            {**style.horizontal(block + 0.5), "line": {"color": style.INK, "width": 1}},
        ],
        "margin": {"l": 48, "r": 16, "t": 44, "b": 96},
    }
    return {"data": [trace], "layout": layout}


def coordinate_map(values: np.ndarray, tokens: Sequence[str]) -> dict[str, Any]:
    """A heat map trace of refusal coordinates ``(blocks, positions)``, with its scale above."""
    low, high = style.CLASS_SCALE
    return {
        "type": "heatmap",
        # Numbered, because a category axis merges equal names.
        "x": [f"{k} {style.token(token, 10)}" for k, token in enumerate(tokens[: values.shape[1]])],
        "z": style.numbers(values),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, low], [0.5, style.MIDDLE], [1, high]],
        "hovertemplate": "block %{y}, token %{x}<br>c = %{z:.2f}<extra></extra>",
        "colorbar": {
            "orientation": "h",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
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


def _span(parts: Sequence[np.ndarray]) -> list[float]:
    """Axis range that holds all but freak values and both class means, in steps of a half so that it rarely moves."""
    values = np.concatenate([np.zeros(1), *parts])
    values = values[np.isfinite(values)]
    quarter, three_quarters = np.percentile(values, [25, 75])
    reach = 4 * (three_quarters - quarter) + 1
    usual = values[(values >= quarter - reach) & (values <= three_quarters + reach)]
    low, high = usual.min(), usual.max()
    return [float(np.floor(min(low, -0.3) * 2) / 2), float(np.ceil(max(high, 1.3) * 2) / 2)]


def _ends(lines: Sequence[Line]) -> str:
    return "; ".join(f"{line.label}: {line.after[-1]:.2f} at the newest token" for line in lines if len(line.after))
