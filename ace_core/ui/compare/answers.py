"""The columns of answers, one an arm, that grow in lockstep."""

from __future__ import annotations

from typing import Any, TypedDict

import gradio as gr

from ace_core.ui.theme import script

__all__ = ["AnswersValue", "Column", "answers_view"]


class Column(TypedDict):
    """One arm's answer as the page shows it; a token is its text and its coordinate, None until it is read."""

    label: str
    method: str
    glyph: str
    stamp: str
    badge: str
    note: str
    tokens: list[tuple[str, float | None]]


class AnswersValue(TypedDict):
    """``key`` changes with every run; columns of an unchanged key only grow or change colour."""

    key: str
    live: bool
    block: int
    columns: list[Column]


def answers_view(value: str | None = None, **arguments: Any) -> gr.HTML:
    """Columns of tokens shaded by coordinate, from a packed :class:`AnswersValue`.

    The script writes through ``textContent`` only, so nothing a model or a visitor writes can become markup.
    """
    return gr.HTML(
        value,
        html_template='<div class="ace-answers"></div>',
        js_on_load=script("answers.js"),
        apply_default_css=False,
        **arguments,
    )
