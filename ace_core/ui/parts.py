"""Parts that several tabs are made of."""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

__all__ = ["downloads", "heading"]


def heading(title: str, explanation: str) -> None:
    """A heading with one sentence under it; both are markup."""
    gr.HTML(f'<div class="ace-heading"><h2>{title}</h2><p>{explanation}</p></div>', apply_default_css=False)


def downloads(row: str, titles: Mapping[str, str]) -> tuple[gr.DownloadButton, ...]:
    """Buttons side by side that have nothing to give yet.

    Args:
        row: element id of the row.
        titles: by element id of the button.
    """
    with gr.Row(elem_id=row):
        return tuple(
            gr.DownloadButton(title, interactive=False, size="md", min_width=200, elem_id=name)
            for name, title in titles.items()
        )
