"""A map of activations for the eye: along the refusal direction, and along the strongest direction of the rest.

``x`` is ``v . u``, so the origin lies at 0 and every edit of :mod:`ace_core.geometry` moves a point sideways only.
``y`` is the component along the first principal component of what is orthogonal to ``u``, measured from the class
means, which lie at one height because their difference is along ``u``.
"""

from __future__ import annotations

import base64
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
from ace_core.fitting.filtering import behaving
from ace_core.inspecting.axes import frame
from ace_core.models import ChatModel, load_model
from ace_core.prompts import load_builtin

__all__ = ["GEOMETRY", "Plane", "build_plane", "geometry_data", "plane", "read_plane", "write_plane"]

GEOMETRY = Path(__file__).resolve().parents[2] / "assets" / "geometry.json"
"""The map of the default model that ships."""

_MAX_BYTES = 200_000
_DIGITS = 6
_CLASSES = ("harmless", "harmful")
_PLACES = ("mean_harmless", "mean_harmful", "origin", *_CLASSES)
_AXES = ("unit", "principal")
_SAME = 1e-3
"""How far, in class gaps, means may lie from where a map has them before they are others."""


@dataclass(frozen=True)
class Plane:
    """Both classes on a map, in units of activation, and the axes that put other activations there.

    Args:
        harmless, harmful: positions ``(n, 2)`` and ``(m, 2)``.
        mean_harmless, mean_harmful, origin: positions ``(2,)``.
        unit, principal: axes ``(d,)``, see :class:`ace_core.inspecting.axes.Frame`, whose centre ``origin`` replaces.
        share: see :class:`ace_core.inspecting.axes.Frame`.
        model_id: whose activations these are.
        block: 0-based decoder block.

    Raises:
        EngineError: for shapes that don't fit, numbers that are not finite, class means in the wrong order, or axes
            that are not of unit length and orthogonal.
    """

    harmless: np.ndarray
    harmful: np.ndarray
    mean_harmless: np.ndarray
    mean_harmful: np.ndarray
    origin: np.ndarray
    unit: np.ndarray
    principal: np.ndarray
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
        axes = (self.unit, self.principal)
        if self.unit.ndim != 1 or self.unit.size < 2 or self.principal.shape != self.unit.shape:
            raise EngineError("The two axes of a map must be equally long lists of numbers: make it again.")
        if not all(np.isfinite(part).all() for part in (self.harmless, self.harmful, *landmarks, *axes)):
            raise EngineError("The map holds numbers that are not finite: make it again.")
        if not np.allclose(np.stack(axes) @ np.stack(axes).T, np.eye(2), atol=1e-4):
            raise EngineError("The axes of the map are not of unit length and orthogonal: make it again.")
        off = abs(self.origin[0]) > _SAME * max(self.gap, 0.0)
        if off or not self.gap > 0 or not 0 <= self.share <= 1 or self.block < 0:
            raise EngineError("The numbers of the map contradict each other: make it again.")

    @property
    def gap(self) -> float:
        """Class gap ``g``."""
        return float(self.mean_harmful[0] - self.mean_harmless[0])

    def project(self, v: np.ndarray) -> np.ndarray:
        """Positions ``(..., 2)`` float64 of activations ``(..., d)`` at :attr:`block`.

        Raises:
            EngineError: for activations of another width.
        """
        wide = np.asarray(v, np.float64)
        if wide.shape[-1:] != self.unit.shape:
            raise EngineError(f"This map is for activations of width {self.unit.size}: give it those of its model.")
        return self.origin + np.stack([wide @ self.unit, wide @ self.principal], axis=-1)

    def agrees(self, directions: RefusalDirections) -> bool:
        """Whether directions have this map's x axis and class means at its block."""
        if self.block >= directions.blocks or directions.width != self.unit.size:
            return False
        means = (directions.mean_harmless[self.block], directions.mean_harmful[self.block])
        places = self.project(np.stack([mean.numpy() for mean in means]))
        near = np.allclose(places, [self.mean_harmless, self.mean_harmful], rtol=0, atol=_SAME * self.gap)
        along = float(directions.axis(self.block).unit.double().numpy() @ self.unit)
        return near and along > 1 - _SAME**2

    def to_json(self) -> dict[str, Any]:
        """Numbers rounded to about a hundred-thousandth of the class gap; axes as base64 of little-endian float32."""
        decimals = _DIGITS - 1 - math.floor(math.log10(self.gap))
        places = {name: (np.round(getattr(self, name), decimals) + 0.0).tolist() for name in _PLACES}
        return {
            "model": self.model_id,
            "block": self.block,
            "counts": {kind: len(getattr(self, kind)) for kind in _CLASSES},
            "gap": round(self.gap, decimals),
            "share": round(self.share, 4),
            **places,
            **{name: base64.b64encode(getattr(self, name).astype("<f4").tobytes()).decode() for name in _AXES},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plane:
        """Inverse of :meth:`to_json`.

        Raises:
            EngineError: if the data is not such a map or contradicts itself.
        """
        try:
            arrays = {name: np.asarray(data[name], np.float64) for name in _PLACES}
            axes = {name: np.frombuffer(base64.b64decode(data[name], validate=True), "<f4") for name in _AXES}
            wide = {name: axis.astype(np.float64) for name, axis in axes.items()}
            made = cls(
                **arrays, **wide, share=float(data["share"]), model_id=str(data["model"]), block=int(data["block"])
            )
            same_gap = math.isclose(float(data["gap"]), made.gap, rel_tol=1e-3)
            counts = {kind: len(arrays[kind]) for kind in _CLASSES}
            same = same_gap and counts == data["counts"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EngineError("This is not a map of this project, or it is damaged: make it again.") from error
        if not same:
            raise EngineError("The numbers of the map contradict each other: make it again.")
        return made


def plane(harmless: np.ndarray, harmful: np.ndarray, mean_harmless: np.ndarray, mean_harmful: np.ndarray) -> Plane:
    """The map of two classes ``(n, d)`` and ``(m, d)`` with class means ``(d,)``.

    Raises:
        EngineError: as :func:`frame`.
    """
    axes = frame(harmless, harmful, mean_harmless, mean_harmful)
    origin = np.zeros_like(axes.unit)
    places = (axes.project(v) for v in (harmless, harmful, mean_harmless, mean_harmful, origin))
    return Plane(*places, unit=axes.unit, principal=axes.principal, share=axes.share)


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
    """Make the file that the page's geometry tab shows, from the prompts that its directions were fitted on.

    Args:
        path: file to write.
        model: None loads the default one.
        progress: called with (prompts done, prompts in all).

    Raises:
        EngineError: if the model can't be loaded or the file can't be written.
    """
    model = load_model("embedded") if model is None else model
    harmless, harmful = ([prompt.text for prompt in load_builtin(kind, "fit")] for kind in _CLASSES)
    harmful, harmless = behaving(model, harmful, harmless)
    made = build_plane(model, directions_for(model), harmless, harmful, progress=progress)
    write_plane(made, path)
    return made
