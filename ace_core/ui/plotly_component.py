"""A plot that is updated in place: zoom is kept and nothing flickers while numbers stream in."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ace_core.ui.serving import PLOTLY_ROUTE
from ace_core.ui.theme import script

__all__ = ["plotly_plot"]


def plotly_plot(value: str | None = None, *, height: int = 340, compact: bool = False, **arguments: Any) -> gr.HTML:
    """A component that draws a packed figure of :mod:`ace_core.plots`.

    The template does not mention the value, so that Gradio never rebuilds the element; a watcher hands each new
    value to ``Plotly.react``. A function and not a subclass: Gradio writes a stub file beside every module that
    defines a component class.

    Args:
        value: the first figure.
        height: in pixels, reserved before anything is drawn.
        compact: no mode bar and no zoom, for a sparkline.
        arguments: more for ``gr.HTML``.
    """
    return gr.HTML(
        value,
        html_template=(
            f'<div class="ace-plot" role="figure" style="height:{height}px" '
            f'data-compact="{str(compact).lower()}"></div>'
        ),
        js_on_load=script("plotly_component.js"),
        head=f'<script src="{PLOTLY_ROUTE}"></script>',
        apply_default_css=False,
        **arguments,
    )
