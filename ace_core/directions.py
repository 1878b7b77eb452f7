"""Refusal directions of a model: class means per block, fitted in one streaming pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ace_core import geometry
from ace_core.errors import EngineError

__all__ = ["Axis", "Moments", "RefusalDirections", "Separation", "auroc", "recommend_layer", "separation"]


class Moments:
    """Streaming float64 mean of activations, shape ``(blocks, d)``; holds one batch at a time."""

    def __init__(self, blocks: int, width: int) -> None:
        self._sum = torch.zeros(blocks, width, dtype=torch.float64)
        self.count = 0

    def update(self, activations: Tensor) -> None:
        """Add ``(blocks, batch, d)`` activations of any float dtype."""
        self._sum += activations.to("cpu", torch.float64).sum(dim=1)
        self.count += activations.shape[1]

    def mean(self) -> Tensor:
        """Mean so far, ``(blocks, d)`` float32.

        Raises:
            EngineError: before the first update, or if the mean is not finite.
        """
        if self.count == 0:
            raise EngineError("No prompts were given for one of the two classes: provide at least one each.")
        mean = (self._sum / self.count).float()
        if not bool(torch.isfinite(mean).all()):
            raise EngineError("The model produced non-finite activations: load it in float32 and try again.")
        return mean


@dataclass(frozen=True)
class Separation:
    """How well held-out classes separate along one block's direction; NaN without held-out prompts."""

    auroc: float
    d_prime: float


@dataclass(frozen=True)
class Axis:
    """A direction with both class means on it, in units of activation.

    ``unit`` is ``(d,)`` float32; ``low`` and ``high`` are the components of the harmless and harmful means, ``third``
    that of a third prompt set's mean or None.
    """

    unit: Tensor
    low: float
    high: float
    third: float | None = None


@dataclass(frozen=True)
class RefusalDirections:
    """Class means of every decoder block of one model, and the directions along which they are read and edited.

    Whatever the direction, coefficients are in class gaps along it: 0 at the harmless mean, 1 at the harmful mean.

    Args:
        mean_harmless, mean_harmful: ``(blocks, d)`` float32, activations at the fitting site and position.
        heldout_harmless, heldout_harmful: ``(blocks, n)`` and ``(blocks, m)`` float32, refusal coordinates of
            prompts that were not used in fitting; n or m may be 0.
        recommended_layer: 0-based block to steer by default.
        metadata: provenance, strings only (model id, template digest, prompt digests, position, site, variant, counts,
            versions).
        variant_unit: ``(blocks, d)`` float32 unit vectors from harmless to harmful, see
            :mod:`ace_core.fitting.variants`; None is the paper's mean difference, derived from the
            means and never stored.
        mean_reference: ``(blocks, d)`` float32, a third prompt set's mean, for ACE's reference ``third``.

    Raises:
        EngineError: for shapes that don't fit together, numbers that are not finite, or directions along which the
            harmful mean does not lie above the harmless one.
    """

    mean_harmless: Tensor
    mean_harmful: Tensor
    heldout_harmless: Tensor
    heldout_harmful: Tensor
    recommended_layer: int
    metadata: dict[str, str] = field(default_factory=dict)
    variant_unit: Tensor | None = None
    mean_reference: Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.mean_harmless.shape
        if len(shape) != 2 or self.mean_harmful.shape != shape or 0 in shape:
            raise EngineError("The two class means must both have shape (blocks, width): refit the directions.")
        for held in (self.heldout_harmless, self.heldout_harmful):
            if held.dim() != 2 or held.shape[0] != shape[0]:
                raise EngineError("Held-out coordinates must have one row a block: refit the directions.")
        optional = [t for t in (self.variant_unit, self.mean_reference) if t is not None]
        if any(t.shape != shape for t in optional):
            raise EngineError("Directions and a third mean must have the shape of the class means: refit them.")
        tensors = [self.mean_harmless, self.mean_harmful, self.heldout_harmless, self.heldout_harmful, *optional]
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise EngineError("The directions hold numbers that are not finite: refit them.")
        if bool((torch.linalg.vector_norm(self.direction_of_means, dim=-1) == 0).any()):
            raise EngineError("At some block the two class means are equal: use two different prompt sets.")
        if self.variant_unit is not None:
            lengths = torch.linalg.vector_norm(self.variant_unit.double(), dim=-1)
            if bool(((lengths - 1).abs() > 1e-4).any()):
                raise EngineError("The directions are not unit vectors: refit them.")
            if bool((self.gap <= 0).any()):
                block = int((self.gap <= 0).nonzero()[0])
                raise EngineError(
                    f"At block {block} the direction does not point from harmless to harmful: turn it round, or use "
                    "other prompts."
                )
        if not 0 <= self.recommended_layer < shape[0]:
            raise EngineError("The recommended layer lies outside the model: refit the directions.")

    @property
    def model_id(self) -> str:
        return self.metadata.get("model_id", "")

    @property
    def blocks(self) -> int:
        return self.mean_harmless.shape[0]

    @property
    def width(self) -> int:
        return self.mean_harmless.shape[1]

    @property
    def variant(self) -> str:
        """Name of the way the directions were chosen, a name in :mod:`ace_core.fitting.variants` or ``imported``."""
        return "mean_difference" if self.variant_unit is None else self.metadata.get("variant", "unknown")

    @property
    def site(self) -> str:
        """``output`` or ``input``: where in a block the means were measured."""
        return "input" if self.metadata.get("site") == "block input" else "output"

    @property
    def direction_of_means(self) -> Tensor:
        """``mu_plus - mu_minus`` per block, ``(blocks, d)``."""
        return geometry.mean_difference(self.mean_harmless, self.mean_harmful)

    @property
    def direction(self) -> Tensor:
        """``r`` per block, ``(blocks, d)``: one class gap along ``u``, what activation addition adds at 1."""
        if self.variant_unit is None:
            return self.direction_of_means
        return self.gap.unsqueeze(-1) * self.variant_unit

    @property
    def gap(self) -> Tensor:
        """Class gap ``(mu_plus - mu_minus) . u`` per block, ``(blocks,)``, units of activation, positive."""
        if self.variant_unit is None:
            return torch.linalg.vector_norm(self.direction, dim=-1)
        difference = self.mean_harmful.double() - self.mean_harmless.double()
        return (difference * self.variant_unit.double()).sum(-1).float()

    @cached_property
    def unit(self) -> Tensor:
        """``u`` per block, ``(blocks, d)``."""
        if self.variant_unit is not None:
            return self.variant_unit.float()
        with torch.inference_mode(False):  # kept, so it must also serve where gradients are taken
            return geometry.unit_vector(self.direction)

    @property
    def origin(self) -> Tensor:
        """Refusal coordinate of the zero vector per block, where directional ablation sends every token."""
        low = (self.mean_harmless * self.unit).sum(-1)
        return geometry.coordinate(torch.zeros(()), low, low + self.gap)

    @property
    def separation(self) -> tuple[Separation, ...]:
        """Held-out separation per block."""
        return tuple(
            separation(a, b) for a, b in zip(self.heldout_harmless.numpy(), self.heldout_harmful.numpy(), strict=True)
        )

    def axis(self, block: int, source: int | None = None) -> Axis:
        """The axis for reading and editing ``block``, taken from block ``source`` (default: its own).

        Raises:
            EngineError: if along a shared direction the two means of ``block`` coincide.
        """
        unit = self.unit[block if source is None else source]
        low, high = _along(self.mean_harmless[block], unit), _along(self.mean_harmful[block], unit)
        if abs(high - low) < 1e-9 * max(1.0, abs(low)):
            raise EngineError(f"At block {block} the shared direction does not tell the classes apart.")
        third = None if self.mean_reference is None else _along(self.mean_reference[block], unit)
        return Axis(unit, low, high, third)


def _along(mean: Tensor, unit: Tensor) -> float:
    return float((mean.double() * unit.double()).sum())


def auroc(negative: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a random positive lies above a random negative, ties counting half."""
    if len(negative) == 0 or len(positive) == 0:
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def separation(harmless: np.ndarray, harmful: np.ndarray) -> Separation:
    """AUROC and d' of two samples of refusal coordinates."""
    if len(harmless) < 2 or len(harmful) < 2:
        return Separation(auroc(harmless, harmful), float("nan"))
    spread = float(np.sqrt((harmless.var(ddof=1) + harmful.var(ddof=1)) / 2))
    gap = float(harmful.mean() - harmless.mean())
    return Separation(auroc(harmless, harmful), gap / spread if spread > 0 else float("inf") * np.sign(gap))


def recommend_layer(separations: tuple[Separation, ...]) -> int:
    """The block with the largest d' outside the first and the last fifth of the model.

    Early blocks still read the words and the last ones already choose the next token, so a direction that
    separates there steers badly (Arditi et al., section C). Without held-out prompts: two thirds of the depth.
    """
    count = len(separations)
    low, high = count // 5, max(count // 5 + 1, count - max(1, count // 5))
    scores = [s.d_prime if np.isfinite(s.d_prime) else -np.inf for s in separations[low:high]]
    if not scores or max(scores) == -np.inf:
        return min(count - 1, (2 * count) // 3)
    return low + int(np.argmax(scores))
