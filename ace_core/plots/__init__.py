"""Figures from plain arrays, as the plain dictionaries that plotly.js draws.

Every function returns ``{"data": [...], "layout": {...}}``, ready to be sent to a page; ``plotly.graph_objects.Figure``
turns it into a Python figure. Plain dictionaries because a live plot is rebuilt many times a second, where plotly-py's
validation would cost more than the model's own step. Colours that depend on the page's theme are written
``var(--name, #fallback)``, the fallback being the light theme's.
"""

from __future__ import annotations

from ace_core.plots.directions import beside, by_layer, classes, cosines, plane
from ace_core.plots.layers import distribution, sparkline
from ace_core.plots.prompt_layers import prompt_layers
from ace_core.plots.style import CLASS_SCALE, METHOD_COLOURS, METHOD_SYMBOLS, Figure, Line, empty
from ace_core.plots.tokens import heatmap, projection

__all__ = [
    "CLASS_SCALE",
    "METHOD_COLOURS",
    "METHOD_SYMBOLS",
    "Figure",
    "Line",
    "beside",
    "by_layer",
    "classes",
    "cosines",
    "distribution",
    "empty",
    "heatmap",
    "plane",
    "projection",
    "prompt_layers",
    "sparkline",
]
