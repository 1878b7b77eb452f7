"""A map of activations for the eye: along the refusal direction, and along the strongest direction of the rest.

``x`` is ``v . u``, so the origin lies at 0 and every edit of :mod:`ace_core.geometry` moves a point sideways only.
``y`` is the component along the first principal component of what is orthogonal to ``u``, measured from the class
means, which lie at one height because their difference is along ``u``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ace_core.activations import Progress, position_activations
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.fitting.extraction import directions_for
from ace_core.models import ChatModel, load_model
from ace_core.prompts import evenly, load_builtin

__all__ = ["GEOMETRY", "Frame", "Plane", "build_plane", "frame", "geometry_data", "plane", "read_plane", "write_plane"]

GEOMETRY = Path(__file__).resolve().parents[2] / "assets" / "geometry.json"
"""The map of the default model that ships."""

_MAX_BYTES = 60_000
_SHOWN = 200  # of each class
_DIGITS = 6
_CLASSES = ("harmless", "harmful")
_PLACES = ("mean_harmless", "mean_harmful", "origin", *_CLASSES)


@dataclass(frozen=True)
class Frame:
    """The two axes of a map and where it hangs in space; all ``(d,)`` float64.

    ``unit`` is ``u``; ``principal`` is of unit length and orthogonal to it, its largest entry positive; ``centre``
    lies halfway between the class means. ``share`` is how much of the variance orthogonal to ``u`` lies along
    ``principal``, from 0 to 1.
    """

    unit: np.ndarray
    principal: np.ndarray
    centre: np.ndarray
    share: float

    def project(self, v: np.ndarray) -> np.ndarray:
        """Positions ``(..., 2)`` of activations ``(..., d)``."""
        wide = np.asarray(v, np.float64)
        return np.stack([wide @ self.unit, (wide - self.centre) @ self.principal], axis=-1)


@dataclass(frozen=True)
class Plane:
    """Both classes on a map, in units of activation.

    Args:
        harmless, harmful: positions ``(n, 2)`` and ``(m, 2)``.
        mean_harmless, mean_harmful, origin: positions ``(2,)``.
        share: see :class:`Frame`.
        model_id: whose activations these are.
        block: 0-based decoder block.

    Raises:
        EngineError: for shapes that don't fit, numbers that are not finite, or class means in the wrong order.
    """

    harmless: np.ndarray
    harmful: np.ndarray
    mean_harmless: np.ndarray
    mean_harmful: np.ndarray
    origin: np.ndarray
    share: float
    model_id: str = ""
    block: int = 0

    def __post_init__(self) -> None:
        for points in (self.harmless, self.harmful):
            if points.ndim != 2 or points.shape[1] != 2 or not len(points):
                raise EngineError("A map needs at least one prompt of each class, at two numbers each.")
        landmarks = (self.mean_harmless, self.mean_harmful, self.origin)
        if any(place.shape != (2,) for place in landmarks):
            raise EngineError("The class means and the origin of a map must be two numbers each.")
        if not all(np.isfinite(part).all() for part in (self.harmless, self.harmful, *landmarks)):
            raise EngineError("The map holds numbers that are not finite: make it again.")
        if not self.gap > 0 or not 0 <= self.share <= 1 or self.block < 0:
            raise EngineError("The numbers of the map contradict each other: make it again.")

    @property
    def gap(self) -> float:
        """Class gap ``g``."""
        return float(self.mean_harmful[0] - self.mean_harmless[0])

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, rounded to about a hundred-thousandth of the class gap."""
        decimals = _DIGITS - 1 - math.floor(math.log10(self.gap))
        places = {name: (np.round(getattr(self, name), decimals) + 0.0).tolist() for name in _PLACES}
        return {
            "model": self.model_id,
            "block": self.block,
            "counts": {kind: len(getattr(self, kind)) for kind in _CLASSES},
            "gap": round(self.gap, decimals),
            "share": round(self.share, 4),
            **places,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plane:
        """Inverse of :meth:`to_json`.

        Raises:
            EngineError: if the data is not such a map or contradicts itself.
        """
        try:
            arrays = {name: np.asarray(data[name], np.float64) for name in _PLACES}
            made = cls(**arrays, share=float(data["share"]), model_id=str(data["model"]), block=int(data["block"]))
            same_gap = math.isclose(float(data["gap"]), made.gap, rel_tol=1e-3)
            counts = {kind: len(arrays[kind]) for kind in _CLASSES}
            same = same_gap and counts == data["counts"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EngineError("This is not a map of this project, or it is damaged: make it again.") from error
        if not same:
            raise EngineError("The numbers of the map contradict each other: make it again.")
        return made


def frame(
    harmless: np.ndarray,
    harmful: np.ndarray,
    mean_harmless: np.ndarray,
    mean_harmful: np.ndarray,
    unit: np.ndarray | None = None,
) -> Frame:
    """Axes for two classes ``(n, d)`` and ``(m, d)`` with class means ``(d,)``, d at least 2.

    ``unit`` ``(d,)`` is the first axis, of unit length; None takes the difference of the means.

    Raises:
        EngineError: for shapes that don't fit, numbers that are not finite, or equal means.
    """
    low, high = (np.asarray(mean, np.float64) for mean in (mean_harmless, mean_harmful))
    classes = [np.asarray(points, np.float64) for points in (harmless, harmful)]
    width = low.shape[-1] if low.ndim == 1 else 0
    if width < 2 or high.shape != (width,) or any(c.ndim != 2 or c.shape[1] != width or not len(c) for c in classes):
        raise EngineError("A map needs activations (prompts, width) of both classes and their two means (width,).")
    points = np.concatenate(classes)
    if not all(np.isfinite(part).all() for part in (points, low, high)):
        raise EngineError("The model produced non-finite activations: load it in float32 and try again.")
    gap = float(np.linalg.norm(high - low))
    if gap == 0:
        raise EngineError("The two class means are equal: use two different prompt sets.")
    unit = (high - low) / gap if unit is None else np.asarray(unit, np.float64)
    rest = points - points.mean(0)
    rest = rest - np.outer(rest @ unit, unit)
    _, lengths, axes = np.linalg.svd(rest, full_matrices=False)
    total = float(np.square(lengths).sum())
    # What is left of points on one line is rounding, and its direction means nothing.
    noise = (np.finfo(np.float64).eps * max(rest.shape) * max(float(np.abs(points).max()), gap)) ** 2
    if total <= noise:
        return Frame(unit, _across(unit, np.eye(width)[np.argmin(np.abs(unit))]), (low + high) / 2, 0.0)
    return Frame(unit, _across(unit, axes[0]), (low + high) / 2, min(1.0, float(lengths[0] ** 2) / total))


def plane(harmless: np.ndarray, harmful: np.ndarray, mean_harmless: np.ndarray, mean_harmful: np.ndarray) -> Plane:
    """The map of two classes ``(n, d)`` and ``(m, d)`` with class means ``(d,)``.

    Raises:
        EngineError: as :func:`frame`.
    """
    axes = frame(harmless, harmful, mean_harmless, mean_harmful)
    origin = np.zeros_like(axes.unit)
    places = (axes.project(v) for v in (harmless, harmful, mean_harmless, mean_harmful, origin))
    return Plane(*places, share=axes.share)


def build_plane(
    model: ChatModel,
    directions: RefusalDirections,
    harmless: Sequence[str],
    harmful: Sequence[str],
    block: int | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Plane:
    """The map of a model's activations at the last token of each prompt.

    Its x axis is the difference of the class means, whatever variant the directions are.

    Args:
        model: a loaded model.
        directions: fitted on it; their class means are the map's.
        harmless, harmful: prompts to show.
        block: 0-based decoder block; None takes the recommended one.
        progress: called with (prompts done, prompts in all).

    Raises:
        EngineError: for a block outside the model, unusable prompts, or directions of another model.
    """
    model.accepts(directions)
    chosen = directions.recommended_layer if block is None else block
    if not 0 <= chosen < directions.blocks:
        raise EngineError(f"There is no block {chosen}: choose one from 0 to {directions.blocks - 1}.")
    texts = [*harmless, *harmful]
    points = np.empty((len(texts), directions.width))
    site = "input" if directions.site == "input" else "output"
    for rows, activations in position_activations(model, texts, site=site, progress=progress):
        points[rows] = activations[chosen].numpy()
    means = (directions.mean_harmless[chosen].numpy(), directions.mean_harmful[chosen].numpy())
    flat = plane(points[: len(harmless)], points[len(harmless) :], *means)
    return Plane(**{**vars(flat), "model_id": directions.model_id or model.model_id, "block": chosen})


def write_plane(made: Plane, path: Path | str) -> None:
    """Write a map as JSON.

    Raises:
        EngineError: if it is too large to ship, or the file can't be written.
    """
    path = Path(path)
    text = json.dumps(made.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
    if len(text.encode()) > _MAX_BYTES:
        raise EngineError(f"The map is larger than {_MAX_BYTES // 1000} KB: show fewer prompts.")
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise EngineError(f"{path} could not be written ({error.strerror or error}): choose another file.") from None


def read_plane(path: Path | str) -> Plane:
    """Read a map, with its numbers checked.

    Raises:
        EngineError: for a missing, oversized, damaged or foreign file.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise EngineError(f"{path.name} is larger than {_MAX_BYTES // 1000} KB, so it is no map of this project.")
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise EngineError(f"{path} can't be read ({error.strerror or error}): check the path.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"{path.name} is not a map of this project, or is damaged: make it again.") from None
    return Plane.from_json(data)


def geometry_data(
    path: Path | str, model: ChatModel | None = None, *, progress: Progress = lambda done, total: None
) -> Plane:
    """Make the file that the page's geometry tab shows, from the prompts that directions are fitted on.

    Args:
        path: file to write.
        model: None loads the default one.
        progress: called with (prompts done, prompts in all).

    Raises:
        EngineError: if the model can't be loaded or the file can't be written.
    """
    model = load_model("embedded") if model is None else model
    harmless, harmful = (evenly([prompt.text for prompt in load_builtin(kind, "fit")], _SHOWN) for kind in _CLASSES)
    made = build_plane(model, directions_for(model), harmless, harmful, progress=progress)
    write_plane(made, path)
    return made


def _across(unit: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """``direction`` made orthogonal to ``unit``, of unit length, with one sign out of two that are equally right."""
    across = direction - (direction @ unit) * unit
    across = across / np.linalg.norm(across)
    across = across - (across @ unit) * unit
    return across * np.sign(across[np.argmax(np.abs(across))])
