"""Steering methods: each turns the class means along a direction, plain numbers, into (remove, add).

To add a method, write one frozen dataclass with ``name``, ``coefficient``, ``label`` and ``affine`` and list it
in ``METHODS``; the engine, the command line and the page find it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from ace_core.errors import EngineError

__all__ = [
    "ACE",
    "COEFFICIENT_LIMIT",
    "METHODS",
    "REFERENCES",
    "Addition",
    "AffineAblation",
    "Baseline",
    "DirectionalAblation",
    "Method",
    "Reference",
    "parse_method",
]

COEFFICIENT_LIMIT = 20.0
"""Largest accepted magnitude of a coefficient, in class gaps; far beyond it every model emits noise."""


Reference = Literal["harmless", "pooled", "harmful", "origin", "third"]

REFERENCES: dict[Reference, str] = {
    "harmless": "the harmless mean",
    "pooled": "the pooled mean",
    "harmful": "the harmful mean",
    "origin": "the origin",
    "third": "a third set's mean",
}
"""Points that ACE can bring every activation to before it adds, in words.

The pooled mean lies halfway between the class means. It is what the paper's public code re-centres on, so its
multiplier m is coefficient m there and m + 0.5 from the harmless mean. Coefficient 0 at the origin is directional
ablation.
"""


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

    def affine(self, low: float, high: float, third: float | None = None) -> tuple[float, float]:
        """``(remove, add)`` of :func:`ace_core.geometry.apply_edit`.

        Args:
            low: component of the harmless mean along the unit direction, units of activation.
            high: component of the harmful mean.
            third: component of a third prompt set's mean, None where there is none.
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

    def affine(self, low: float, high: float, third: float | None = None) -> tuple[float, float]:
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

    def affine(self, low: float, high: float, third: float | None = None) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass(frozen=True)
class Addition(_Scaled):
    """Activation addition (CAA; Rimsky et al., arXiv 2312.06681): ``v + alpha r``."""

    name: ClassVar[str] = "addition"
    title: ClassVar[str] = "Activation addition"

    def affine(self, low: float, high: float, third: float | None = None) -> tuple[float, float]:
        return 0.0, self.alpha * (high - low)


@dataclass(frozen=True)
class DirectionalAblation(_Fixed):
    """Directional ablation (Arditi et al., arXiv 2406.11717): ``v - proj_r(v)``."""

    name: ClassVar[str] = "ablation"
    title: ClassVar[str] = "Directional ablation"

    def affine(self, low: float, high: float, third: float | None = None) -> tuple[float, float]:
        return 1.0, 0.0


@dataclass(frozen=True)
class AffineAblation(_Fixed):
    """Affine ablation: ``v - proj_r(v) + proj_r(mu_minus)``, which is ACE at coefficient 0."""

    name: ClassVar[str] = "affine_ablation"
    title: ClassVar[str] = "Affine ablation"

    def affine(self, low: float, high: float, third: float | None = None) -> tuple[float, float]:
        return 1.0, low


def _reference(text: str) -> Reference:
    for name in REFERENCES:
        if text == name:
            return name
    raise EngineError(f"Unknown reference point '{str(text)[:40]}': choose one of {', '.join(REFERENCES)}.")


_ALONG: dict[str, float] = {"harmless": 0.0, "pooled": 0.5, "harmful": 1.0}
"""Refusal coordinates of the reference points on the segment between the class means."""


@dataclass(frozen=True)
class ACE(_Scaled):
    """Affine concept editing (arXiv 2411.09003): ``v - proj_r(v) + proj_r(reference) + alpha r``.

    From the harmless mean, the paper's reference, the coordinate becomes ``alpha``; from the pooled mean
    ``alpha + 0.5``, from the harmful mean ``alpha + 1``. Along a shared direction the component becomes
    ``(1 - alpha) low + alpha high``, the same expression.

    Args:
        alpha: class gaps to go from the reference point.
        reference: a key of :data:`REFERENCES`; ``third`` needs directions fitted with a third prompt set.

    Raises:
        EngineError: for an unknown reference, or a coefficient out of range.
    """

    reference: Reference = "harmless"
    name: ClassVar[str] = "ace"
    title: ClassVar[str] = "ACE"

    def __post_init__(self) -> None:
        super().__post_init__()
        _reference(self.reference)

    @property
    def label(self) -> str:
        plain = f"{self.title}, α = {self.alpha:g}"
        return plain if self.reference == "harmless" else f"{plain} from {REFERENCES[self.reference]}"

    def affine(self, low: float, high: float, third: float | None = None) -> tuple[float, float]:
        along = _ALONG.get(self.reference)
        if along is not None:
            coordinate = self.alpha + along
            return 1.0, (1.0 - coordinate) * low + coordinate * high
        if self.reference == "third" and third is None:
            raise EngineError(
                "These vectors hold no third set's mean: fit them again with reference prompts, or choose another "
                "reference point."
            )
        base = 0.0 if third is None or self.reference == "origin" else third
        return 1.0, base + self.alpha * (high - low)


METHODS: dict[str, type] = {cls.name: cls for cls in (Baseline, Addition, DirectionalAblation, AffineAblation, ACE)}


def parse_method(text: str, default_coefficient: float | None = None, default_reference: str = "harmless") -> Method:
    """Read ``"name"``, ``"name:coefficient"`` or, for ACE, ``"name:coefficient@reference"``, e.g. ``"ace:0.5@pooled"``.

    Args:
        text: what a person wrote.
        default_coefficient: for a method that needs one and names none; None demands it.
        default_reference: for ACE where it names none, a key of :data:`REFERENCES`.

    Raises:
        EngineError: for an unknown name or reference, or a missing, superfluous or bad coefficient or reference.
    """
    front, at, reference = text.strip().partition("@")
    name, colon, number = front.partition(":")
    cls = METHODS.get(name.lower().replace("-", "_"))
    if cls is None:
        raise EngineError(f"Unknown method '{name[:40]}': choose one of {', '.join(METHODS)}.")
    if at and cls is not ACE:
        raise EngineError(f"Method '{name}' takes no reference point: write '{front[:40]}' alone.")
    if not issubclass(cls, _Scaled):
        if colon:
            raise EngineError(f"Method '{name}' takes no coefficient: write '{name}' alone.")
        return cls()
    if not colon:
        if default_coefficient is None:
            raise EngineError(f"Method '{name}' needs a coefficient: write for example '{name}:1.0'.")
        alpha = default_coefficient
    else:
        try:
            alpha = float(number)
        except ValueError:
            raise EngineError(f"'{number[:40]}' is not a number: write for example '{name}:1.0'.") from None
    if cls is not ACE:
        return cls(alpha)
    return ACE(alpha, _reference((reference if at else default_reference).strip().lower()))
