"""A sweep's figures as SVG files, where the optional package kaleido and a Chrome are there to draw them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ace_core.sweeps.figures import Picture

__all__ = ["literal", "write_images"]

_VARIABLE = re.compile(r"^var\(--[\w-]+,\s*(.+)\)$")
_WIDTH = 1000


def literal(value: Any) -> Any:
    """A figure whose theme colours ``var(--name, #fallback)`` are their fallbacks, the light theme's."""
    if isinstance(value, str):
        found = _VARIABLE.match(value)
        return found[1] if found else value
    if isinstance(value, (list, tuple)):
        return [literal(item) for item in value]
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return value


def write_images(folder: Path, pictures: Sequence[Picture]) -> tuple[list[Path], str]:
    """Write ``figure-1.svg`` and so on, in the light theme.

    Returns:
        What was written, and why nothing was, in one sentence, or an empty string.
    """
    paths = [folder / f"figure-{number}.svg" for number in range(1, len(pictures) + 1)]
    try:
        import kaleido  # type: ignore[import-not-found]  # noqa: F401
        import plotly.io
    except ImportError:
        return [], "No SVG files: pip install kaleido; the report's figures can be saved with their camera button."
    figures = []
    for picture in pictures:
        figure = literal(picture.figure)
        layout = {**figure["layout"], "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff"}
        figures.append({"data": figure["data"], "layout": layout})
    heights: list[int | None] = [int(figure["layout"]["height"]) for figure in figures]
    try:
        plotly.io.write_images(
            figures, [str(path) for path in paths], format="svg", validate=False, width=_WIDTH, height=heights
        )
    except Exception as error:  # a missing or failing Chrome raises whatever its driver likes
        told = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return [], f"No SVG files: no Chrome could draw them ({told[:120]}); set BROWSER_PATH to one."
    return paths, ""
