"""What model is loaded, or how far loading has come."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ace_core.host import HostState
from ace_core.ui.theme import script

__all__ = ["ModelCard", "card"]


def card(state: HostState) -> dict[str, Any]:
    """Value of a :class:`ModelCard`."""
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
    return {
        "status": state.status,
        "name": info.model_id if info else {"loading": "Loading", "failed": "No model"}.get(state.status, "No model"),
        "message": "" if state.status == "ready" else state.message,
        "progress": state.progress,
        "facts": facts,
    }


class ModelCard(gr.HTML):
    """Written through ``textContent`` only."""

    def __init__(self, value: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(
            value,
            html_template='<div class="ace-card"></div>',
            js_on_load=script("model_card.js"),
            apply_default_css=False,
            container=False,
            padding=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}
