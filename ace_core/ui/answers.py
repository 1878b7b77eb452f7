"""The columns of answers, one an arm, that grow in lockstep."""

from __future__ import annotations

from typing import Any, TypedDict

import gradio as gr

from ace_core.ui.theme import script

__all__ = ["Answers", "AnswersValue", "Column"]


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


class Answers(gr.HTML):
    """Columns of tokens shaded by coordinate.

    The script writes through ``textContent`` only, so nothing a model or a visitor writes can become markup.
    """

    def __init__(self, value: AnswersValue | None = None, **arguments: Any) -> None:
        super().__init__(
            value,
            html_template='<div class="ace-answers"></div>',
            js_on_load=script("answers.js"),
            apply_default_css=False,
            container=False,
            padding=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}
