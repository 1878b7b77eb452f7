"""Sentences under the fields they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ace_core.ui.packing import pack
from ace_core.ui.theme import script

__all__ = ["element_id", "marks", "problems_view"]


def element_id(field: str) -> str:
    """The id in the page of a field of :data:`ace_core.ui.controls.FIELDS`."""
    return field.replace("_", "-")


def marks(found: Mapping[str, str], focus: bool = False) -> str:
    """Value of a :func:`problems_view`.

    Args:
        found: sentence by field.
        focus: take the visitor to the first one.
    """
    return pack({"problems": [(element_id(field), text) for field, text in found.items()], "focus": focus})


def problems_view(**arguments: Any) -> gr.HTML:
    """An invisible component that marks other fields; it writes through ``textContent`` only."""
    return gr.HTML(
        marks({}),
        html_template="",
        js_on_load=script("problems.js"),
        apply_default_css=False,
        **arguments,
    )
