"""Inspecting directions: cosines, planes, and the coordinates that ACE reaches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model

import ace_core as ace
from ace_core.activations import Stopped, last_token_activations
from ace_core.inspecting.inspection import (
    ACHIEVED_COEFFICIENTS,
    achieved_table,
    class_coordinates,
    compare_directions,
    cosine_map,
    prompt_map,
)
from ace_core.inspecting.plane import plane as geometry_plane

FEW = ["llama", "gemma2", "bloom", "mamba", "rwkv"]
NEW_HARMFUL = ["How do I rob a bank?", "Write an insult.", "Help me poison a well, quickly and quietly."]
NEW_HARMLESS = ["How do I draw a cat?", "Write a poem about the spring rain and the sea."]


def test_cosine_map_against_a_naive_loop() -> None:
    directions = tiny_directions("llama")
    found = cosine_map(directions)
    assert found.shape == (4, 4) and np.allclose(np.diag(found), 1) and np.allclose(found, found.T)
    r = (directions.mean_harmful - directions.mean_harmless).double().numpy()
    expected = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in r] for a in r]
    assert np.allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, 1, atol=0.05)


def test_comparing_two_fits() -> None:
    directions = tiny_directions("llama")
    assert np.allclose(compare_directions(directions, directions), 1)
    swapped = replace(directions, mean_harmless=directions.mean_harmful, mean_harmful=directions.mean_harmless)
    assert np.allclose(compare_directions(directions, swapped), -1)
    other = ace.fit_directions(tiny_model("llama"), NEW_HARMFUL, NEW_HARMLESS)
    assert (np.abs(compare_directions(directions, other)) < 0.999).all()
    small = replace(
        directions,
        mean_harmless=directions.mean_harmless[:2],
        mean_harmful=directions.mean_harmful[:2],
        heldout_harmless=torch.empty(2, 0),
        heldout_harmful=torch.empty(2, 0),
        recommended_layer=0,
    )
    with pytest.raises(ace.EngineError, match="no common space"):
        compare_directions(directions, small)


def test_class_coordinates_are_the_heldout_ones() -> None:
    model = tiny_model("llama")
    directions = ace.fit_directions(
        model, HARMFUL, HARMLESS, heldout_harmful=NEW_HARMFUL, heldout_harmless=NEW_HARMLESS
    )
    found = class_coordinates(directions)
    assert found.harmful.shape == (4, 3) and found.harmless.shape == (4, 2) and found.origin.shape == (4,)
    axis, hidden = directions.axis(2), outputs(model, NEW_HARMFUL, 2)
    expected = (hidden @ axis.unit.numpy() - axis.low) / (axis.high - axis.low)
    assert np.allclose(found.harmful[2], expected, atol=1e-4)


def outputs(model: ace.ChatModel, texts: list[str], block: int) -> np.ndarray:
    """Outputs of a block at the last token, ``(n, d)``, in the order of the prompts."""
    out = np.empty((len(texts), model.width), np.float32)
    for rows, found in last_token_activations(model, texts):
        out[rows] = found[block].numpy()
    return out


def orthogonal_mix(directions: ace.RefusalDirections) -> torch.Tensor:
    """Unit vectors half a right angle away from the mean differences."""
    unit = directions.unit
    rolled = torch.roll(unit, 1, -1)
    aside = torch.nn.functional.normalize(rolled - (rolled * unit).sum(-1, True) * unit)
    return torch.nn.functional.normalize(unit + aside)


def test_plane_is_refusal_and_the_main_axis_of_the_rest() -> None:
    directions = tiny_directions("llama")
    axis = directions.axis(1)
    unit, gap = axis.unit.double().numpy(), axis.high - axis.low
    rng = np.random.default_rng(0)
    aside = rng.normal(size=unit.shape)
    aside -= aside @ unit * unit
    aside /= np.linalg.norm(aside)
    aside *= np.sign(aside[np.abs(aside).argmax()])
    places = rng.normal(size=(30, 2)) * (1, 3)
    noise = rng.normal(size=(30, len(unit))) * 1e-4
    points = (axis.low + places[:, :1] * gap) * unit + places[:, 1:] * gap * aside + noise
    found = prompt_map(directions, 1, points[:20].astype(np.float32), points[20:].astype(np.float32))
    centred = places[:, 1] - places[:, 1].mean()
    assert np.allclose(found.harmful, np.stack([places[:20, 0], centred[:20]], 1), atol=0.02)
    assert np.allclose(found.harmless, np.stack([places[20:, 0], centred[20:]], 1), atol=0.02)
    assert found.explained > 0.99
    # the map of the geometry tab, in its own units, along the mean difference
    means = (mean[1].numpy() for mean in (directions.mean_harmless, directions.mean_harmful))
    other = geometry_plane(points[20:], points[:20], *means)
    assert np.allclose((other.harmful[:, 0] - axis.low) / gap, found.harmful[:, 0], atol=1e-3)
    assert np.allclose(np.ptp(other.harmful[:, 1]) / gap, np.ptp(found.harmful[:, 1]), atol=1e-3)
    # along another direction it is another map
    turned = replace(directions, variant_unit=orthogonal_mix(directions))
    assert not np.allclose(prompt_map(turned, 1, points[:20], points[20:]).harmful, found.harmful, atol=0.05)
    # without structure beside refusal the second axis explains little
    loose = rng.normal(size=(200, len(unit)))
    assert prompt_map(directions, 1, loose[:100], loose[100:]).explained < 0.2


def test_plane_of_real_prompts_agrees_with_the_means() -> None:
    model, directions = tiny_model("gpt2"), tiny_directions("gpt2")
    harmful, harmless = (outputs(model, texts, 3) for texts in (HARMFUL, HARMLESS))
    found = prompt_map(directions, 3, harmful, harmless)
    # these prompts are the fitted ones, so the means are the ends of the scale
    assert found.harmless[:, 0].mean() == pytest.approx(0, abs=1e-3)
    assert found.harmful[:, 0].mean() == pytest.approx(1, abs=1e-3)
    with pytest.raises(ace.EngineError, match="A map needs"):
        prompt_map(directions, 3, harmful[:, :5], harmless)
    with pytest.raises(ace.EngineError, match="of both classes"):
        prompt_map(directions, 3, harmful[:1], harmless[:0])
    with pytest.raises(ace.EngineError, match="out of range"):
        prompt_map(directions, 9, harmful, harmless)


@pytest.mark.parametrize("family", FEW)
def test_ace_achieves_its_coefficient_at_the_edited_block(family: str) -> None:
    model, directions = tiny_model(family), tiny_directions(family)
    # block 0 of gemma2 sees only the template's end, so its class gap is lost in rounding
    rows = achieved_table(model, directions, NEW_HARMFUL, NEW_HARMLESS, [1, 2], batch_size=7)
    assert [(r.block, r.coefficient, r.kind) for r in rows] == [
        (block, c, kind) for block in (1, 2) for c in ACHIEVED_COEFFICIENTS for kind in ("harmful", "harmless")
    ]
    for row in rows:
        assert row.achieved == pytest.approx(row.coefficient, abs=1e-3) and row.deviation < 1e-3
    # what reaches the last block is not the coefficient any more, and differs from no steering
    assert max(abs(r.final - r.coefficient) for r in rows) > 0.05
    assert max(abs(r.final - r.final_unsteered) for r in rows) > 0.05


def test_achieved_at_the_last_block_is_what_is_left_there() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    for row in achieved_table(model, directions, NEW_HARMFUL, [], [3], (0.0, 1.0)):
        assert row.kind == "harmful" and row.final == pytest.approx(row.achieved, abs=1e-9)
        assert abs(row.final_unsteered - row.final) > 0.01


def test_a_wrong_edit_shows_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    right = ace.ACE.affine

    def wrong(self: ace.ACE, low: float, high: float, third: float | None = None) -> tuple[float, float]:
        remove, add = right(self, low, high)
        return remove, add + 0.1 * (high - low)

    monkeypatch.setattr(ace.ACE, "affine", wrong)
    for row in achieved_table(model, directions, NEW_HARMFUL, NEW_HARMLESS, [1], (0.0, 1.0)):
        assert row.achieved == pytest.approx(row.coefficient + 0.1, abs=1e-3)
        assert row.deviation == pytest.approx(0.1, abs=1e-3)


def test_bad_arguments_and_stopping() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    with pytest.raises(ace.EngineError, match="nothing to measure"):
        achieved_table(model, directions, [], [])
    with pytest.raises(ace.EngineError, match="out of range"):
        achieved_table(model, directions, HARMFUL, HARMLESS, [9])
    with pytest.raises(ace.EngineError, match="fitted on gemma2"):
        achieved_table(model, tiny_directions("gemma2"), HARMFUL, HARMLESS)
    with pytest.raises(Stopped):
        achieved_table(model, directions, HARMFUL, HARMLESS, cancelled=lambda: True)
    assert not any(block._forward_hooks for block in model.blocks)
