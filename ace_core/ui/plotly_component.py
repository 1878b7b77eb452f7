"""A plot that is updated in place: zoom is kept and nothing flickers while numbers stream in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ace_core.ui.theme import script

__all__ = ["plotly_plot"]

# plotly-py carries the plotly.js it writes for; Gradio's own copy is a major version older.
_PLOTLY_JS = Path(str(plotly.__file__)).parent / "package_data" / "plotly.min.js"


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
    gr.set_static_paths([_PLOTLY_JS])
    return gr.HTML(
        value,
        html_template=(
            f'<div class="ace-plot" role="img" style="height:{height}px" data-compact="{str(compact).lower()}"></div>'
        ),
        js_on_load=script("plotly_component.js"),
        head=f'<script src="gradio_api/file={_PLOTLY_JS.as_posix()}"></script>',
        apply_default_css=False,
        **arguments,
    )
