"""One visual language for the whole page: Gradio theme, style sheet and method colours."""

from __future__ import annotations

from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils import colors, sizes
from gradio.themes.utils.fonts import LocalFont

from ace_core.plots import CLASS_SCALE, METHOD_COLOURS

__all__ = ["GLYPHS", "STATIC", "css", "script", "theme"]

STATIC = Path(__file__).parent / "static"

GLYPHS = {"baseline": "●", "addition": "▲", "ablation": "■", "affine_ablation": "✖", "ace": "◆"}
"""The plots' marker of each method as a character, for text."""


def script(name: str) -> str:
    """A script of the static folder."""
    return (STATIC / name).read_text(encoding="utf-8")


def css() -> str:
    """The style sheet, with the colours shared with the plots as variables."""
    low, high = CLASS_SCALE
    shared = [f"--ace-{method.replace('_', '-')}: {colour};" for method, colour in METHOD_COLOURS.items()]
    shared += [f"--ace-low: {low};", f"--ace-high: {high};"]
    return f":root {{ {' '.join(shared)} }}\n" + script("page.css") + script("learn.css")


def theme() -> Base:
    """Neutral greys, so that colour always means a method or a coordinate; fonts that Gradio brings along."""
    sans = [LocalFont("IBM Plex Sans", (400, 700)), "system-ui", "sans-serif"]
    mono = [LocalFont("IBM Plex Mono", (400, 700)), "ui-monospace", "monospace"]
    return Base(
        primary_hue=colors.slate,
        secondary_hue=colors.slate,
        neutral_hue=colors.gray,
        radius_size=sizes.radius_sm,
        spacing_size=sizes.spacing_sm,
        text_size=sizes.text_sm,
        font=sans,
        font_mono=mono,
    ).set(
        body_text_color_subdued="#4b5563",
        body_text_color_subdued_dark="#b6bcc6",
        button_primary_background_fill="#1f2937",
        button_primary_background_fill_hover="#374151",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#e5e7eb",
        button_primary_background_fill_hover_dark="#ffffff",
        button_primary_text_color_dark="#111827",
        slider_color="#4b5563",
        slider_color_dark="#9ca3af",
        checkbox_background_color_selected="#1f2937",
        checkbox_background_color_selected_dark="#6b7280",
        checkbox_border_color_selected="#1f2937",
        checkbox_border_color_selected_dark="#9ca3af",
        block_info_text_color="#4b5563",
        block_info_text_color_dark="#b6bcc6",
        block_info_text_size="0.75rem",
        block_label_text_color="#111827",
        block_title_text_color="#111827",
        block_title_text_color_dark="#f3f4f6",
        block_title_text_weight="600",
    )
