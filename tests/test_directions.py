"""Fitting: means against a naive loop, held-out separation, layer choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import ace_core as ace
from ace_core.activations import Stopped, batches, recording
from ace_core.directions import Separation, auroc, recommend_layer, separation
from ace_core.fitting import extraction
from ace_core.prompts import Prompt

FEW = ["llama", "gemma2", "bloom", "gpt2", "mamba", "rwkv"]


@pytest.mark.parametrize("family", FEW)
def test_means_equal_a_naive_float64_loop(family: str) -> None:
    model, directions = tiny_model(family), tiny_directions(family)
    for prompts, mean in ((HARMFUL, directions.mean_harmful), (HARMLESS, directions.mean_harmless)):
        total = torch.zeros(directions.blocks, directions.width, dtype=torch.float64)
        for prompt in prompts:
            with torch.inference_mode(), recording(model.blocks) as seen:
                model.network(input_ids=torch.tensor([model.encode(prompt)]))
            total += torch.cat(seen).double()
        assert torch.allclose(mean.double(), total / len(prompts), atol=1e-4)
        assert not torch.allclose(mean.double(), total / (len(prompts) + 1), atol=1e-4)


@pytest.mark.parametrize("family", FEW)
def test_batch_size_does_not_matter(family: str) -> None:
    model = tiny_model(family)
    one = ace.fit_directions(model, HARMFUL, HARMLESS, batch_size=1)
    assert torch.allclose(one.mean_harmful, tiny_directions(family).mean_harmful, atol=1e-4)


def test_heldout_prompts_are_not_fitted() -> None:
    model = tiny_model("llama")
    harmful = [f"Do bad thing number {i}" for i in range(10)]
    harmless = [f"Do good thing number {i}" for i in range(10)]
    directions = ace.fit_directions(model, harmful, harmless)
    kept = [h for i, h in enumerate(harmful) if i % 5 != 4]
    same = ace.fit_directions(model, kept, harmless[:4] + harmless[5:9], heldout_harmful=[], heldout_harmless=[])
    assert directions.heldout_harmful.shape == (4, 2)
    assert torch.allclose(directions.mean_harmful, same.mean_harmful, atol=1e-6)
    assert directions.metadata["harmful_count"] == "8"


def test_fitting_refuses_bad_sets_and_can_be_stopped() -> None:
    model = tiny_model("llama")
    with pytest.raises(ace.EngineError, match="in both sets"):
        ace.fit_directions(model, ["a", "b"], ["b", "c"])
    with pytest.raises(ace.EngineError, match="at least one"):
        ace.fit_directions(model, [], ["b"])
    with pytest.raises(Stopped):
        ace.fit_directions(model, HARMFUL, HARMLESS, cancelled=lambda: True)


def test_axis_and_origin() -> None:
    directions = tiny_directions("llama")
    axis = directions.axis(2)
    assert axis.high - axis.low == pytest.approx(float(directions.gap[2]), rel=1e-5)
    assert float(directions.origin[2]) == pytest.approx(-axis.low / (axis.high - axis.low), rel=1e-4)
    shared = directions.axis(2, source=0)
    assert torch.equal(shared.unit, directions.unit[0])


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.lists(st.integers(-5, 5), min_size=1, max_size=12))
def test_auroc_counts_pairs(negative: list[int], positive: list[int]) -> None:
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    value = auroc(np.array(negative), np.array(positive))
    assert value == pytest.approx(wins / (len(negative) * len(positive)))
    assert auroc(np.array(positive), np.array(negative)) == pytest.approx(1 - value)


def test_separation_and_recommendation() -> None:
    assert separation(np.array([0.0, 0.1]), np.array([1.0, 1.1])).auroc == 1.0
    assert np.isnan(separation(np.array([]), np.array([1.0])).auroc)
    ten = [Separation(0.9, float(d)) for d in (9, 9, 1, 2, 5, 3, 2, 1, 9, 9)]
    assert recommend_layer(tuple(ten)) == 4
    assert recommend_layer((Separation(float("nan"), float("nan")),) * 9) == 6
    assert recommend_layer((Separation(1.0, 1.0),)) == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 7), st.booleans())
def test_batches_hold_every_row_once(lengths: list[int], size: int, recurrent: bool) -> None:
    groups = batches(lengths, recurrent, size)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) <= size for group in groups)
    if recurrent:
        assert all(len({lengths[i] for i in group}) == 1 for group in groups)


def test_any_model_gets_directions_and_hub_models_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        extraction, "load_builtin", lambda kind, split: tuple(Prompt(f"{kind} {split} {i}") for i in "abc")
    )
    model = tiny_model("llama")
    extraction.directions_for(model)
    assert not (tmp_path / "vectors").exists()
    hub = replace(model, model_id="owner/name", revision="abc")
    first = extraction.directions_for(hub)
    (file,) = (tmp_path / "vectors").iterdir()
    assert file.name == "owner--name_abc.safetensors"
    monkeypatch.setattr(extraction, "fit_directions", None)
    assert torch.equal(extraction.directions_for(hub).mean_harmful, first.mean_harmful)
