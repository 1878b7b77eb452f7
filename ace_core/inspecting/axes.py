"""The axes of a map of activations: the refusal direction, and the strongest direction of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ace_core.errors import EngineError

__all__ = ["Frame", "frame"]


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


def _across(unit: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """``direction`` made orthogonal to ``unit``, of unit length, with one sign out of two that are equally right."""
    across = direction - (direction @ unit) * unit
    across = across / np.linalg.norm(across)
    across = across - (across @ unit) * unit
    return across * np.sign(across[np.argmax(np.abs(across))])
