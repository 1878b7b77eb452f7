"""What model is loaded, or how far loading has come."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ace_core.host import HostState
from ace_core.ui.packing import pack
from ace_core.ui.theme import script

__all__ = ["card", "model_card"]


def card(state: HostState) -> str:
    """Value of a :func:`model_card`."""
    info = state.info
    facts: list[tuple[str, str]] = []
    if info is not None:
        facts = [
            ("Blocks", f"{info.blocks}"),
            ("Width", f"{info.width:,}"),
            ("Parameters", f"{info.parameters / 1e6:,.0f} M"),
            ("Device", info.device),
            ("Numbers", info.precision),
            ("Chat", "yes" if info.chat else "no, a base model"),
        ]
    return pack(
        {
            "status": state.status,
            "name": info.model_id
            if info
            else {"loading": "Loading", "failed": "No model"}.get(state.status, "No model"),
            "message": "" if state.status == "ready" else state.message,
            "progress": state.progress,
            "facts": facts,
        }
    )


def model_card(value: str, **arguments: Any) -> gr.HTML:
    """A card with what :func:`card` returns."""
    return gr.HTML(
        value,
        html_template='<div class="ace-card"></div>',
        js_on_load=script("model_card.js"),
        apply_default_css=False,
        **arguments,
    )
