"""Ways of choosing a direction, as theorems on synthetic classes, each with a control that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from concept_erasure import LeaceFitter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ace_core as ace
from ace_core import geometry
from ace_core.fitting import variants
from ace_core.fitting.erasure import _inverse_times, leace_eraser
from ace_core.fitting.variants import VARIANTS, variant_named

ROTATION_FOLLOWS = ["mean_difference", "orthogonalised", "principal_component", "logistic_probe", "leace"]
SHIFT_INVARIANT = [name for name in VARIANTS if name != "orthogonalised"]


class Classes:
    """Two Gaussian classes: ``n`` and ``m`` samples in ``d`` dimensions, some of them more than coordinates."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.draw = draw
        self.d = int(torch.randint(3, 24, (1,), generator=draw))
        n, m = (int(torch.randint(4, 40, (1,), generator=draw)) for _ in range(2))
        mixing = torch.randn(self.d, self.d, generator=draw)
        self.harmless = torch.randn(n, self.d, generator=draw) @ mixing + torch.randn(self.d, generator=draw)
        self.harmful = torch.randn(m, self.d, generator=draw) @ mixing + 3 * torch.randn(self.d, generator=draw)

    @property
    def difference(self) -> Tensor:
        return self.harmful.double().mean(0) - self.harmless.double().mean(0)


classes = st.integers(0, 2**31).map(Classes)
names = st.sampled_from(list(VARIANTS))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@given(classes, names)
def test_a_unit_vector_from_harmless_to_harmful(c: Classes, name: str) -> None:
    unit = VARIANTS[name].function(c.harmless, c.harmful)
    assert unit.dtype == torch.float32 and unit.shape == (c.d,)
    assert float(unit.norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(unit.double() @ c.difference) >= 0
    turned = VARIANTS[name].function(c.harmful, c.harmless)
    assert float(turned.double() @ c.difference) <= 0
    if name != "orthogonalised":  # it depends on which class is harmless
        assert cosine(unit, turned) == pytest.approx(-1.0, abs=1e-4)


@given(classes, names)
def test_scale_does_not_matter(c: Classes, name: str) -> None:
    function = VARIANTS[name].function
    unit = function(c.harmless, c.harmful)
    assert cosine(function(c.harmless * 37, c.harmful * 37), unit) > 1 - 1e-5
    if name != "orthogonalised":  # it takes no more from the harmless mean than its direction
        assert cosine(function(c.harmless * 37, c.harmful), unit) < 1 - 1e-5


@given(classes, st.sampled_from(SHIFT_INVARIANT))
def test_a_common_shift_does_not_matter(c: Classes, name: str) -> None:
    function = VARIANTS[name].function
    shift = 5 * torch.randn(c.d, generator=c.draw)
    unit = function(c.harmless, c.harmful)
    assert cosine(function(c.harmless + shift, c.harmful + shift), unit) > 1 - 1e-5


def test_orthogonalising_depends_on_the_origin() -> None:
    c = Classes(3)
    moved = variants.orthogonalised(c.harmless + 5, c.harmful + 5)
    assert cosine(moved, variants.orthogonalised(c.harmless, c.harmful)) < 0.999


@given(classes, names)
def test_the_order_of_prompts_does_not_matter(c: Classes, name: str) -> None:
    function = VARIANTS[name].function
    one, two = (torch.randperm(len(x), generator=c.draw) for x in (c.harmless, c.harmful))
    if VARIANTS[name].paired:  # pairs stay together
        pairs = min(len(one), len(two))
        one = two = torch.randperm(pairs, generator=c.draw)
    unit = function(c.harmless[: len(one)], c.harmful[: len(two)])
    assert cosine(function(c.harmless[one], c.harmful[two]), unit) > 1 - 1e-5


def test_pairing_matters_to_the_principal_component_only() -> None:
    draw = torch.Generator().manual_seed(0)
    topics = 20 * torch.randn(30, 8, generator=draw)
    harmless = topics + torch.randn(30, 8, generator=draw)
    harmful = topics + torch.randn(30, 8, generator=draw) + torch.eye(8)[2] * 8
    rolled = harmful.roll(1, 0)
    for name, variant in VARIANTS.items():
        same = cosine(variant.function(harmless, harmful), variant.function(harmless, rolled)) > 1 - 1e-5
        assert same != variant.paired, name
    assert cosine(variants.principal_component(harmless, harmful), torch.eye(8)[2]) > 0.98


@given(classes, st.sampled_from(ROTATION_FOLLOWS))
def test_rotations_carry_over_except_where_coordinates_are_ordered(c: Classes, name: str) -> None:
    function = VARIANTS[name].function
    rotation = torch.linalg.qr(torch.randn(c.d, c.d, generator=c.draw).double()).Q
    unit = function(c.harmless.double(), c.harmful.double()).double() @ rotation
    turned = function(c.harmless.double() @ rotation, c.harmful.double() @ rotation)
    assert cosine(turned, unit) > 1 - 1e-5


def test_ordered_coordinates_do_not_follow_rotations() -> None:
    draw = torch.Generator().manual_seed(1)
    harmless, harmful = torch.randn(30, 6, generator=draw), torch.randn(30, 6, generator=draw).exp()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q
    for name in set(VARIANTS) - set(ROTATION_FOLLOWS):
        unit = VARIANTS[name].function(harmless, harmful)
        assert cosine(VARIANTS[name].function(harmless @ rotation, harmful @ rotation), unit @ rotation) < 0.999


@given(classes)
def test_mean_difference_is_the_geometry_of_the_paper(c: Classes) -> None:
    expected = geometry.unit_vector(geometry.mean_difference(c.harmless.mean(0), c.harmful.mean(0)))
    assert torch.allclose(variants.mean_difference(c.harmless, c.harmful), expected, atol=1e-4)


@given(classes)
def test_variants_of_the_means_need_no_samples(c: Classes) -> None:
    low, high = c.harmless.double().mean(0, keepdim=True), c.harmful.double().mean(0, keepdim=True)
    for name, variant in VARIANTS.items():
        if not variant.samples:
            assert cosine(variant.function(low, high), variant.function(c.harmless, c.harmful)) > 1 - 1e-6, name


@given(classes)
def test_orthogonalised_is_orthogonal_to_the_harmless_mean(c: Classes) -> None:
    origin = geometry.unit_vector(c.harmless.double().mean(0)).double()
    assert abs(float(variants.orthogonalised(c.harmless, c.harmful).double() @ origin)) < 1e-6
    plain = variants.mean_difference(c.harmless, c.harmful)
    parallel = (plain.double() @ origin) * origin
    assert cosine(plain.double() - parallel, variants.orthogonalised(c.harmless, c.harmful)) > 1 - 1e-5


def test_outliers_move_the_mean_and_not_the_robust_variants() -> None:
    draw = torch.Generator().manual_seed(2)
    harmless, harmful = torch.randn(40, 12, generator=draw), torch.randn(40, 12, generator=draw) + torch.eye(12)[0] * 4
    harmful[:2] = 1000.0 * torch.eye(12)[5]
    assert cosine(variants.mean_difference(harmless, harmful), torch.eye(12)[0]) < 0.2
    assert cosine(variants.median_difference(harmless, harmful), torch.eye(12)[0]) > 0.95
    assert cosine(variants.trimmed_mean_difference(harmless, harmful), torch.eye(12)[0]) > 0.95


@given(classes)
def test_trimming_nothing_is_the_mean_and_everything_the_median(c: Classes) -> None:
    x = c.harmless.double()
    assert torch.allclose(variants._trimmed(x, 0.0), x.mean(0))
    assert torch.allclose(variants._trimmed(x, 0.5), x.quantile(0.5, dim=0))


@given(classes)
@settings(max_examples=40)
def test_the_probe_is_at_the_optimum(c: Classes) -> None:
    """Gradient descent on the stated loss from scratch ends at the same direction."""
    x = torch.cat([c.harmless, c.harmful]).double()
    x = x - x.mean(0)
    x = x / x.square().mean().sqrt()
    y = torch.cat([torch.zeros(len(c.harmless)), torch.ones(len(c.harmful))]).double()
    share = torch.where(y == 0, len(x) / (2 * len(c.harmless)), len(x) / (2 * len(c.harmful)))
    weights, bias = (torch.zeros(k, dtype=torch.float64, requires_grad=True) for k in (c.d, 1))
    search = torch.optim.LBFGS([weights, bias], max_iter=400, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights + bias, y, share, reduction="sum")
        loss = losses + 0.5 * weights.square().sum()
        loss.backward()
        return loss

    search.step(closure)  # type: ignore[arg-type]
    assert cosine(variants.logistic_probe(c.harmless, c.harmful), weights.detach()) > 1 - 1e-6


def test_the_probe_separates_what_the_mean_difference_does_not() -> None:
    draw = torch.Generator().manual_seed(4)
    spread = torch.tensor([3.0, 0.2])
    harmless = torch.randn(60, 2, generator=draw) * spread
    harmful = torch.randn(60, 2, generator=draw) * spread + torch.tensor([2.0, 1.5])

    def overlap(unit: Tensor) -> float:
        return float(((harmful @ unit).unsqueeze(1) < harmless @ unit).float().mean())

    assert overlap(variants.logistic_probe(harmless, harmful)) < 0.01
    assert overlap(variants.leace(harmless, harmful)) < 0.01
    assert overlap(variants.mean_difference(harmless, harmful)) > 0.2


def test_known_answer_for_gaussians() -> None:
    """LEACE reads along Fisher's discriminant ``inverse(Sigma) delta``, the mean difference along ``delta``."""
    draw = torch.Generator().manual_seed(5)
    mixing = torch.diag(torch.tensor([4.0, 1.0, 0.5, 2.0]))
    delta = torch.ones(4)
    harmless = torch.randn(20_000, 4, generator=draw) @ mixing
    harmful = torch.randn(20_000, 4, generator=draw) @ mixing + delta
    fisher = torch.linalg.solve(mixing @ mixing, delta)
    assert cosine(variants.leace(harmless, harmful), fisher) > 0.999
    assert cosine(variants.logistic_probe(harmless, harmful), fisher) > 0.999
    assert cosine(variants.mean_difference(harmless, harmful), delta) > 0.99
    assert cosine(fisher, delta) < 0.9


@given(classes, st.booleans())
def test_the_eraser_equates_the_class_means_and_nothing_less_oblique_does(c: Classes, shrinkage: bool) -> None:
    eraser = leace_eraser(c.harmless, c.harmful, shrinkage=shrinkage)
    gap = c.difference.norm()
    left, right = (eraser(x.double()).mean(0) for x in (c.harmless, c.harmful))
    assert float((right - left).norm()) < 1e-6 * float(gap)
    assert float(eraser.left @ eraser.right) == pytest.approx(1.0)
    once = eraser(c.harmless.double())
    assert torch.allclose(eraser(once), once, atol=1e-6 * float(gap) + 1e-6)
    # an edit with one vector for reading and moving leaves the means apart wherever LEACE is oblique
    unit = variants.leace(c.harmless, c.harmful).double()
    rest = c.difference - (c.difference @ unit) * unit
    assert (float(rest.norm()) > 1e-3 * float(gap)) == (cosine(c.difference, unit) < 1 - 1e-6 / 2)


@given(classes)
def test_the_eraser_moves_the_data_least(c: Classes) -> None:
    """In the sample's own metric no rank-one map that equates the class means moves the fitting data less."""
    x = torch.cat([c.harmless, c.harmful]).double()
    if len(x) <= c.d + 2:
        return
    eraser = leace_eraser(c.harmless, c.harmful, shrinkage=False)

    def moved(read: Tensor) -> float:
        read = read / (read @ eraser.left)
        centred = x - x.mean(0)
        return float(((centred @ read).unsqueeze(-1) * eraser.left).square().sum())

    other = eraser.right + 0.1 * torch.randn(c.d, generator=c.draw).double() * eraser.right.norm()
    assert moved(eraser.right) <= moved(other) * (1 + 1e-9)
    assert moved(eraser.right) <= moved(eraser.left) * (1 + 1e-9)


@given(classes)
@settings(max_examples=30)
def test_few_and_many_prompts_go_through_different_systems_with_one_answer(c: Classes) -> None:
    """The dual systems, used where prompts are fewer than coordinates, equal the direct ones."""
    x = torch.cat([c.harmless, c.harmful]).double()
    x, delta = x - x.mean(0), c.difference
    wide = torch.cat([x, torch.zeros(len(x), 60, dtype=x.dtype)], dim=1)
    padded = torch.cat([delta, torch.zeros(60, dtype=x.dtype)])
    count, width = wide.shape
    sample = wide.T @ wide / count
    trace = sample.trace()
    keep = 1 - trace**2 / count / (sample.square().sum() - trace**2 / width)
    shrunk = keep * sample + (1 - keep) * trace / width * torch.eye(width, dtype=x.dtype)
    assert cosine(_inverse_times(wide, padded, True), torch.linalg.solve(shrunk, padded)) > 1 - 1e-8
    assert cosine(_inverse_times(wide, padded, True), padded) < 1 - 1e-8


@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_leace_agrees_with_concept_erasure(seed: int, shrinkage: bool) -> None:
    c = Classes(seed)
    x = torch.cat([c.harmless, c.harmful]).double()
    z = torch.cat([torch.zeros(len(c.harmless)), torch.ones(len(c.harmful))]).double()
    if not shrinkage and len(x) <= c.d + 2:
        pytest.skip("the pseudo-inverse of a rank-deficient covariance is cut at another tolerance")
    fitter = LeaceFitter.fit(x, z, shrinkage=shrinkage, constrain_cov_trace=False, svd_tol=1e-9)
    ours = leace_eraser(c.harmless, c.harmful, shrinkage=shrinkage)
    assert torch.allclose(ours(x), fitter.eraser(x), atol=1e-6 * float(x.abs().max()))
    assert cosine(variants.leace(c.harmless, c.harmful), ours.right) > (1 - 1e-6 if shrinkage else -1)
    orthogonal = LeaceFitter.fit(x, z, method="orth").eraser
    assert not torch.allclose(ours(x), orthogonal(x), atol=1e-3 * float(x.abs().max()))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x: (x[:0], x), "at least one"),
        (lambda x: (x, x[:, :2]), "one width"),
        (lambda x: (x * float("nan"), x), "non-finite"),
        (lambda x: (x * 0, x * 0), "no direction"),
    ],
)
def test_unusable_classes_are_refused(
    name: str, make: Callable[[Tensor], tuple[Tensor, Tensor]], sentence: str
) -> None:
    with pytest.raises(ace.EngineError, match=sentence):
        VARIANTS[name].function(*make(torch.ones(4, 3)))


def test_the_registry_explains_itself() -> None:
    assert next(iter(VARIANTS)) == "mean_difference" and variants.IMPORTED not in VARIANTS
    for name, variant in VARIANTS.items():
        assert variant.name == name and variant_named(name) is variant
        assert variant.explanation.endswith(".") and variant.source and variant.title
    with pytest.raises(ace.EngineError, match="choose one of mean_difference"):
        variant_named("magic")
