"""Vectors on disk: round trip, and files that are damaged, foreign or hostile."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_directions
from safetensors.torch import load_file, save_file

import ace_core as ace
from ace_core import geometry, store


def test_round_trip_is_exact_and_bytes_are_reproducible(tmp_path: Path) -> None:
    directions = tiny_directions("llama")
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    ace.save_directions(directions, first)
    loaded = store.load_directions(first)
    ace.save_directions(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    assert torch.equal(loaded.mean_harmful, directions.mean_harmful)
    assert loaded.metadata == directions.metadata
    assert loaded.recommended_layer == directions.recommended_layer
    assert not list(tmp_path.glob("*.tmp"))


def with_variant(directions: ace.RefusalDirections) -> ace.RefusalDirections:
    """Directions a little off the mean difference, and a third set's mean."""
    draw = torch.Generator().manual_seed(0)
    tilted = directions.unit + 0.05 * torch.randn(directions.unit.shape, generator=draw)
    return replace(
        directions,
        variant_unit=geometry.unit_vector(tilted),
        mean_reference=torch.randn(directions.unit.shape, generator=draw),
        metadata={**directions.metadata, "variant": "imported"},
    )


def test_round_trip_with_a_variant_and_a_third_mean(tmp_path: Path) -> None:
    directions = with_variant(tiny_directions("llama"))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    ace.save_directions(directions, first)
    loaded = store.load_directions(first)
    ace.save_directions(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    assert loaded.variant_unit is not None and loaded.mean_reference is not None
    assert torch.equal(loaded.unit, directions.unit) and torch.equal(loaded.gap, directions.gap)
    numbers = [(axis.low, axis.high, axis.third) for axis in (loaded.axis(1), directions.axis(1))]
    assert numbers[0] == numbers[1] and None not in numbers[0]
    assert loaded.variant == "imported"
    plain = tmp_path / "plain.safetensors"
    ace.save_directions(tiny_directions("llama"), plain)
    assert set(load_file(plain)) == {"mean_harmless", "mean_harmful", "heldout_harmless", "heldout_harmful"}
    assert not torch.equal(store.load_directions(plain).unit, loaded.unit)


def test_shipped_files_are_written_back_to_the_byte(tmp_path: Path) -> None:
    files = sorted(store.VECTORS.glob("*.safetensors"))
    assert files
    for file in files:
        loaded = store.load_directions(file)
        assert loaded.variant == "mean_difference" and loaded.variant_unit is loaded.mean_reference is None
        ace.save_directions(loaded, tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {**t, "variant_unit": t["variant_unit"] * 2}, "not unit vectors"),
        (lambda t: {**t, "variant_unit": -t["variant_unit"]}, "does not point from harmless to harmful"),
        (lambda t: {**t, "variant_unit": t["variant_unit"][:1]}, "shape of the class means"),
        (lambda t: {**t, "variant_unit": t["variant_unit"] * float("inf")}, "not finite"),
        (lambda t: {**t, "mean_reference": t["mean_reference"][:, :3]}, "shape of the class means"),
        (lambda t: {**t, "mean_reference": t["mean_reference"] * float("nan")}, "not finite"),
    ],
)
def test_foreign_variants_are_refused(change, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    ace.save_directions(with_variant(tiny_directions("llama")), path)
    save_file({k: v.clone() for k, v in change(load_file(path)).items()}, path, {"recommended_layer": "1"})
    with pytest.raises(ace.EngineError, match=sentence):
        store.load_directions(path)


def damaged(kind: str, good: Path) -> bytes:
    data = good.read_bytes()
    header = struct.unpack("<Q", data[:8])[0]
    if kind == "empty":
        return b""
    if kind == "truncated":
        return data[:-10]
    if kind == "header too long":
        return struct.pack("<Q", 2**62) + data[8:]
    if kind == "header of a gigabyte":
        return struct.pack("<Q", 2**30) + data[8:]
    if kind == "not json":
        return data[:8] + b"x" * header + data[8 + header :]
    if kind == "offsets outside the file":
        fields = json.loads(data[8 : 8 + header])
        fields["mean_harmful"]["data_offsets"] = [0, 2**40]
        text = json.dumps(fields).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + header :]
    if kind == "pickle":
        return pickle.dumps({"mean_harmful": [1.0]})
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    ["empty", "truncated", "header too long", "header of a gigabyte", "not json", "offsets outside the file", "pickle"],
)
def test_damaged_file_is_one_sentence(kind: str, tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    ace.save_directions(tiny_directions("llama"), good)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(damaged(kind, good))
    with pytest.raises(ace.EngineError, match="damaged"):
        store.load_directions(bad)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "mean_harmful"}, "damaged"),
        (lambda t: {**t, "mean_harmful": t["mean_harmful"][:2]}, "same|shape"),
        (lambda t: {**t, "mean_harmful": t["mean_harmful"] * float("nan")}, "not finite"),
        (lambda t: {**t, "mean_harmful": t["mean_harmless"]}, "means are equal"),
        (lambda t: {**t, "heldout_harmful": t["heldout_harmful"][:1]}, "Held-out"),
    ],
)
def test_foreign_tensors_are_refused(change, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    ace.save_directions(tiny_directions("llama"), path)
    save_file({k: v.clone() for k, v in change(load_file(path)).items()}, path, {"recommended_layer": "1"})
    with pytest.raises(ace.EngineError, match=sentence):
        store.load_directions(path)


def test_missing_and_oversized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ace.EngineError, match="no vectors file"):
        store.load_directions(tmp_path / "none.safetensors")
    path = tmp_path / "v.safetensors"
    ace.save_directions(tiny_directions("llama"), path)
    monkeypatch.setattr(store, "MAX_VECTOR_BYTES", 10)
    with pytest.raises(ace.EngineError, match="larger than"):
        store.load_directions(path)


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ace.EngineError, match="could not be written"):
        ace.save_directions(tiny_directions("llama"), blocked / "v.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("model_id", ["owner/model", "../../etc/passwd", "a b:c", "..", "/absolute"])
def test_file_names_stay_in_their_folder(model_id: str, tmp_path: Path) -> None:
    path = store.vectors_path(model_id, tmp_path)
    assert path.parent == tmp_path and path.suffix == ".safetensors"


def test_recommended_layer_must_exist() -> None:
    with pytest.raises(ace.EngineError, match="outside the model"):
        replace(tiny_directions("llama"), recommended_layer=4)
