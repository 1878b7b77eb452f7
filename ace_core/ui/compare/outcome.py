"""How a comparison went, in a sentence, and which buttons go with it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ace_core.runs import Run
from ace_core.ui.status import status

__all__ = ["arms_of", "buttons", "summary"]


def summary(run: Run) -> str:
    """Status: how a finished run went, or that it is a record."""
    if run.recorded:
        source = "the model that comes with this page" if run.model == "embedded" else run.model
        return status("recorded", f"Recorded from {source}, not a live run. Press Run (Ctrl+Enter) for your own.")
    rate = f" at {run.tokens_per_second:.1f} tokens/s together" if run.tokens_per_second else ""
    if any(arm.stop == "cancelled" for arm in run.arms):
        return status("stopped", f"Stopped: {arms_of(run)}{rate}.")
    return status("done", f"Done: {arms_of(run)}{rate}. Move the layer to look at other blocks.")


def arms_of(run: Run) -> str:
    """How many arms a run has, in words."""
    return f"{len(run.arms)} arm{'' if len(run.arms) == 1 else 's'}"


def buttons(running: bool) -> tuple[Any, Any]:
    """Run and Stop."""
    return gr.Button(interactive=not running), gr.Button(interactive=running)
