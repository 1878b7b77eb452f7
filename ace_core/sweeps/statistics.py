"""Statistics of sweeps, on plain arrays: intervals, the standardisation gap, agreement, and fair comparisons.

Outcomes are arrays ``(coefficients, prompts)`` of numbers from 0 (did not refuse) to 1 (refused); NaN marks a cell
that was not scored, which is left out, never counted as 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Estimate",
    "best_within",
    "bootstrap_mean",
    "cohen_kappa",
    "gap_difference",
    "rates",
    "slopes",
    "standardisation_gap",
    "trapezoid_gap",
    "wilson",
    "wrong_way_share",
]

_Z = 1.959963984540054
_DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where nothing was scored. ``count`` is what it rests on."""

    value: float
    low: float
    high: float
    count: int


def wilson(successes: float, count: int, z: float = _Z) -> Estimate:
    """A share with its Wilson score interval (Wilson 1927), which stays inside 0 and 1 and works at both ends.

    Args:
        successes: 0 to ``count``, whole or not.
        count: trials; 0 gives NaN.
        z: quantile of the normal distribution; the default gives 95 %.

    Raises:
        ValueError: for successes outside 0 to ``count``.
    """
    if not 0 <= successes <= max(count, 0):
        raise ValueError(f"{successes} successes of {count} make no share.")
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = successes / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if successes == 0 else max(0.0, min(centre - half, share))
    high = 1.0 if successes == count else min(1.0, max(centre + half, share))
    return Estimate(share, low, high, count)


def rates(outcomes: np.ndarray) -> np.ndarray:
    """Mean over prompts, ``(coefficients,)``, of what was scored; NaN where nothing was."""
    outcomes = np.asarray(outcomes, np.float64)
    known = np.isfinite(outcomes)
    counts = known.sum(-1)
    sums = np.where(known, outcomes, 0.0).sum(-1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def bootstrap_mean(values: np.ndarray, seed: int = 0, draws: int = _DRAWS) -> Estimate:
    """Mean of ``values`` ``(n,)`` with a percentile bootstrap interval; NaN values are left out."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(-1), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def trapezoid_gap(alphas: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """∫ |harmful(α) − harmless(α)| dα by the trapezoid rule, in class gaps.

    Args:
        alphas: ``(coefficients,)``, increasing.
        harmful, harmless: rates ``(..., coefficients)``; coefficients where either is NaN are left out.

    Returns:
        ``(...)``; NaN with fewer than two coefficients.
    """
    alphas, apart = np.asarray(alphas, np.float64), np.abs(np.asarray(harmful) - np.asarray(harmless))
    if apart.ndim == 1 or np.isfinite(apart).all():
        known = np.isfinite(apart) if apart.ndim == 1 else np.ones(len(alphas), bool)
        apart, alphas = apart[..., known], alphas[known]
        if len(alphas) < 2:
            return np.full(apart.shape[:-1], np.nan)
        return ((apart[..., 1:] + apart[..., :-1]) / 2 * np.diff(alphas)).sum(-1)
    flat = [trapezoid_gap(alphas, row, np.zeros_like(row)) for row in apart.reshape(-1, len(alphas))]
    return np.array(flat).reshape(apart.shape[:-1])


def standardisation_gap(
    alphas: np.ndarray, harmful: np.ndarray, harmless: np.ndarray, seed: int = 0, draws: int = _DRAWS
) -> Estimate:
    """How far a method is from controlling both classes alike, the claim of arXiv 2411.09003: 0 is perfect.

    The interval is a percentile bootstrap over prompts, whole curves at a time, since a prompt's outcomes at different
    coefficients belong together; it always holds the estimate. Sampling noise makes a gap larger, never smaller, so a
    method with a true gap of 0 shows a small one.

    Args:
        alphas: ``(coefficients,)``, increasing, class gaps.
        harmful, harmless: outcomes ``(coefficients, prompts)``.
        seed, draws: of the bootstrap.
    """
    value = float(trapezoid_gap(alphas, rates(harmful), rates(harmless)))
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, 0)
    gaps = _resampled_gaps(alphas, {"": (harmful, harmless)}, seed, draws)[""]
    low, high = np.nanquantile(gaps, (0.025, 0.975))
    count = harmful.shape[1] + harmless.shape[1]
    return Estimate(value, min(float(low), value), max(float(high), value), count)


def gap_difference(
    alphas: np.ndarray,
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    seed: int = 0,
    draws: int = _DRAWS,
) -> Estimate:
    """Gap of the second method minus that of the first, both on the same resampled prompts; above 0 the first wins.

    Args:
        alphas: ``(coefficients,)``.
        first, second: each method's outcomes ``(coefficients, prompts)`` of harmful and harmless prompts, the same
            prompts in the same order for both.
    """
    values = [float(trapezoid_gap(alphas, rates(a), rates(b))) for a, b in (first, second)]
    difference = values[1] - values[0]
    if math.isnan(difference):
        return Estimate(math.nan, math.nan, math.nan, 0)
    gaps = _resampled_gaps(alphas, {"first": first, "second": second}, seed, draws)
    low, high = np.nanquantile(gaps["second"] - gaps["first"], (0.025, 0.975))
    count = first[0].shape[1] + first[1].shape[1]
    return Estimate(difference, min(float(low), difference), max(float(high), difference), count)


def _resampled_gaps(
    alphas: np.ndarray, methods: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int, draws: int
) -> dict[str, np.ndarray]:
    """Gap of every method in ``draws`` resamplings of prompts, the same for all of them."""
    generator = np.random.default_rng(seed)
    sizes = [array.shape[1] for array in next(iter(methods.values()))]
    # how often each prompt is drawn, (draws, prompts), rather than its copies
    counts = [generator.multinomial(n, np.full(n, 1 / n), draws).astype(np.float64) for n in sizes]
    out = {}
    for name, outcomes in methods.items():
        curves = [_weighted_rates(array, count) for array, count in zip(outcomes, counts, strict=True)]
        out[name] = trapezoid_gap(alphas, curves[0], curves[1])
    return out


def _weighted_rates(outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rates ``(draws, coefficients)`` of outcomes ``(coefficients, prompts)`` weighted by ``(draws, prompts)``."""
    outcomes = np.asarray(outcomes, np.float64)
    known = np.isfinite(outcomes)
    sums, total = counts @ np.where(known, outcomes, 0.0).T, counts @ known.T.astype(np.float64)
    return np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)


def slopes(alphas: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Least-squares slope of every prompt's score over the coefficient, ``(prompts,)``; NaN with under two scores.

    Args:
        alphas: ``(coefficients,)``.
        scores: ``(coefficients, prompts)``, for example refusal scores in nats.
    """
    scores = np.asarray(scores, np.float64)
    known = np.isfinite(scores)
    x = np.where(known, np.asarray(alphas, np.float64)[:, None], np.nan)
    enough = known.sum(0) >= 2
    out = np.full(scores.shape[1], np.nan)
    for column in np.flatnonzero(enough):
        a, y = x[known[:, column], column], scores[known[:, column], column]
        a = a - a.mean()
        out[column] = (a @ (y - y.mean())) / (a @ a)
    return out


def wrong_way_share(alphas: np.ndarray, scores: np.ndarray) -> Estimate:
    """Share of prompts that steering moves the wrong way: their score falls as the coefficient rises.

    These are the anti-steerable inputs of Tan et al. (arXiv 2407.12404, section 4), whose slope over the coefficient is
    negative. With its Wilson interval.
    """
    found = slopes(alphas, scores)
    found = found[np.isfinite(found)]
    return wilson(int((found < 0).sum()), len(found))


def cohen_kappa(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> tuple[float, int]:
    """Agreement of two scorers beyond chance (Cohen 1960), and how many cells both scored.

    Cells that either left unscored (None) are left out. NaN where it is undefined: no cells, or both scorers gave the
    same single label throughout.

    Raises:
        ValueError: for sequences of different length.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return math.nan, 0
    labels = {label for pair in pairs for label in pair}
    agreed = sum(a == b for a, b in pairs) / len(pairs)
    chance = (
        sum(sum(a == label for a, _ in pairs) * sum(b == label for _, b in pairs) for label in labels) / len(pairs) ** 2
    )
    return (math.nan if chance >= 1 else (agreed - chance) / (1 - chance)), len(pairs)


def best_within(cost: np.ndarray, effect: np.ndarray, budgets: Sequence[float]) -> np.ndarray:
    """Largest effect among the settings that cost at most each budget, ``(budgets,)``; NaN where none is that cheap.

    This compares methods at equal side effects rather than at equal coefficients. Nothing is interpolated.

    Args:
        cost: ``(settings,)``, for example KL a token in nats.
        effect: ``(settings,)``, for example a share of harmful prompts answered.
        budgets: costs allowed.
    """
    cost, effect = np.asarray(cost, np.float64), np.asarray(effect, np.float64)
    known = np.isfinite(cost) & np.isfinite(effect)
    return np.array([max(effect[known & (cost <= budget)], default=math.nan) for budget in budgets], np.float64)
