"""Statistics of sweeps: against closed forms, as properties, and beside mistakes that would not pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ace_core.sweeps.statistics import (
    best_within,
    bootstrap_mean,
    cohen_kappa,
    gap_difference,
    rates,
    slopes,
    standardisation_gap,
    trapezoid_gap,
    wilson,
    wrong_way_share,
)

ALPHAS = np.linspace(-1, 2, 7)
curves = hnp.arrays(np.float64, (7,), elements=st.floats(0, 1))


def outcomes(generator: np.random.Generator, rate: np.ndarray, prompts: int) -> np.ndarray:
    return (generator.random((len(rate), prompts)) < rate[:, None]).astype(float)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(pair: tuple[int, int]) -> None:
    successes, count = pair
    found, z = wilson(successes, count), 1.959963984540054
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.high > found.low
    for bound in (found.low, found.high):
        if 1e-9 < bound < 1 - 1e-9:
            # the bounds are where the score test of that share gives exactly z
            assert abs(found.value - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / count), abs=1e-9)
    mirrored = wilson(count - successes, count)
    assert mirrored.low == pytest.approx(1 - found.high) and mirrored.high == pytest.approx(1 - found.low)


def test_wilson_known_value_and_no_trials() -> None:
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError, match="make no share"):
        wilson(3, 2)


def test_wilson_covers_where_the_plain_interval_does_not() -> None:
    generator, rate, count = np.random.default_rng(0), 0.03, 20
    draws = generator.binomial(count, rate, 2000)
    wide = [wilson(int(k), count) for k in draws]
    plain = [1.96 * math.sqrt(k / count * (1 - k / count) / count) for k in draws]
    assert np.mean([w.low <= rate <= w.high for w in wide]) > 0.93
    # negative control: the normal interval, which collapses at 0, would fail the same bar
    assert np.mean([abs(k / count - rate) <= half for k, half in zip(draws, plain, strict=True)]) < 0.6


@given(curves, curves)
def test_gap_is_a_distance(a: np.ndarray, b: np.ndarray) -> None:
    gap = float(trapezoid_gap(ALPHAS, a, b))
    assert 0 <= gap <= 3 + 1e-9
    assert gap == pytest.approx(float(trapezoid_gap(ALPHAS, b, a)))
    assert float(trapezoid_gap(ALPHAS, a, a)) == 0
    assert gap == pytest.approx(float(np.trapezoid(np.abs(a - b), ALPHAS)))


@given(curves, curves, curves)
def test_gap_obeys_the_triangle_inequality(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    direct = float(trapezoid_gap(ALPHAS, a, c))
    assert direct <= float(trapezoid_gap(ALPHAS, a, b)) + float(trapezoid_gap(ALPHAS, b, c)) + 1e-9


def test_gap_is_not_the_signed_area() -> None:
    a, b = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0])
    assert float(trapezoid_gap(np.array([0.0, 1.0, 2.0]), a, b)) == 1.0
    assert float(np.trapezoid(a - b, [0, 1, 2])) == 0.0


def test_unknown_coefficients_are_bridged_and_unknown_prompts_left_out() -> None:
    holed = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0]])
    assert rates(holed).tolist()[::2] == [1.0, 0.5] and math.isnan(rates(holed)[1])
    gap = standardisation_gap(np.array([0.0, 1.0, 2.0]), holed, np.zeros((3, 2)), draws=200)
    assert gap.value == pytest.approx((1 + 0.5) / 2 * 2)
    # negative control: an unscored cell counted as "did not refuse" would give another number
    assert float(trapezoid_gap(np.array([0.0, 1.0, 2.0]), np.nan_to_num(holed).mean(-1), np.zeros(3))) != gap.value
    assert math.isnan(standardisation_gap(ALPHAS[:1], np.ones((1, 3)), np.zeros((1, 3))).value)


def test_gap_interval_covers_the_true_gap_and_holds_the_estimate() -> None:
    generator = np.random.default_rng(1)
    harmful, harmless = np.linspace(0.3, 1, 7), np.linspace(0, 0.6, 7)
    true, hit = float(trapezoid_gap(ALPHAS, harmful, harmless)), 0
    for seed in range(200):
        a, b = outcomes(generator, harmful, 40), outcomes(generator, harmless, 40)
        found = standardisation_gap(ALPHAS, a, b, seed, draws=300)
        assert found.low <= found.value <= found.high
        hit += found.low <= true <= found.high
    assert hit / 200 > 0.88


def test_gap_is_seeded_and_resamples_prompts_not_cells() -> None:
    generator = np.random.default_rng(2)
    # every prompt refuses at all coefficients or at none, so its cells say the same thing seven times
    stubborn = np.repeat((generator.random(30) < 0.5).astype(float)[None], 7, 0)
    never = np.zeros((7, 30))
    found = standardisation_gap(ALPHAS, stubborn, never, seed=3)
    assert found == standardisation_gap(ALPHAS, stubborn, never, seed=3)
    assert found != standardisation_gap(ALPHAS, stubborn, never, seed=4)
    # negative control: shuffled within coefficients the same cells look like independent evidence
    mixed = np.stack([generator.permutation(row) for row in stubborn])
    narrow = standardisation_gap(ALPHAS, mixed, never, seed=3)
    assert found.high - found.low > 1.5 * (narrow.high - narrow.low)


def test_difference_of_gaps_is_paired() -> None:
    generator = np.random.default_rng(5)
    hard = (generator.random(40) < 0.5).astype(float)
    first = (np.repeat(0.8 * hard[None], 7, 0), np.zeros((7, 40)))
    second = (np.repeat(hard[None], 7, 0), np.zeros((7, 40)))
    found = gap_difference(ALPHAS, first, second)
    apart = [standardisation_gap(ALPHAS, *pair) for pair in (first, second)]
    assert found.value == pytest.approx(apart[1].value - apart[0].value) and found.low > 0
    # negative control: treated as unrelated, the two intervals overlap and decide nothing
    assert apart[0].high > apart[1].low
    swapped = gap_difference(ALPHAS, second, first)
    assert swapped.value == pytest.approx(-found.value) and swapped.high < 0


def test_bootstrap_mean_leaves_out_what_is_unscored() -> None:
    found = bootstrap_mean(np.array([1.0, 0.0, np.nan, 1.0]))
    assert found.count == 3 and found.value == pytest.approx(2 / 3) and found.low <= found.value <= found.high
    assert math.isnan(bootstrap_mean(np.array([np.nan])).value)


@given(hnp.arrays(np.float64, (7, 5), elements=st.floats(-20, 20)), st.floats(-3, 3), st.floats(-5, 5))
def test_slopes_are_least_squares_and_linear(scores: np.ndarray, tilt: float, shift: float) -> None:
    expected = np.polyfit(ALPHAS, scores, 1)[0]
    assert slopes(ALPHAS, scores) == pytest.approx(expected, abs=1e-7)
    assert slopes(ALPHAS, scores + tilt * ALPHAS[:, None] + shift) == pytest.approx(expected + tilt, abs=1e-6)


def test_wrong_way_counts_falling_prompts() -> None:
    rising, falling = ALPHAS, -ALPHAS
    holed = np.where(np.arange(7) == 2, rising, np.nan)
    found = wrong_way_share(ALPHAS, np.stack([rising, rising, falling, holed], axis=1))
    assert found.count == 3 and found.value == pytest.approx(1 / 3)
    assert wrong_way_share(ALPHAS, np.ones((7, 4))).value == 0


labels = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=60)


@settings(max_examples=60)
@given(labels.flatmap(lambda first: st.tuples(st.just(first), st.permutations(first))))
def test_kappa_is_symmetric_and_at_most_one(pair: tuple[list[str | None], list[str | None]]) -> None:
    first, second = pair
    (there, count), (back, _) = cohen_kappa(first, second), cohen_kappa(second, first)
    assert count <= len(first)
    if not math.isnan(there):
        assert there == pytest.approx(back) and -1 - 1e-9 <= there <= 1
        renamed = {"a": "x", "b": "y", "c": "z", None: None}
        assert cohen_kappa([renamed[v] for v in first], [renamed[v] for v in second])[0] == pytest.approx(there)


def test_kappa_known_values() -> None:
    # the textbook table: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == (pytest.approx(0.4), 50)
    assert cohen_kappa(["y", "n", None], ["y", "n", "y"]) == (1.0, 2)
    assert math.isnan(cohen_kappa(["y", "y"], ["y", "y"])[0])
    # negative control: plain agreement can be high where kappa is nothing
    lazy = ["n"] * 95 + ["y"] * 5
    assert cohen_kappa(lazy, ["n"] * 100)[0] == 0
    with pytest.raises(ValueError):
        cohen_kappa(["y"], [])


@given(hnp.arrays(np.float64, (8,), elements=st.floats(0, 3)), hnp.arrays(np.float64, (8,), elements=st.floats(0, 1)))
def test_more_budget_never_does_less(cost: np.ndarray, effect: np.ndarray) -> None:
    budgets = [0.1, 0.5, 1.0, 3.0]
    best = best_within(cost, effect, budgets)
    known = best[np.isfinite(best)]
    assert (np.diff(known) >= 0).all() and best[-1] == effect.max()
    for budget, value in zip(budgets, best, strict=True):
        assert math.isnan(value) == (not (cost <= budget).any())


def test_equal_coefficient_and_equal_cost_can_disagree() -> None:
    alphas_equal = np.array([0.9, 0.6])
    cheap, dear = (
        best_within(np.array([0.05]), alphas_equal[1:], [0.1])[0],
        best_within(np.array([0.8]), alphas_equal[:1], [0.1])[0],
    )
    assert cheap == 0.6 and math.isnan(dear)
