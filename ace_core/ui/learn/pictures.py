"""What the pictures of the lessons are drawn from: recorded numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from ace_core.gallery import Classes, Recording
from ace_core.runs import Run
from ace_core.ui.learn.lesson import Picture
from ace_core.ui.theme import GLYPHS

__all__ = ["Sources", "markup", "value"]

_MISSING = "The recorded numbers for this picture are missing: make them again with the commands 'gallery' and "
_MISSING += "'geometry-data'."
_SLIDERS: dict[Picture, list[tuple[str, str, float, float, float]]] = {
    "axis": [("angle", "Angle to the refusal direction, in degrees", -90, 90, 1)],
    "addition": [("alpha", "Coefficient α", -1, 2, 0.05)],
    "origin": [("origin", "Where the origin lies, as a coordinate", -1, 2, 0.05)],
    "ace": [("alpha", "Coefficient α", -1, 2, 0.05)],
    "interval": [("count", "Prompts tested with each method", 10, 400, 10)],
}
"""Name, label, least, most and step of the sliders of a picture."""


class Sources:
    """Recorded numbers.

    Args:
        plane: of :func:`ace_core.ui.geometry.tab.load_map`, or None.
        classes: held-out coordinates, or None.
        recordings: the gallery.
    """

    def __init__(self, plane: Mapping[str, Any] | None, classes: Classes | None, recordings: tuple[Recording, ...]):
        self.plane, self.classes = plane, classes
        self.runs = {one.name.partition("-")[2]: one.run for one in recordings}


def value(picture: Picture, sources: Sources) -> dict[str, Any] | None:
    """Data of a picture for the script; None if its source is missing."""
    if picture == "interval":
        return {"kind": picture, "shares": [0.9, 0.7]}
    if picture == "layers":
        return None if sources.classes is None else {"kind": picture, **_classes(sources.classes)}
    if picture in ("stream", "drift"):
        run = sources.runs.get("four-methods")
        return None if run is None else {"kind": picture, **(_stream(run) if picture == "stream" else _drift(run))}
    return None if sources.plane is None else {"kind": picture, **_plane(sources.plane)}


def markup(picture: Picture, data: Mapping[str, Any] | None, caption: str, number: int) -> str:
    """Everything but the numbers and the drawing, so that nothing jumps when the script starts."""
    if data is None:
        return f'<p class="ace-lab-note">{escape(_MISSING)}</p>'
    sliders = "".join(_slider(number, *each) for each in _sliders(picture, data))
    return f"""
<figure class="ace-learn-picture" data-kind="{picture}">
  <figcaption>{escape(caption)}</figcaption>
  <div class="ace-learn-controls">{_radios(picture, data, number)}{sliders}</div>
  <div class="ace-learn-stage" data-slot="stage"></div>
  <p class="ace-learn-said" role="status" data-slot="said"></p>
</figure>
"""


def _sliders(picture: Picture, data: Mapping[str, Any]) -> list[tuple[str, str, float, float, float]]:
    if picture in ("stream", "layers"):
        return [("block", "Block", 0, data["blocks"] - 1, 1)]
    return _SLIDERS.get(picture, [])


def _slider(number: int, name: str, label: str, low: float, high: float, step: float) -> str:
    name_of = f"ace-learn-{number}-{name}"
    return (
        f'<div class="ace-geo-slider"><label for="{name_of}">{escape(label)}</label>'
        f'<output for="{name_of}" data-slot="{name}"></output>'
        f'<input id="{name_of}" type="range" data-name="{name}" min="{low:g}" max="{high:g}" step="{step:g}"></div>'
    )


def _radios(picture: Picture, data: Mapping[str, Any], number: int) -> str:
    known = {
        "origin": [("ablation", "Directional ablation"), ("affine_ablation", "Affine ablation")],
        "ace": [("ace", "ACE"), ("addition", "Activation addition")],
        "drift": [(arm["method"], arm["label"].partition(",")[0]) for arm in data.get("arms", ())],
    }
    if picture not in known:
        return ""
    options = "".join(
        f'<label data-method="{method}"><input type="radio" name="ace-learn-{number}-method" value="{method}"'
        f'{" checked" if first else ""}><span class="ace-glyph" aria-hidden="true">{GLYPHS[method]}</span>'
        f"<span>{escape(label)}</span></label>"
        for first, (method, label) in zip([True, *[False] * 9], known[picture], strict=False)
    )
    return f'<fieldset class="ace-geo-choices"><legend>Method</legend>{options}</fieldset>'


def _plane(plane: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model", "block", "harmless", "harmful", "mean_harmless", "mean_harmful", "origin", "edits")
    return {name: plane[name] for name in names}


def _classes(classes: Classes) -> dict[str, Any]:
    return {
        "model": classes.model,
        "blocks": len(classes.auroc),
        "block": classes.recommended,
        "harmless": _rounded(classes.harmless),
        "harmful": _rounded(classes.harmful),
        "auroc": _rounded(classes.auroc),
    }


def _stream(run: Run) -> dict[str, Any]:
    arm, prompt = run.arms[0], len(run.prompt_tokens)
    return {
        "blocks": arm.after.shape[0],
        "block": run.settings.layer,
        "tokens": list(run.prompt_tokens),
        "coordinates": _rounded(arm.after[:, :prompt]),
    }


def _drift(run: Run) -> dict[str, Any]:
    last = len(run.prompt_tokens) - 1
    arms = [
        {
            "method": arm.method,
            "label": arm.label,
            "before": _rounded(arm.before[:, last]),
            "after": _rounded(arm.after[:, last]),
            "text": arm.text.strip(),
            "verdict": arm.verdict,
        }
        for arm in reversed(run.arms)
    ]
    return {"block": run.settings.layer, "prompt": run.prompt, "arms": arms}


def _rounded(values: np.ndarray) -> Any:
    return np.round(np.asarray(values, np.float64), 3).tolist()
