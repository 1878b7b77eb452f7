"""Steering methods: each turns the two class means along a direction into (remove, add).

To add a method, write one frozen dataclass with ``name``, ``coefficient``, ``label`` and ``affine`` and list it
in ``METHODS``; the engine, the command line and the page find it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ace_core.errors import EngineError

__all__ = [
    "ACE",
    "COEFFICIENT_LIMIT",
    "METHODS",
    "Addition",
    "AffineAblation",
    "Baseline",
    "DirectionalAblation",
    "Method",
    "parse_method",
]

COEFFICIENT_LIMIT = 20.0
"""Largest accepted magnitude of a coefficient, in class gaps; far beyond it every model emits noise."""


class Method(Protocol):
    """What a steering method has to offer."""

    name: ClassVar[str]
    title: ClassVar[str]

    @property
    def coefficient(self) -> float | None:
        """Coefficient in class gaps, or None for a method that has none."""
        ...

    @property
    def label(self) -> str: ...

    def affine(self, low: float, high: float) -> tuple[float, float]:
        """``(remove, add)`` of :func:`ace_core.geometry.apply_edit`.

        Args:
            low: component of the harmless mean along the unit direction, units of activation.
            high: component of the harmful mean.
        """
        ...


def _checked(coefficient: float) -> float:
    if not math.isfinite(coefficient) or abs(coefficient) > COEFFICIENT_LIMIT:
        raise EngineError(
            f"Coefficient {coefficient} is out of range: choose a number from "
            f"{-COEFFICIENT_LIMIT:g} to {COEFFICIENT_LIMIT:g} class gaps."
        )
    return coefficient


@dataclass(frozen=True)
class _Fixed:
    """A method without a coefficient."""

    name: ClassVar[str]
    title: ClassVar[str]

    @property
    def coefficient(self) -> float | None:
        return None

    @property
    def label(self) -> str:
        return self.title


@dataclass(frozen=True)
class _Scaled:
    """A method with a coefficient alpha in class gaps."""

    alpha: float
    name: ClassVar[str]
    title: ClassVar[str]

    def __post_init__(self) -> None:
        _checked(self.alpha)

    def affine(self, low: float, high: float) -> tuple[float, float]:
        raise NotImplementedError

    @property
    def coefficient(self) -> float | None:
        return self.alpha

    @property
    def label(self) -> str:
        return f"{self.title}, α = {self.alpha:g}"


@dataclass(frozen=True)
class Baseline(_Fixed):
    """No edit."""

    name: ClassVar[str] = "baseline"
    title: ClassVar[str] = "Baseline"

    def affine(self, low: float, high: float) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass(frozen=True)
class Addition(_Scaled):
    """Activation addition (CAA; Rimsky et al., arXiv 2312.06681): ``v + alpha r``."""

    name: ClassVar[str] = "addition"
    title: ClassVar[str] = "Activation addition"

    def affine(self, low: float, high: float) -> tuple[float, float]:
        return 0.0, self.alpha * (high - low)


@dataclass(frozen=True)
class DirectionalAblation(_Fixed):
    """Directional ablation (Arditi et al., arXiv 2406.11717): ``v - proj_r(v)``."""

    name: ClassVar[str] = "ablation"
    title: ClassVar[str] = "Directional ablation"

    def affine(self, low: float, high: float) -> tuple[float, float]:
        return 1.0, 0.0


@dataclass(frozen=True)
class AffineAblation(_Fixed):
    """Affine ablation: ``v - proj_r(v) + proj_r(mu_minus)``, which is ACE at coefficient 0."""

    name: ClassVar[str] = "affine_ablation"
    title: ClassVar[str] = "Affine ablation"

    def affine(self, low: float, high: float) -> tuple[float, float]:
        return 1.0, low


@dataclass(frozen=True)
class ACE(_Scaled):
    """Affine concept editing (arXiv 2411.09003): ``v - proj_r(v) + proj_r(mu_minus) + alpha r``.

    Along a shared direction the coordinate is ``(1 - alpha) low + alpha high``, the same expression.
    """

    name: ClassVar[str] = "ace"
    title: ClassVar[str] = "ACE"

    def affine(self, low: float, high: float) -> tuple[float, float]:
        return 1.0, (1.0 - self.alpha) * low + self.alpha * high


METHODS: dict[str, type] = {cls.name: cls for cls in (Baseline, Addition, DirectionalAblation, AffineAblation, ACE)}


def parse_method(text: str, default_coefficient: float | None = None) -> Method:
    """Read ``"name"`` or ``"name:coefficient"``, e.g. ``"ace:0.5"``.

    Raises:
        EngineError: for an unknown name, or a missing, superfluous or bad coefficient.
    """
    name, colon, number = text.strip().partition(":")
    cls = METHODS.get(name.lower().replace("-", "_"))
    if cls is None:
        raise EngineError(f"Unknown method '{name[:40]}': choose one of {', '.join(METHODS)}.")
    if not issubclass(cls, _Scaled):
        if colon:
            raise EngineError(f"Method '{name}' takes no coefficient: write '{name}' alone.")
        return cls()
    if not colon:
        if default_coefficient is None:
            raise EngineError(f"Method '{name}' needs a coefficient: write for example '{name}:1.0'.")
        return cls(default_coefficient)
    try:
        return cls(float(number))
    except EngineError:
        raise
    except ValueError:
        raise EngineError(f"'{number[:40]}' is not a number: write for example '{name}:1.0'.") from None
