"""One prompt at every layer, beside how well each layer tells the classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ace_core.plots import style
from ace_core.plots.style import Figure
from ace_core.plots.tokens import coordinate_map

__all__ = ["prompt_layers"]

_SIDE = 0.15
_START = 0.19
_FEW = 12


def prompt_layers(
    values: np.ndarray,
    tokens: Sequence[str],
    auroc: np.ndarray,
    separating: Sequence[tuple[int, int]],
    recommended: int,
    key: str,
    height: int = 460,
) -> Figure:
    """Refusal coordinate of every token of an unedited prompt, block by token, with the held-out AUROC at the side.

    Args:
        values: float ``(blocks, tokens)``.
        tokens: text of each.
        auroc: ``(blocks,)``, NaN where unknown.
        separating: first and last block of every stretch that tells the classes apart, marked by a bar.
        recommended: framed block.
        key: zoom is kept between figures of equal key.
        height: in pixels.
    """
    blocks = values.shape[0]
    curve = {
        "type": "scatter",
        "mode": "lines",
        "x": style.numbers(auroc),
        "y": list(range(blocks)),
        "xaxis": "x2",
        "line": {"color": style.INK, "width": 1.5},
        "hovertemplate": "block %{y}: AUROC %{x:.2f}<extra></extra>",
        "showlegend": False,
    }
    frame = {"color": style.INK, "width": 1}
    shapes: list[dict[str, Any]] = [
        {**style.horizontal(recommended - 0.5), "line": frame},
        {**style.horizontal(recommended + 0.5), "line": frame},
        {**style.vertical(0.5, "dash"), "xref": "x2"},
    ]
    for first, last in separating:
        shapes.append(
            {
                "type": "rect",
                "xref": "paper",
                "x0": _START - 0.014,
                "x1": _START - 0.004,
                "y0": first - 0.45,
                "y1": last + 0.45,
                "fillcolor": style.INK,
                "line": {"width": 0},
            }
        )
    summary = (
        f"Refusal coordinate of {values.shape[1]} prompt tokens at {blocks} blocks; at the recommended block "
        f"{recommended} the last token lies at {values[recommended, -1]:.2f}."
    )
    layout = {
        **style.layout(height, key, summary),
        "xaxis": style.axis(
            "token of the prompt",
            domain=[_START, 1],
            type="category",
            nticks=32,
            tickangle=-55,
            tickfont={"size": 10},
            showgrid=False,
        ),
        "xaxis2": style.axis(
            "",
            domain=[0, _SIDE],
            range=[0.35, 1.05],
            tickvals=[0.5, 1],
            ticktext=["½", "1"],
            tickangle=0,
            zeroline=False,
            showgrid=False,
            fixedrange=True,
        ),
        "yaxis": style.axis(
            "block",
            anchor="x2",
            range=[-0.5, blocks - 0.5],
            dtick=1 if blocks <= _FEW else 5,
            showgrid=False,
            zeroline=False,
        ),
        "shapes": shapes,
        # Inside, because slanted token names take the room below.
        "annotations": [
            style.note("AUROC", xref="paper", yref="paper", x=0.004, y=1, xanchor="left", yanchor="top", textangle=-90)
        ],
        "margin": {"l": 48, "r": 16, "t": 44, "b": 96},
    }
    return {"data": [coordinate_map(values, tokens), curve], "layout": layout}
