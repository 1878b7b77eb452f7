"""The mathematics as theorems over random inputs, each with a control that breaks it."""

from __future__ import annotations

import pytest
import torch
from concept_erasure import LeaceFitter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ace_core as ace
from ace_core import geometry
from ace_core.methods import (
    ACE,
    METHODS,
    REFERENCES,
    Addition,
    AffineAblation,
    Baseline,
    DirectionalAblation,
    Method,
    parse_method,
)

SHAPE = (2, 3, 16)


class Space:
    """Random class means, and activations around them, in float64-free float32."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.low_mean = torch.randn(SHAPE[-1], generator=draw)
        self.high_mean = self.low_mean + torch.randn(SHAPE[-1], generator=draw)
        self.v = torch.randn(SHAPE, generator=draw) * 3
        self.r = geometry.mean_difference(self.low_mean, self.high_mean)
        self.unit = geometry.unit_vector(self.r)
        self.low, self.high = float(self.low_mean @ self.unit), float(self.high_mean @ self.unit)
        self.third_mean = 2 * torch.randn(SHAPE[-1], generator=draw)
        self.third = float(self.third_mean @ self.unit)

    def edit(self, v: Tensor, method: Method) -> Tensor:
        remove, add = method.affine(self.low, self.high, self.third)
        ones = torch.ones(v.shape[0])
        return geometry.apply_edit(v, self.unit, remove * ones, add * ones)

    def c(self, v: Tensor) -> Tensor:
        return geometry.coordinate(geometry.component(v, self.unit), torch.tensor(self.low), torch.tensor(self.high))


spaces = st.integers(0, 2**31).map(Space)
coefficients = st.floats(-3, 3, allow_nan=False)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=2e-4)


@given(spaces)
def test_coordinate_is_zero_at_the_harmless_and_one_at_the_harmful_mean(space: Space) -> None:
    means = torch.stack([space.low_mean, space.high_mean]).unsqueeze(0)
    assert close(space.c(means), torch.tensor([[0.0, 1.0]]))
    assert not close(space.c(torch.zeros(1, 1, SHAPE[-1])), torch.zeros(1, 1)) or abs(space.low) < 1e-2


@given(spaces, coefficients)
def test_coordinate_after_ace_is_alpha_for_every_token(space: Space, alpha: float) -> None:
    assert close(space.c(space.edit(space.v, ACE(alpha))), torch.full(SHAPE[:2], alpha))
    assert not close(space.c(space.edit(space.v, ACE(alpha + 0.5))), torch.full(SHAPE[:2], alpha))


@given(spaces, coefficients)
def test_ace_is_ace_zero_plus_alpha_r(space: Space, alpha: float) -> None:
    assert close(space.edit(space.v, ACE(alpha)), space.edit(space.v, ACE(0.0)) + alpha * space.r)


@given(spaces, coefficients)
def test_ace_is_idempotent_and_addition_is_not(space: Space, alpha: float) -> None:
    once = space.edit(space.v, ACE(alpha))
    assert close(space.edit(once, ACE(alpha)), once)
    added = space.edit(space.v, Addition(1.0))
    assert not close(space.edit(added, Addition(1.0)), added)


@given(spaces)
def test_ace_one_maps_the_harmless_mean_to_the_harmful_mean(space: Space) -> None:
    v = space.low_mean.expand(1, 1, -1)
    assert close(space.edit(v, ACE(1.0))[0, 0], space.high_mean)
    assert not close(space.edit(v, DirectionalAblation())[0, 0], space.high_mean)


@given(spaces, coefficients)
def test_addition_is_ace_at_the_shifted_coordinate(space: Space, beta: float) -> None:
    token = space.v[:1, :1]
    alpha = float(space.c(token)) + beta
    remove, add = 1.0, (1 - alpha) * space.low + alpha * space.high
    as_ace = geometry.apply_edit(token, space.unit, torch.tensor([remove]), torch.tensor([add]))
    assert close(space.edit(token, Addition(beta)), as_ace)


@given(spaces)
def test_ace_zero_is_directional_ablation_only_if_the_harmless_mean_is_orthogonal(space: Space) -> None:
    if abs(space.low) > 1e-2:
        assert not close(space.edit(space.v, ACE(0.0)), space.edit(space.v, DirectionalAblation()))
    # removing the component of both means makes the condition true without changing r
    shift = space.low * space.unit
    space.low_mean, space.high_mean = space.low_mean - shift, space.high_mean - shift
    space.low, space.high = space.low - space.low, space.high - space.low
    assert close(space.edit(space.v, ACE(0.0)), space.edit(space.v, DirectionalAblation()))


@given(spaces)
def test_affine_ablation_is_ace_zero(space: Space) -> None:
    assert torch.equal(space.edit(space.v, AffineAblation()), space.edit(space.v, ACE(0.0)))


@given(spaces, coefficients)
def test_pooled_reference_multiplier_is_alpha_minus_one_half(space: Space, m: float) -> None:
    """The paper's public code re-centres on the pooled mean: v - proj(v) + proj(pooled) + m r."""
    pooled = 0.5 * (space.low + space.high)
    theirs = geometry.apply_edit(
        space.v, space.unit, torch.ones(2), torch.full((2,), pooled + m * (space.high - space.low))
    )
    assert close(theirs, space.edit(space.v, ACE(m + 0.5)))
    assert not close(theirs, space.edit(space.v, ACE(m)))


@given(spaces, st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 3)))
def test_ace_from_the_pooled_and_the_harmful_mean_is_ace_further_on(space: Space, m: float) -> None:
    """The paper's public code is ACE from the pooled mean; half a class gap tells the two conventions apart."""
    assert torch.equal(space.edit(space.v, ACE(m, "pooled")), space.edit(space.v, ACE(m + 0.5)))
    assert torch.equal(space.edit(space.v, ACE(m, "harmful")), space.edit(space.v, ACE(m + 1.0)))
    assert not close(space.edit(space.v, ACE(m, "pooled")), space.edit(space.v, ACE(m)))


@given(spaces)
def test_ace_zero_from_the_origin_is_directional_ablation_to_the_bit(space: Space) -> None:
    assert ACE(0.0, "origin").affine(space.low, space.high) == DirectionalAblation().affine(space.low, space.high)
    assert torch.equal(space.edit(space.v, ACE(0.0, "origin")), space.edit(space.v, DirectionalAblation()))
    assert torch.equal(space.edit(space.v, ACE(0.0, "origin")), space.edit(space.v, ACE(-0.0, "origin")))
    assert not torch.equal(space.edit(space.v, ACE(0.5, "origin")), space.edit(space.v, DirectionalAblation()))


@given(spaces, coefficients, st.sampled_from(list(REFERENCES)))
def test_every_reference_goes_to_its_point_and_then_alpha_class_gaps_on(space: Space, alpha: float, name: str) -> None:
    points = {
        "harmless": space.low_mean,
        "pooled": 0.5 * (space.low_mean + space.high_mean),
        "harmful": space.high_mean,
        "origin": torch.zeros_like(space.low_mean),
        "third": space.third_mean,
    }
    target = space.c(points[name].expand(1, 1, -1)) + alpha
    method = parse_method(f"ace:{alpha!r}@{name}")
    assert close(space.c(space.edit(space.v, method)), target.expand(SHAPE[:2]))
    assert not close(space.c(space.edit(space.v, method)), target.expand(SHAPE[:2]) + 0.1)


@pytest.mark.parametrize("seed", range(10))
def test_pooled_reference_against_concept_erasure(seed: int) -> None:
    """Its orthogonal eraser is ACE(0) from the pooled mean, and ACE(m) is the eraser plus (m - 0.5) r."""
    space = Space(seed)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 40, SHAPE[-1], generator=draw)
    noise -= noise.mean(1, keepdim=True)
    x = torch.cat([space.low_mean + noise[0], space.high_mean + noise[1]])
    z = torch.arange(2.0).repeat_interleave(40)
    eraser = LeaceFitter.fit(x.double(), z.double(), method="orth", svd_tol=1e-9).eraser
    erased = eraser(space.v.double()).float()
    assert close(space.edit(space.v, ACE(0.0, "pooled")), erased)
    for m in (-1.0, 0.0, 0.7):
        assert close(space.edit(space.v, ACE(m)), erased + (m - 0.5) * space.r)
        assert close(space.edit(space.v, ACE(m, "pooled")), erased + m * space.r)
        assert not close(space.edit(space.v, ACE(m)), erased + m * space.r)


def test_references_are_read_and_checked() -> None:
    assert parse_method("ace:0.5@pooled") == ACE(0.5, "pooled") != ACE(0.5)
    assert parse_method(" ACE:1@Origin ") == ACE(1.0, "origin")
    assert parse_method("ace@harmful", default_coefficient=0.0) == ACE(0.0, "harmful")
    assert ACE(0.5).label == "ACE, α = 0.5" and ACE(0.5, "pooled").label == "ACE, α = 0.5 from the pooled mean"
    for text, sentence in (
        ("ace:0@nowhere", "Unknown reference point 'nowhere'"),
        ("ace:0@", "Unknown reference point"),
        ("ace@pooled", "needs a coefficient"),
        ("addition:1@pooled", "takes no reference point"),
        ("ablation@origin", "takes no reference point"),
        ("ace:x@pooled", "not a number"),
    ):
        with pytest.raises(ace.EngineError, match=sentence):
            parse_method(text)
    with pytest.raises(ace.EngineError, match="no third set's mean"):
        ACE(0.0, "third").affine(0.0, 1.0)
    for name, cls in METHODS.items():
        method = parse_method(name, default_coefficient=0.5)
        assert method.affine(-1.0, 3.0) == method.affine(-1.0, 3.0, 7.0), name
        assert isinstance(method, cls)


@given(spaces, coefficients)
def test_orthogonal_complement_is_untouched(space: Space, alpha: float) -> None:
    for method in (Addition(alpha), DirectionalAblation(), AffineAblation(), ACE(alpha)):
        change = space.edit(space.v, method) - space.v
        along = (change @ space.unit).unsqueeze(-1) * space.unit
        assert close(change, along)
    wrong = geometry.apply_edit(space.v, space.unit.roll(1), torch.ones(2), torch.ones(2)) - space.v
    assert not close(wrong, (wrong @ space.unit).unsqueeze(-1) * space.unit)


@given(spaces)
def test_directional_ablation_lands_where_the_origin_lies(space: Space) -> None:
    origin = space.c(torch.zeros(1, 1, SHAPE[-1]))
    assert close(space.c(space.edit(space.v, DirectionalAblation())), origin.expand(SHAPE[:2]))


@given(spaces, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_rows_without_edit_and_masked_positions_are_bit_equal(space: Space, dtype: torch.dtype) -> None:
    v = space.v.to(dtype)
    v[0, 0, 0] = -0.0
    before = v.clone()
    where = torch.tensor([[True, False, True], [False, False, False]])
    out = geometry.apply_edit(v, space.unit, torch.ones(2), torch.ones(2), where=where)
    assert out.dtype == dtype and torch.equal(v, before)
    kept = ~where
    assert torch.equal(out[kept].view(torch.uint8), v[kept].view(torch.uint8))
    assert not torch.equal(out[where], v[where])


def test_maths_is_float32_where_bfloat16_would_cancel() -> None:
    unit = torch.zeros(64)
    unit[0] = 1.0
    v = torch.full((1, 1, 64), 300.0).to(torch.bfloat16)
    out = geometry.apply_edit(v, unit, torch.ones(1), torch.full((1,), 0.25))
    assert float(out[0, 0, 0]) == 0.25


@given(spaces)
def test_rows_with_axes_of_their_own_equal_one_row_at_a_time(space: Space) -> None:
    units = torch.stack([space.unit, space.unit.roll(3)])
    remove, add = torch.tensor([1.0, 0.5]), torch.tensor([0.3, -2.0])
    together = geometry.apply_edit(space.v, units, remove, add)
    for row in range(2):
        alone = geometry.apply_edit(space.v[row : row + 1], units[row], remove[row : row + 1], add[row : row + 1])
        assert torch.equal(together[row], alone[0])
    assert not torch.equal(together, geometry.apply_edit(space.v, units.flip(0), remove, add))


def test_baseline_is_no_edit() -> None:
    assert Baseline().affine(-1.0, 3.0) == (0.0, 0.0)
    assert Addition(0.0).affine(-1.0, 3.0) == (0.0, 0.0)


@pytest.mark.parametrize("direction", [torch.zeros(4), torch.tensor([float("nan"), 1.0])])
def test_no_unit_vector_of_nothing(direction: Tensor) -> None:
    with pytest.raises(ValueError, match="no unit vector"):
        geometry.unit_vector(direction)
