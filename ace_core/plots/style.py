"""What all figures share: colours, axes, notes, and numbers and text made fit for plotly.js."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np

__all__ = [
    "CLASS_SCALE",
    "COORDINATE",
    "FAINT",
    "GRID",
    "INK",
    "LEGEND",
    "METHOD_COLOURS",
    "METHOD_SYMBOLS",
    "MIDDLE",
    "VEIL",
    "Figure",
    "Line",
    "axis",
    "empty",
    "horizontal",
    "layout",
    "note",
    "numbers",
    "plain",
    "token",
    "vertical",
]

Figure = dict[str, Any]

METHOD_COLOURS = {
    "baseline": "#6B7280",
    "addition": "#D55E00",
    "ablation": "#0072B2",
    "affine_ablation": "#B950E6",
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

INK = "var(--ace-ink, #374151)"
FAINT = "var(--ace-faint, #9ca3af)"
GRID = "var(--ace-grid, #e5e7eb)"
MIDDLE = "var(--ace-middle, #eceef1)"
VEIL = "var(--ace-veil, rgba(255,255,255,0.7))"
COORDINATE = "refusal coordinate c"
LEGEND = {"orientation": "h", "xref": "container", "yref": "container", "x": 0, "y": 1, "yanchor": "top"}
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


_EMPTY_WIDTH = 44
"""Characters that fit beside one another on a phone."""


def empty(message: str, height: int) -> Figure:
    """A figure that only says why there is nothing to see yet."""
    bare = {"visible": False, "fixedrange": True}
    text = "<br>".join(map(plain, wrap(message, _EMPTY_WIDTH)))
    words = {"text": text, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    return {
        "data": [],
        "layout": {
            **layout(height, "empty", message),
            "xaxis": bare,
            "yaxis": bare,
            "annotations": [{**words, "font": {"color": INK}}],
        },
    }


def layout(height: int, key: str, summary: str) -> dict[str, Any]:
    """What every layout has; the summary is read out in place of the picture."""
    return {
        "height": height,
        "uirevision": key,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12},
        "hoverlabel": {"font": {"size": 12}},
        "meta": {"summary": summary},
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title."""
    base = {"title": {"text": title, "standoff": 6}, "gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID}
    return {**base, **more}


def horizontal(y: float) -> dict[str, Any]:
    """A reference line over the whole width."""
    line = {"color": FAINT, "width": 1, "dash": "dash"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def vertical(x: float, dash: str = "solid") -> dict[str, Any]:
    """A reference line over the whole height."""
    line = {"color": FAINT, "width": 1, "dash": dash}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line}


def note(text: str, **where: Any) -> dict[str, Any]:
    """A few words without an arrow, readable on top of lines."""
    return {"text": text, "showarrow": False, "font": {"size": 11, "color": INK}, "bgcolor": VEIL, **where}


def numbers(values: np.ndarray) -> Any:
    """Nested lists, rounded for the wire; JSON has no NaN or infinity."""
    rounded = np.round(np.asarray(values, np.float64), 3)
    known = np.isfinite(rounded)
    if not known.all():
        rounded = rounded.astype(object)
        rounded[~known] = None
    return rounded.tolist()


def plain(text: str, limit: int = 200) -> str:
    """Text that plotly draws as it is: its labels read a little HTML."""
    return escape(text if len(text) <= limit else text[: limit - 1] + "…", quote=False)


def token(text: str, limit: int = _TOKEN_CHARACTERS) -> str:
    """A token as a short label, white space made visible."""
    return plain(text.replace("\n", "⏎").strip(" ") or ("␣" if text else ""), limit)
