"""Ways of getting one direction out of two classes of activations at one block.

Every function takes ``harmless`` ``(n, d)`` and ``harmful`` ``(m, d)``, any float dtype, and returns a unit vector
``(d,)`` float32 that points from harmless to harmful: its dot product with the difference of the class means is not
negative. All arithmetic is float64 and nothing is drawn at random. They raise EngineError for empty classes, unequal
widths, numbers that are not finite, or classes that give no direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.errors import EngineError
from ace_core.fitting.erasure import NO_DIRECTION, checked_classes, leace_eraser

__all__ = [
    "IMPORTED",
    "TRIM",
    "VARIANTS",
    "Variant",
    "leace",
    "logistic_probe",
    "mean_difference",
    "median_difference",
    "orthogonalised",
    "principal_component",
    "trimmed_mean_difference",
    "variant_named",
]

TRIM = 0.1
"""Share of prompts that the trimmed mean leaves out at each end of every coordinate."""

IMPORTED = "imported"
"""Name under which vectors of another tool appear; see :func:`ace_core.fitting.extraction.complete_directions`."""

_PENALTY = 1.0
_NEWTON_STEPS = 100


def mean_difference(harmless: Tensor, harmful: Tensor) -> Tensor:
    """``mu_plus - mu_minus``, the paper's direction (arXiv 2411.09003; Rimsky et al., 2312.06681)."""
    low, high = checked_classes(harmless, harmful)
    return _oriented(high.mean(0) - low.mean(0), low, high)


def orthogonalised(harmless: Tensor, harmful: Tensor) -> Tensor:
    """Mean difference without its part along the harmless mean (Lai 2025, *Projected Abliteration*).

    The harmless mean then has no component along it, so directional ablation and ACE at coefficient 0 are the same.
    """
    low, high = checked_classes(harmless, harmful)
    origin = low.mean(0)
    difference = high.mean(0) - origin
    square = origin @ origin
    for _ in range(2):  # the second pass removes what rounding left of the first
        if float(square) > 0:
            difference = difference - origin * ((difference @ origin) / square)
    return _oriented(difference, low, high)


def median_difference(harmless: Tensor, harmful: Tensor) -> Tensor:
    """Difference of the medians of every coordinate; outliers hardly move it."""
    low, high = checked_classes(harmless, harmful)
    return _oriented(_trimmed(high, 0.5) - _trimmed(low, 0.5), low, high)


def trimmed_mean_difference(harmless: Tensor, harmful: Tensor) -> Tensor:
    """Difference of means that leave out the share :data:`TRIM` at each end of every coordinate (Tukey 1962)."""
    low, high = checked_classes(harmless, harmful)
    return _oriented(_trimmed(high, TRIM) - _trimmed(low, TRIM), low, high)


def principal_component(harmless: Tensor, harmful: Tensor) -> Tensor:
    """First principal component of paired differences, as in representation engineering (Zou et al., 2310.01405).

    Row k of one class is paired with row k of the other; rows without a partner are left out. Differences are not
    centred: that is the same as giving each pair a random sign, as the original does, without the randomness.
    """
    low, high = checked_classes(harmless, harmful)
    pairs = min(len(low), len(high))
    differences = high[:pairs] - low[:pairs]
    if not bool(differences.any()):
        raise EngineError(NO_DIRECTION)
    features, back = _reduced(differences)
    _, vectors = torch.linalg.eigh(features.T @ features)
    return _oriented(back(vectors[:, -1]), low, high)


def logistic_probe(harmless: Tensor, harmful: Tensor) -> Tensor:
    """Weights of a logistic regression that tells the classes apart (Alain and Bengio, 1610.01644).

    Minimises the log loss, both classes weighing the same, plus half the squared length of the weights, on activations
    divided by one number so that their coordinates have variance 1 on average. Newton steps in the span of the
    samples, where the optimum lies, with halving until the loss falls.
    """
    low, high = checked_classes(harmless, harmful)
    x = torch.cat([low, high])
    x = x - x.mean(0)
    features, back = _reduced(x / x.square().mean().sqrt())
    features = torch.cat([features, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    signs = torch.cat([-torch.ones(len(low)), torch.ones(len(high))]).to(x)
    share = torch.cat([torch.full((len(c),), len(x) / (2 * len(c))) for c in (low, high)]).to(x)
    penalty = torch.full((features.shape[1],), _PENALTY).to(x)
    penalty[-1] = 0.0  # the bias is free

    def loss(weights: Tensor) -> float:
        margin = signs * (features @ weights)
        return float((share * torch.nn.functional.softplus(-margin)).sum() + 0.5 * (penalty * weights.square()).sum())

    weights = torch.zeros_like(penalty)
    current = loss(weights)
    for _ in range(_NEWTON_STEPS):
        wrong = torch.sigmoid(-signs * (features @ weights))
        gradient = penalty * weights - features.T @ (share * signs * wrong)
        if float(gradient.abs().max()) < 1e-10 * len(x):
            break
        curvature = share * wrong * (1 - wrong)
        step = torch.linalg.solve(features.T @ (features * curvature.unsqueeze(1)) + torch.diag(penalty), gradient)
        size, found = 1.0, current
        while size > 1e-9 and (found := loss(weights - size * step)) > current:
            size /= 2
        if found >= current:
            break
        weights, current = weights - size * step, found
    return _oriented(back(weights[:-1]), low, high)


def leace(harmless: Tensor, harmful: Tensor) -> Tensor:
    """The axis along which LEACE reads, ``inverse(Sigma) (mu_plus - mu_minus)``, normalised (arXiv 2306.03819).

    LEACE itself is oblique: it reads along this axis and moves along the mean difference, see
    :func:`ace_core.fitting.erasure.leace_eraser`. The one-formula edit of :mod:`ace_core.geometry` has one vector
    for both and uses the reading axis, which is Fisher's discriminant. So an edit along it sets
    the reading exactly, but unlike the eraser it leaves the class means apart at right angles to it.
    """
    low, high = checked_classes(harmless, harmful)
    return _oriented(leace_eraser(low, high).right, low, high)


def _oriented(direction: Tensor, low: Tensor, high: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(direction)
    if not bool(torch.isfinite(length)) or float(length) <= 1e-12 * float(high.abs().max() + low.abs().max()):
        raise EngineError(NO_DIRECTION)
    side = direction @ (high.mean(0) - low.mean(0))
    return (direction / (length if float(side) >= 0 else -length)).float()


def _trimmed(x: Tensor, share: float) -> Tensor:
    """Mean of each column of ``x`` without ``share`` of its values at each end; a half leaves the median."""
    count = len(x)
    cut = min(int(share * count), (count - 1) // 2)
    return x.sort(dim=0).values[cut : count - cut].mean(0)


def _reduced(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Coordinates ``(n, k)`` of the rows of ``x`` in an orthonormal basis of their span if that is small, and the way
    back from ``(k,)`` to ``(d,)``."""
    if len(x) >= x.shape[1]:
        return x, lambda weights: weights
    squares, vectors = torch.linalg.eigh(x @ x.T)
    kept = squares > squares[-1] * len(x) * torch.finfo(x.dtype).eps
    lengths, vectors = squares[kept].sqrt(), vectors[:, kept]
    return vectors * lengths, lambda weights: x.T @ (vectors @ (weights / lengths))


@dataclass(frozen=True)
class Variant:
    """One way of choosing a direction.

    Args:
        name: key in :data:`VARIANTS`.
        title: for people.
        explanation: one sentence.
        source: where it was published.
        function: ``(harmless (n, d), harmful (m, d)) -> (d,)``.
        samples: it needs the activations themselves; otherwise the two class means, as one row each, give the same.
        paired: row k of both classes must belong together.
    """

    name: str
    title: str
    explanation: str
    source: str
    function: Callable[[Tensor, Tensor], Tensor]
    samples: bool = True
    paired: bool = False


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "mean_difference",
            "Mean difference",
            "From the average harmless activation to the average harmful one.",
            "Marshall, Scherlis, Belrose 2024, arXiv 2411.09003",
            mean_difference,
            samples=False,
        ),
        Variant(
            "orthogonalised",
            "Orthogonalised mean difference",
            "The mean difference without its part along the average harmless activation.",
            "Lai 2025, Projected Abliteration",
            orthogonalised,
            samples=False,
        ),
        Variant(
            "median_difference",
            "Median difference",
            "From the middle harmless value to the middle harmful one of every coordinate, whatever outliers do.",
            "robust location estimate, Tukey 1977",
            median_difference,
        ),
        Variant(
            "trimmed_mean",
            "Trimmed mean difference",
            "The mean difference without the most extreme tenth of values at each end of every coordinate.",
            "robust location estimate, Tukey 1962",
            trimmed_mean_difference,
        ),
        Variant(
            "principal_component",
            "Principal component of pairs",
            "The direction in which pairs of one harmful and one harmless prompt differ most.",
            "Zou et al. 2023, arXiv 2310.01405",
            principal_component,
            paired=True,
        ),
        Variant(
            "logistic_probe",
            "Logistic probe",
            "The weights of a linear classifier trained to tell the two classes apart.",
            "Alain and Bengio 2016, arXiv 1610.01644",
            logistic_probe,
        ),
        Variant(
            "leace",
            "LEACE reading axis",
            "The mean difference with directions of large natural spread weighed down, along which LEACE reads.",
            "Belrose et al. 2023, arXiv 2306.03819",
            leace,
        ),
    )
}
"""Every variant by name; the first is the paper's and the default."""


def variant_named(name: str) -> Variant:
    """The variant called ``name``.

    Raises:
        EngineError: if there is none.
    """
    if name not in VARIANTS:
        raise EngineError(f"Unknown variant '{name[:40]}': choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]
