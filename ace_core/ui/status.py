"""One line that says what is going on, in a place that never changes its height."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import gradio as gr

from ace_core.ui.theme import script

__all__ = ["Kind", "Status", "StatusValue", "status"]

Kind = Literal["idle", "recorded", "waiting", "running", "done", "stopped", "stale", "error"]


class StatusValue(TypedDict):
    kind: Kind
    text: str


def status(kind: Kind, text: str) -> StatusValue:
    return {"kind": kind, "text": text}


class Status(gr.HTML):
    """A live region for screen readers too."""

    def __init__(self, value: StatusValue | None = None, **arguments: Any) -> None:
        super().__init__(
            value,
            html_template='<p class="ace-status" role="status" aria-live="polite"></p>',
            js_on_load=script("status.js"),
            apply_default_css=False,
            container=False,
            padding=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}
