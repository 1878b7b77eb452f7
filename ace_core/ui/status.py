"""One line that says what is going on, in a place that never changes its height."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr

from ace_core.ui.packing import pack
from ace_core.ui.theme import script

__all__ = ["Kind", "status", "status_line"]

Kind = Literal["idle", "recorded", "waiting", "running", "done", "stopped", "stale", "error"]


def status(kind: Kind, text: str) -> str:
    """Value of a :func:`status_line`."""
    return pack({"kind": kind, "text": text})


def status_line(value: str, **arguments: Any) -> gr.HTML:
    """A live region, for screen readers too."""
    return gr.HTML(
        value,
        html_template='<p class="ace-status" role="status" aria-live="polite"></p>',
        js_on_load=script("status.js"),
        apply_default_css=False,
        **arguments,
    )
