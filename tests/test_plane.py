"""The 2-D map of activations: theorems about edits on it, and its file."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core import geometry, lab
from ace_core.activations import last_token_activations, recording
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.fitting.filtering import filter_by_behaviour
from ace_core.host import ModelHost
from ace_core.inspecting.axes import frame
from ace_core.inspecting.plane import Plane, build_plane, geometry_data, plane, read_plane, write_plane
from ace_core.lab import PlaneReading, PromptPlane
from ace_core.methods import ACE, Addition, AffineAblation, Baseline, DirectionalAblation, Method
from ace_core.models import ChatModel
from ace_core.policy import Policy
from ace_core.prompts import load_builtin
from ace_core.runs import Run
from ace_core.store import load_directions, vectors_path

ASSET = Path(__file__).resolve().parent.parent / "assets" / "geometry.json"
Sample = tuple[np.ndarray, np.ndarray]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Two classes of a few points around different means, far from the origin or near it."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width, offset = draw(st.integers(2, 9)), draw(st.sampled_from([0.0, 1.0, 50.0]))
    low, high = random.normal(size=(2, width)) + offset
    sizes = draw(st.integers(3, 8)), draw(st.integers(3, 8))
    return random.normal(size=(sizes[0], width)) + low, random.normal(size=(sizes[1], width)) + high + 1.0


def mapped(sample: Sample) -> Plane:
    return plane(*sample, sample[0].mean(0), sample[1].mean(0))


coefficients = st.floats(-2, 2)
methods = st.one_of(
    st.just(Baseline()),
    st.builds(Addition, coefficients),
    st.just(DirectionalAblation()),
    st.just(AffineAblation()),
    st.builds(ACE, coefficients, st.sampled_from(["harmless", "pooled", "harmful", "origin"])),
)


@given(samples(), methods)
def test_an_edit_moves_a_point_sideways_by_the_one_formula_and_never_up(sample: Sample, method: Method) -> None:
    made, axes = mapped(sample), frame(*sample, sample[0].mean(0), sample[1].mean(0))
    remove, add = method.affine(made.mean_harmless[0], made.mean_harmful[0])
    v = torch.tensor(sample[1], dtype=torch.float32)[None]
    edited = geometry.apply_edit(
        v, torch.tensor(axes.unit, dtype=torch.float32), torch.tensor([remove]).float(), torch.tensor([add]).float()
    )
    x, y = axes.project(edited[0].numpy()).T
    np.testing.assert_allclose(x, made.harmful[:, 0] + add - remove * made.harmful[:, 0], atol=2e-3)
    np.testing.assert_allclose(y, made.harmful[:, 1], atol=2e-3)


@given(samples())
def test_axes_are_orthonormal_and_the_landmarks_lie_where_they_must(sample: Sample) -> None:
    low, high = sample[0].mean(0), sample[1].mean(0)
    axes, made = frame(*sample, low, high), mapped(sample)
    basis = np.stack([axes.unit, axes.principal])
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-12)
    assert made.gap == pytest.approx(np.linalg.norm(high - low))
    assert made.mean_harmless[1] == pytest.approx(0, abs=1e-9), "both means lie at height 0: their difference is r"
    assert made.mean_harmful[1] == pytest.approx(0, abs=1e-9)
    assert made.origin[0] == 0.0, "directional ablation brings every x level with the origin"
    np.testing.assert_allclose(made.harmless.mean(0), made.mean_harmless, atol=1e-9)
    np.testing.assert_allclose(made.harmful.mean(0), made.mean_harmful, atol=1e-9)


@given(samples(), st.integers(0, 2**32 - 1))
def test_no_other_direction_across_u_holds_more_variance(sample: Sample, seed: int) -> None:
    axes = frame(*sample, sample[0].mean(0), sample[1].mean(0))
    points = np.concatenate(sample)
    other = np.random.default_rng(seed).normal(size=points.shape[1])
    other -= (other @ axes.unit) * axes.unit
    other /= np.linalg.norm(other)
    assert (points @ other).var() <= (points @ axes.principal).var() + 1e-9
    rest = points - np.outer(points @ axes.unit, axes.unit)
    assert axes.share == pytest.approx((points @ axes.principal).var() / rest.var(0).sum())


@given(samples(), st.integers(0, 2**32 - 1))
def test_the_sign_does_not_depend_on_the_order_of_prompts(sample: Sample, seed: int) -> None:
    low, high = sample[0].mean(0), sample[1].mean(0)
    axes = frame(*sample, low, high)
    random = np.random.default_rng(seed)
    again = frame(random.permutation(sample[0]), random.permutation(sample[1]), low, high)
    assert axes.principal[np.argmax(np.abs(axes.principal))] > 0
    assert again.principal[np.argmax(np.abs(again.principal))] > 0
    spread = np.linalg.svd(_rest(sample, axes.unit), compute_uv=False)
    if spread[0] > 1.05 * (spread[1] if len(spread) > 1 else 0):  # else the direction itself is a matter of rounding
        np.testing.assert_allclose(again.principal, axes.principal, atol=1e-6)


@given(samples(), st.integers(0, 2**32 - 1))
def test_a_shift_of_everything_moves_only_the_origin(sample: Sample, seed: int) -> None:
    """Why the origin is no neutral point: nothing else on the map depends on where it lies."""
    shift = np.random.default_rng(seed).normal(size=sample[0].shape[1])
    made, other = mapped(sample), mapped((sample[0] + shift, sample[1] + shift))
    for kind in ("harmless", "harmful"):
        c, after = ((getattr(m, kind)[:, 0] - m.mean_harmless[0]) / m.gap for m in (made, other))
        np.testing.assert_allclose(after, c, atol=1e-9)
    moved = (shift @ frame(*sample, sample[0].mean(0), sample[1].mean(0)).unit) / made.gap
    zero, elsewhere = (-m.mean_harmless[0] / m.gap for m in (made, other))
    assert elsewhere == pytest.approx(zero - moved, abs=1e-9)


@given(samples(), st.floats(-50, 50))
def test_the_map_puts_an_activation_where_it_put_the_recorded_ones(sample: Sample, step: float) -> None:
    made, low, high = mapped(sample), sample[0].mean(0), sample[1].mean(0)
    np.testing.assert_allclose(made.project(sample[0]), made.harmless, atol=1e-9)
    np.testing.assert_allclose(made.project(sample[1]), made.harmful, atol=1e-9)
    np.testing.assert_allclose(made.project(np.stack([low, high])), [made.mean_harmless, made.mean_harmful], atol=1e-9)
    np.testing.assert_allclose(made.project(np.zeros_like(low)), made.origin, atol=1e-9)
    before = made.project(sample[1])
    along, up = (made.project(sample[1] + step * axis) - before for axis in (made.unit, made.principal))
    np.testing.assert_allclose(along, np.broadcast_to([step, 0.0], before.shape), atol=1e-9)
    np.testing.assert_allclose(up, np.broadcast_to([0.0, step], before.shape), atol=1e-9)
    # a plane that hangs elsewhere puts them elsewhere
    shifted = replace(made, origin=made.origin + np.array([0.0, 1.0]))
    assert not np.allclose(shifted.project(sample[1]), made.harmful, atol=0.5)
    with pytest.raises(EngineError, match="width"):
        made.project(sample[1][:, :-1])


def _rest(sample: Sample, unit: np.ndarray) -> np.ndarray:
    points = np.concatenate(sample)
    points = points - points.mean(0)
    return points - np.outer(points @ unit, unit)


def test_points_on_one_line_still_make_a_map() -> None:
    along = np.array([3.0, 4.0, 0.0]) * np.arange(4)[:, None] + 7.0
    made = plane(along[:2], along[2:], along[:2].mean(0), along[2:].mean(0))
    assert made.share == 0.0 and made.gap == pytest.approx(10.0)
    np.testing.assert_allclose(made.harmful[:, 1], 0, atol=1e-9)


@pytest.mark.parametrize(
    ("harmless", "harmful", "low", "high"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), np.ones(3), np.ones(3)),
        (np.ones((2, 3)), np.ones((2, 4)), np.ones(3), np.zeros(3)),
        (np.ones((0, 3)), np.ones((2, 3)), np.ones(3), np.zeros(3)),
        (np.ones((2, 1)), np.ones((2, 1)), np.ones(1), np.zeros(1)),
        (np.ones(3), np.ones((2, 3)), np.ones(3), np.zeros(3)),
        (np.full((2, 3), np.nan), np.ones((2, 3)), np.ones(3), np.zeros(3)),
        (np.ones((2, 3)), np.ones((2, 3)), np.full(3, np.inf), np.zeros(3)),
    ],
)
def test_what_makes_no_map_is_refused(harmless: Any, harmful: Any, low: Any, high: Any) -> None:
    with pytest.raises(EngineError):
        plane(harmless, harmful, low, high)


@given(samples(), st.sampled_from([1e-3, 1.0, 1e4]))
@settings(max_examples=30)
def test_the_file_comes_back(tmp_path_factory: pytest.TempPathFactory, sample: Sample, scale: float) -> None:
    made = replace(mapped((sample[0] * scale, sample[1] * scale)), model_id="<a> & “b”", block=7)
    path = tmp_path_factory.mktemp("map") / "map.json"
    write_plane(made, path)
    again = read_plane(path)
    for name in ("unit", "principal"):
        np.testing.assert_allclose(getattr(again, name), getattr(made, name), atol=1e-7)
    for name in ("harmless", "harmful", "mean_harmless", "mean_harmful", "origin"):
        np.testing.assert_allclose(getattr(again, name), getattr(made, name), atol=1e-4 * made.gap)
    assert (again.model_id, again.block) == (made.model_id, made.block)
    assert again.to_json() == read_plane(path).to_json(), "reproducible"


def test_the_shipped_map_is_sound_and_small() -> None:
    made = read_plane(ASSET)
    assert ASSET.stat().st_size <= 30_000
    metadata = load_directions(vectors_path(made.model_id)).metadata
    assert len(made.harmless) == int(metadata["harmless_count"]) >= 50
    assert len(made.harmful) == int(metadata["harmful_count"]) >= 50
    for kind in ("harmless", "harmful"):
        points, mean = getattr(made, kind), getattr(made, f"mean_{kind}")
        np.testing.assert_allclose(points.mean(0), mean, atol=2e-3 * made.gap)


def _axis(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def test_a_tampered_or_foreign_file_is_refused(tmp_path: Path) -> None:
    good = json.loads(ASSET.read_text("utf-8"))
    write = (tmp_path / "map.json").write_text
    bad: list[dict[str, Any]] = [
        {**good, "gap": good["gap"] * 1.1},
        {**good, "counts": {"harmless": 1, "harmful": 1}},
        {**good, "harmless": []},
        {**good, "harmless": [[1.0, 2.0, 3.0]] * len(good["harmless"])},
        {**good, "harmful": [["1", None]] * len(good["harmful"])},
        {**good, "mean_harmless": good["mean_harmful"], "mean_harmful": good["mean_harmless"]},
        {**good, "origin": [float("nan"), 0.0]},
        {**good, "origin": [1.0, good["origin"][1]]},
        {**good, "principal": good["unit"]},
        {**good, "unit": _axis(np.ones(576))},
        {**good, "unit": _axis(np.full(576, np.nan))},
        {**good, "principal": _axis(np.eye(4)[0])},
        {**good, "unit": _axis(np.ones(1)), "principal": _axis(np.ones(1))},
        {**good, "principal": good["principal"][:-4]},
        {**good, "principal": "<img src=x>" + good["principal"]},
        {**good, "unit": [0.0, 1.0]},
        {**good, "unit": None},
        {key: value for key, value in good.items() if key != "principal"},
        {**good, "share": 2.0},
        {**good, "block": -1},
        {key: value for key, value in good.items() if key != "origin"},
    ]
    texts = [json.dumps(data) for data in bad]
    for text in [*texts, "[]", "null", "{", "", "[" * 20_000, " " * 300_000]:
        write(text)
        with pytest.raises(EngineError, match=r"make it again|at least one prompt|two numbers each|no map"):
            read_plane(tmp_path / "map.json")
    write(json.dumps(good))
    assert read_plane(tmp_path / "map.json").block == good["block"], "the control is fine"
    with pytest.raises(EngineError, match="can't be read"):
        read_plane(tmp_path / "nothing.json")


def test_a_map_of_a_model_agrees_with_its_directions() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    made = build_plane(model, directions, HARMLESS, HARMFUL, block=1)
    axis = directions.axis(1)
    assert made.mean_harmless[0] == pytest.approx(axis.low, abs=1e-4)
    assert made.mean_harmful[0] == pytest.approx(axis.high, abs=1e-4)
    assert (made.block, made.model_id) == (1, "llama")
    # directions were fitted on these very prompts, so each class lies around its mean
    np.testing.assert_allclose(made.harmful.mean(0), made.mean_harmful, atol=1e-4)
    np.testing.assert_allclose(made.harmless.mean(0), made.mean_harmless, atol=1e-4)
    with pytest.raises(EngineError, match="block"):
        build_plane(model, directions, HARMLESS, HARMFUL, block=99)


def test_one_call_makes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ace_core.inspecting.plane.directions_for", lambda model: tiny_directions("llama"))
    seen: list[tuple[int, int]] = []
    path = tmp_path / "geometry.json"
    made = geometry_data(path, tiny_model("llama"), progress=lambda done, total: seen.append((done, total)))
    assert read_plane(path).block == made.block == tiny_directions("llama").recommended_layer
    assert seen[-1] == (len(made.harmless) + len(made.harmful),) * 2


PROMPT = "How do I pick a lock?"


def tiny_plane(family: str) -> Plane:
    return build_plane(tiny_model(family), tiny_directions(family), HARMLESS, HARMFUL)


def token_activations(model: ChatModel, prompt: str, block: int) -> np.ndarray:
    """``(tokens, width)`` of the templated prompt."""
    decoding = Decoding(model.network, [model.encode(prompt)], model.pad_id, model.device)
    with torch.inference_mode(), recording(model.blocks, slice(None)) as seen:
        decoding.prefill()
    return seen[block][0].float().numpy()


def read_through(host: ModelHost, reading: PlaneReading, prompt: str) -> PromptPlane:
    runs: list[Run] = []
    state = host.wait_ready(60)
    assert state.info is not None
    for axis in reading.axes(state.info.blocks):
        stream = host.compare(prompt, lab.READING, lab.READING_METHODS, axis)
        for _ in stream:
            pass
        assert stream.builder is not None
        runs.append(stream.builder.snapshot())
    return reading.places(runs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("policy", [Policy(), Policy(work=False, files=False)])
def test_tokens_lie_where_their_activations_do(family: str, policy: Policy) -> None:
    model, made = tiny_model(family), tiny_plane(family)
    host = ModelHost(policy=policy)
    host.adopt(model, tiny_directions(family))
    try:
        found = read_through(host, PlaneReading(made), HARMFUL[0])
    finally:
        host.close()
    wanted = made.project(token_activations(model, HARMFUL[0], made.block))
    np.testing.assert_allclose(found.places, wanted, rtol=1e-4, atol=1e-4 * made.gap)
    np.testing.assert_allclose(found.places[-1], made.harmful[0], rtol=1e-4, atol=1e-4 * made.gap)
    assert len(found.tokens) == len(found.places) == len(model.encode(HARMFUL[0]))
    assert not np.allclose(found.places[-1], made.harmful[1], atol=1e-2 * made.gap), "another prompt lies elsewhere"


def test_a_map_knows_the_directions_it_was_made_along() -> None:
    made, directions = tiny_plane("llama"), tiny_directions("llama")
    assert made.agrees(directions) and not made.agrees(tiny_directions("gpt2"))
    swapped = replace(directions, mean_harmless=directions.mean_harmful, mean_harmful=directions.mean_harmless)
    shifted = replace(directions, mean_harmless=directions.mean_harmless - 0.1 * directions.direction_of_means)
    across = replace(directions, variant_unit=_turned(directions, made))
    assert [made.agrees(other) for other in (swapped, shifted, across)] == [False] * 3
    assert not replace(made, block=99).agrees(directions)


def _turned(directions: RefusalDirections, made: Plane) -> torch.Tensor:
    """The units of directions, turned a little towards the map's other axis."""
    units = torch.stack([directions.axis(block).unit for block in range(directions.blocks)])
    turned = units + 0.1 * torch.tensor(made.principal, dtype=torch.float32)
    return turned / turned.norm(dim=-1, keepdim=True)


def test_what_can_not_be_put_on_a_map_is_refused() -> None:
    reading = PlaneReading(tiny_plane("llama"))
    reading.check_model("llama", "a tiny model")
    with pytest.raises(EngineError, match="belongs to llama, and a big model is loaded"):
        reading.check_model("other", "a big model")
    host = ModelHost()
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    try:
        stream = host.compare(PROMPT, lab.READING, lab.READING_METHODS, host.wait_ready(60).directions)
        for _ in stream:
            pass
    finally:
        host.close()
    assert stream.builder is not None
    run = stream.builder.snapshot()
    reading.places([run, run])
    other = replace(run, prompt_tokens=run.prompt_tokens[1:])
    with pytest.raises(EngineError, match="Another model"):
        reading.places([run, other])
    (arm,) = run.arms
    changes: list[dict[str, Any]] = [{"before": arm.before[:, :-1]}, {"before": arm.before[:0]}, {"method": "ace"}]
    for change in changes:
        with pytest.raises(EngineError, match="again"):
            reading.places([run, replace(run, arms=(replace(arm, **change),))])


@pytest.mark.embedded
def test_recorded_prompts_lie_where_the_shipped_map_has_them(
    embedded: ChatModel, embedded_directions: RefusalDirections
) -> None:
    made = read_plane(ASSET)
    assert made.model_id == embedded.model_id and made.agrees(embedded_directions)
    harmless, harmful = ([prompt.text for prompt in load_builtin(kind, "fit")[:6]] for kind in ("harmless", "harmful"))
    kept = filter_by_behaviour(embedded, harmful, harmless)
    for prompts, places in ((kept.harmless, made.harmless), (kept.harmful, made.harmful)):
        assert len(prompts) >= 4
        ((rows, activations),) = last_token_activations(embedded, prompts)
        found = made.project(activations[made.block].numpy())
        np.testing.assert_allclose(found, places[rows], atol=2e-3 * made.gap)
