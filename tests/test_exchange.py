"""Exchange of vectors with other tools: exact block numbers, hostile files, exports that others can read."""

from __future__ import annotations

import ctypes
import html
import io
import json
import pickle
import re
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ace_core as ace
from ace_core.default_model.adapter import REFUSING_ID
from ace_core.embedded import EMBEDDED_ID
from ace_core.exchange import GGUFExport, ImportedVectors, export_gguf, imported, read_vectors, vector_card
from ace_core.exchange.vectors import printable

WIDTH = 8


def rows(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(count, WIDTH)``; row k holds k + 1 throughout, so that a wrong row shows."""
    return torch.arange(1, count + 1, dtype=dtype).unsqueeze(1).repeat(1, WIDTH)


def numbers(vectors: ImportedVectors) -> dict[int, float]:
    """The number that fills each block's vector."""
    return {block: float(vector[0]) for block, vector in vectors.vectors.items()}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def refused(path: Path, match: str | None = None, **arguments: Any) -> None:
    """Reading fails with one sentence."""
    with pytest.raises(ace.EngineError, match=match) as caught:
        read_vectors(path, **arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "?")) and len(text) < 400


# refusal_direction


def test_mean_diffs_are_block_inputs(tmp_path: Path) -> None:
    # layer L holds L + 1 at position −1 and 10 more at position −2
    last = rows(4, torch.float64)
    path = saved(torch.stack([last + 10, last]), tmp_path / "mean_diffs.pt")
    found = read_vectors(path)
    assert found.format == "refusal_direction mean_diffs"
    assert numbers(found) == {0: 2, 1: 3, 2: 4}
    assert all(vector.dtype == torch.float32 and vector.shape == (WIDTH,) for vector in found.vectors.values())
    assert numbers(read_vectors(path, position=-2)) == numbers(read_vectors(path, position=0)) == {0: 12, 1: 13, 2: 14}
    assert found.width == WIDTH and any("layer 0" in note for note in found.notes)
    # as if layers were block outputs
    assert numbers(found) != {0: 1, 1: 2, 2: 3}
    refused(path, "2 positions", position=2)
    refused(path, "leave out the layer", layer=1)


def test_mean_diffs_as_their_tool_records_them_are_our_directions(tmp_path: Path) -> None:
    """Inputs of blocks at the last token, averaged in float64 by forward pre-hooks, on a real model."""
    model, ours = tiny_model("llama"), tiny_directions("llama")
    means = []
    for prompts in (HARMFUL, HARMLESS):
        mean = torch.zeros(1, len(model.blocks), model.width, dtype=torch.float64)

        def record(layer: int, inputs: Any, mean: Tensor = mean, count: int = len(prompts)) -> None:
            mean[:, layer] += inputs[0][:, [-1]].double().sum(dim=0) / count

        handles = [
            block.register_forward_pre_hook(lambda _, inputs, layer=layer, record=record: record(layer, inputs))
            for layer, block in enumerate(model.blocks)
        ]
        with torch.no_grad():
            for prompt in prompts:
                model.network(torch.tensor([model.encode(prompt)]))
        for handle in handles:
            handle.remove()
        means.append(mean)
    found = read_vectors(saved(means[0] - means[1], tmp_path / "mean_diffs.pt"))
    assert list(found.vectors) == list(range(ours.blocks - 1))
    for block, vector in found.vectors.items():
        assert torch.allclose(vector, ours.direction[block], atol=1e-5)
        assert not torch.allclose(vector, ours.direction[block + 1], atol=1e-3)


def test_direction_takes_its_layer_from_the_metadata(tmp_path: Path) -> None:
    # a view, saved with everything it is a view of, as refusal_direction does
    path = saved(torch.stack([rows(4, torch.float64)] * 2)[-1, 2], tmp_path / "direction.pt")
    refused(path, "does not say which layer")
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -2, "layer": 2}, indent=4))
    found = read_vectors(path)
    assert numbers(found) == {1: 3} and found.format == "refusal_direction direction"
    assert any("position -2" in note for note in found.notes)
    # a view would hold on to the whole file
    assert found.vectors[1].untyped_storage().nbytes() == 4 * WIDTH
    assert numbers(read_vectors(path, layer=3)) == {2: 3}
    refused(path, "embedding", layer=0)
    refused(path, "no model has", layer=-3)
    refused(path, "leave out the position", position=-1)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 9000, '{"layer": 2}', '{"pos": -1, "layer": true}', "\udcff"])
def test_direction_with_bad_metadata(text: str, tmp_path: Path) -> None:
    path = saved(rows(1)[0], tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(path, "give the layer")
    assert numbers(read_vectors(path, layer=1)) == {0: 1}


# steering-vectors


@pytest.fixture
def steering_vector(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The library's dataclass under its own name, gone again before anything is read."""

    @dataclass
    class SteeringVector:
        layer_activations: dict[int, Tensor]
        layer_type: str = "decoder_block"

    def save(path: Path, *fields: Any) -> Path:
        SteeringVector.__module__, SteeringVector.__qualname__ = "steering_vectors.steering_vector", "SteeringVector"
        package, module = types.ModuleType("steering_vectors"), types.ModuleType("steering_vectors.steering_vector")
        vars(module)["SteeringVector"] = SteeringVector
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "steering_vectors", package)
            patch.setitem(sys.modules, "steering_vectors.steering_vector", module)
            return saved(SteeringVector(*fields), path)

    return save


def test_steering_vector_object(steering_vector: Callable[..., Path], tmp_path: Path) -> None:
    values = rows(2)
    path = steering_vector(tmp_path / "vector.bin", {7: values[1], 3: values[0]})
    allowed = set(torch.serialization.get_safe_globals())
    found = read_vectors(path)
    assert numbers(found) == {3: 1, 7: 2} and list(found.vectors) == [3, 7]
    assert found.format == "steering-vectors SteeringVector"
    assert set(torch.serialization.get_safe_globals()) == allowed
    refused(steering_vector(tmp_path / "mlp.pt", {3: values[0]}, "mlp"), "'mlp'")
    refused(steering_vector(tmp_path / "none.pt", None), "no dictionary")
    refused(path, "leave out the layer", layer=3)


def test_the_library_itself(tmp_path: Path) -> None:
    library = pytest.importorskip("steering_vectors")
    vector = library.SteeringVector({4: rows(2)[1]}, "decoder_block")
    assert numbers(read_vectors(saved(vector, tmp_path / "v.pt"))) == {4: 2}
    assert numbers(read_vectors(saved(vector.layer_activations, tmp_path / "l.pt"))) == {4: 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_layer_activations(dtype: torch.dtype, tmp_path: Path) -> None:
    values = rows(3, dtype)
    for content in ({0: values[0], 2: values[2]}, OrderedDict({2: values[2].reshape(1, 1, -1), 0: values[0]})):
        found = read_vectors(saved(content, tmp_path / "v.pt"))
        assert numbers(found) == {0: 1, 2: 3} and found.format == "steering-vectors layer_activations"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "no dictionary"),
        ([torch.ones(3)], "another kind"),
        ("text", "no dictionary"),
        ({"a": torch.ones(3)}, "number its layers"),
        ({-1: torch.ones(3)}, "number its layers"),
        ({True: torch.ones(3)}, "number its layers"),
        ({10**30: torch.ones(3)}, "no model has"),
        ({1: "text"}, "floating point"),
        ({1: torch.ones(3, dtype=torch.float32), 2: torch.ones(4)}, "differ in size"),
        ({1: torch.ones(6), 2: torch.ones(6)[:3]}, "differ in length"),
        ({1: torch.ones(2, 3)}, "2×3"),
        ({1: torch.tensor(1.0)}, "without dimensions"),
        ({1: torch.ones(0)}, "floating point"),
        ({1: torch.tensor([1.0, float("nan")])}, "not finite"),
        ({1: torch.tensor([1.0, float("-inf")])}, "not finite"),
        ({1: torch.tensor([1e300], dtype=torch.float64)}, "not finite"),
        ({1: torch.zeros(3)}, "no vector that steers"),
        ({1: torch.ones(3, dtype=torch.int64)}, "another kind"),
        ({1: torch.ones(3, dtype=torch.complex64)}, "another kind"),
        ({1: torch.ones(3).to_sparse()}, "another kind"),
        (torch.ones(2, 3), "2×3"),
        (torch.ones(2, 3, 0), "floating point"),
        (torch.nn.Linear(2, 2), "another kind"),
        (torch.nn.Linear(2, 2).state_dict(), "differ in size"),
        (np.ones(3), "another kind"),
    ],
)
def test_wrong_content_is_one_sentence(content: Any, sentence: str, tmp_path: Path) -> None:
    path = saved(content, tmp_path / "v.pt")
    (tmp_path / "direction_metadata.json").write_text('{"pos": -1, "layer": 1}')
    refused(path, sentence)


def test_as_many_vectors_as_allowed(tmp_path: Path) -> None:
    content = {layer: torch.ones(2) for layer in range(10_000)}
    assert len(read_vectors(saved(content, tmp_path / "v.pt")).vectors) == 10_000


def test_zero_vectors_are_dropped_with_a_note(tmp_path: Path) -> None:
    found = read_vectors(saved({0: torch.zeros(3), 1: torch.ones(3)}, tmp_path / "v.pt"))
    assert list(found.vectors) == [1] and any("block 0" in note for note in found.notes)


# hostile files of torch.save


class Bomb:
    """Runs something when unpickled in the ordinary way."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def bombs(mark: Path) -> list[Bomb]:
    import os
    import subprocess

    return [
        Bomb(os.system, f"echo > {mark}"),
        Bomb(exec, f"open({str(mark)!r}, 'w').close()"),
        Bomb(eval, f"open({str(mark)!r}, 'w').close()"),
        Bomb(open, str(mark), "w"),
        Bomb(subprocess.check_call, ["touch", str(mark)]),
        Bomb(bytearray, 2**40),
    ]


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("form", ["archive", "archive, protocol 4", "in a dict", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_does_not_run(form: str, which: int, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "v.pt"
    bomb = bombs(mark)[which]
    if form == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif form == "legacy":
        torch.save(bomb, path, _use_new_zipfile_serialization=False)
    elif form == "in a dict":
        torch.save({1: torch.ones(3), 2: bomb}, path)
    else:
        torch.save(bomb, path, pickle_protocol=4 if "4" in form else 2)
    refused(path, "code" if form != "legacy" else "pickle")
    assert not mark.exists()


def test_the_bombs_are_real(tmp_path: Path) -> None:
    """Negative control: without the refusal the code runs."""
    for bomb in bombs(tmp_path / "mark")[:5]:
        path = saved(bomb, tmp_path / "v.pt")
        try:
            opened = torch.load(path, weights_only=False)
        finally:
            assert (tmp_path / "mark").exists()
            (tmp_path / "mark").unlink()
        if isinstance(opened, io.IOBase):
            opened.close()


def repacked(
    content: Any,
    path: Path,
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
    compression: int = zipfile.ZIP_STORED,
    extra: dict[str, bytes] | None = None,
) -> Path:
    """A file of ``torch.save`` with its records changed."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
        for name, data in (extra or {}).items():
            new.writestr(f"archive/{name}", data)
    return path


def with_pickle(code: bytes, path: Path) -> Path:
    return repacked({1: torch.ones(3)}, path, lambda name, data: code if name == "data.pkl" else data)


def test_repacking_alone_changes_nothing(tmp_path: Path) -> None:
    assert numbers(read_vectors(repacked({1: rows(1)[0]}, tmp_path / "v.pt"))) == {1: 1}


def test_claims_larger_than_the_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = torch.arange(576.0)

    def claim(name: str, data: bytes) -> bytes:
        """2²⁸ elements in the storage, where there are 576; the shape stays."""
        assert name != "data.pkl" or data.count(b"M@\x02") == 2
        return data.replace(b"M@\x02", b"J\x00\x00\x00\x10", 1)

    refused(repacked({1: vector}, tmp_path / "storage.pt", claim), "damaged|claim more")
    refused(
        repacked({1: vector}, tmp_path / "both.pt", lambda n, d: d.replace(b"M@\x02", b"J\x00\x00\x00\x10")),
        "damaged|claim more",
    )
    # before 2.10 PyTorch takes the claim on trust
    path = saved({1: vector}, tmp_path / "good.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: {1: torch.zeros(10_000)[:576]})
    refused(path, "claim more")


def test_tensors_that_expand_or_overlap_are_refused(tmp_path: Path) -> None:
    refused(saved({1: torch.ones(1).expand(10**9)}, tmp_path / "expand.pt"), "claim more")
    whole = torch.ones(1000)
    refused(saved({i: whole for i in range(50)}, tmp_path / "overlap.pt"), "claim more")
    assert len(read_vectors(saved(dict(enumerate(rows(50))), tmp_path / "rows.pt")).vectors) == 50


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02N.",
        b"\x80\x02h\x05.",
        b"\x80\x02r\xff\xff\xff\x7fN.",
        b"\x80\x02X\xff\xff\xff\xffab.",
        b"\x80\x02\x8a\xffa",
        b"\x80\x02cos\nsystem\n",
        b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
        b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
        b"\x80\x02K\x01" + b"q\x00h\x00K\x01\x86" * 200_000 + b".",
        b"\x80\x02" + b"(" * 1_000_000 + b"t" * 1_000_000 + b".",
        b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        b"\x80\x02" + b"N0" * 2_000_000 + b".",
        b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x07\x00\x00\x00../../0X\x03\x00\x00\x00cpuK\x03tQ.",
        b"\x80\x02csteering_vectors.steering_vector\nSteeringVector\n)\x81K\x01b.",
        b"\x80\x02csteering_vectors.steering_vector\nSteeringVector\n.",
    ],
    ids=map(str, range(19)),
)
def test_made_up_pickles(code: bytes, tmp_path: Path) -> None:
    refused(with_pickle(code, tmp_path / "v.pt"))


def test_hostile_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {1: torch.zeros(1_000_000)}
    refused(repacked(big, tmp_path / "compressed.pt", compression=zipfile.ZIP_DEFLATED), "damaged")
    refused(repacked(big, tmp_path / "script.pt", extra={"constants.pkl": b""}), "damaged")
    refused(repacked(big, tmp_path / "big-endian.pt", lambda n, d: b"big" if n == "byteorder" else d), "big-endian")
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = repacked(big, tmp_path / "twice.pt", extra={"data/0": b"0"})
    refused(path, "damaged")
    np.savez(tmp_path / "numpy.npz", np.ones(3))
    refused(tmp_path / "numpy.npz", "damaged")
    monkeypatch.setattr("ace_core.exchange.torch_archive.MAX_ENTRIES", 3)
    refused(saved(dict(enumerate(rows(4))), tmp_path / "many.pt"), "more than 3 tensors")
    many = saved({i: row.clone() for i, row in enumerate(rows(120))}, tmp_path / "records.pt")
    refused(many, "more than 3 records")


# GGUF


def gguf_file(
    path: Path,
    directions: dict[str, np.ndarray],
    kind: str = "controlvector",
    count: str = "int32",
    extra: Callable[[GGUFWriter], object] = lambda writer: None,
) -> Path:
    """As repeng's ``export_gguf`` (``count="uint32"``) and llama.cpp's cvector-generator write it, field by field."""
    writer = GGUFWriter(path, kind)
    writer.add_string(f"{kind}.model_hint", "llama")
    if count:
        getattr(writer, f"add_{count}")(f"{kind}.layer_count", len(directions))
    extra(writer)
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def filled(*levels: float) -> dict[str, np.ndarray]:
    """``direction.N`` filled with N."""
    return {f"direction.{level}": np.full(WIDTH, level, np.float32) for level in levels}


def test_gguf_number_is_the_block(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "v.txt", filled(3, 1, 2), count="")
    found = read_vectors(path)
    assert numbers(found) == {1: 1, 2: 2, 3: 3} and found.format == "GGUF control vector (llama.cpp)"
    assert any("'llama'" in note for note in found.notes)
    # as if direction.1 were block 0
    assert numbers(found) != {0: 1, 1: 2, 2: 3}
    refused(path, "leave out", layer=1)
    refused(path, "leave out", position=-1)


def test_repeng_and_generator_files_are_told_apart(tmp_path: Path) -> None:
    repeng = read_vectors(gguf_file(tmp_path / "repeng.gguf", filled(3, 2, 1), count="uint32"))
    assert repeng.format == "GGUF control vector (repeng)" and numbers(repeng) == {1: 1, 2: 2, 3: 3}
    generator = read_vectors(gguf_file(tmp_path / "generator.gguf", filled(1, 2)))
    assert generator.format == "GGUF control vector (llama.cpp cvector-generator)"
    assert numbers(generator) == {1: 1, 2: 2} and any("N − 1" in note for note in generator.notes)
    # block 0 exists for repeng only
    zero = {"direction.0": np.ones(WIDTH, np.float32)}
    assert numbers(read_vectors(gguf_file(tmp_path / "zero.gguf", zero, count="uint32"))) == {0: 1}
    refused(gguf_file(tmp_path / "zero2.gguf", zero), "direction.0")


def test_gguf_with_other_alignment_and_arrays(tmp_path: Path) -> None:
    def extra(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(128)
        writer.add_array("ace.strings", ["a", "b" * 5000])
        writer.add_array("ace.numbers", [1, 2, 3])
        writer.add_bool("ace.flag", True)
        writer.add_float64("ace.number", 1.5)

    assert numbers(read_vectors(gguf_file(tmp_path / "v.gguf", filled(1, 2), extra=extra))) == {1: 1, 2: 2}


@pytest.mark.parametrize(
    ("directions", "sentence"),
    [
        ({"blk.0.weight": np.ones(3, np.float32)}, "blk.0.weight"),
        ({"direction.x": np.ones(3, np.float32)}, "direction.x"),
        ({"direction.-1": np.ones(3, np.float32)}, "direction.-1"),
        ({"direction.١": np.ones(3, np.float32)}, "direction"),
        ({"direction.1": np.ones(3, np.float16)}, "32-bit"),
        ({"direction.1": np.ones(3, np.float64)}, "32-bit"),
        ({"direction.1": np.ones((2, 3), np.float32)}, "32-bit"),
        ({"direction.1": np.full(3, np.nan, np.float32)}, "not finite"),
        ({"direction.1": np.full(3, np.inf, np.float32)}, "not finite"),
        ({"direction.1": np.zeros(3, np.float32)}, "no vector"),
        ({"direction.1": np.ones(3, np.float32), "direction.2": np.ones(4, np.float32)}, "differ in length"),
        ({"direction.1": np.ones(3, np.float32), "direction.01": np.ones(3, np.float32)}, "damaged"),
        ({}, "no vector"),
    ],
)
def test_wrong_gguf_tensors(directions: dict[str, np.ndarray], sentence: str, tmp_path: Path) -> None:
    refused(gguf_file(tmp_path / "v.gguf", directions), sentence)


def test_gguf_of_a_model(tmp_path: Path) -> None:
    refused(gguf_file(tmp_path / "v.gguf", filled(1), kind="llama"), "'llama'")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")


def gguf_bytes(fields: list[bytes], tensors: list[bytes] | None = None, rest: bytes = b"", version: int = 3) -> bytes:
    body = b"".join([*fields, *(tensors or [])])
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors or []), len(fields))
    padding = b"\0" * (-len(head + body) % 32)
    return head + body + padding + rest


def tensor_info(name: str = "direction.1", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


DATA = struct.pack("<4f", 1, 1, 1, 1)


def test_hand_written_gguf_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(gguf_bytes([ARCHITECTURE], [tensor_info()], DATA))
    assert numbers(read_vectors(path)) == {1: 1}


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF",
        gguf_bytes([]),
        gguf_bytes([ARCHITECTURE], [tensor_info()], DATA, version=1),
        gguf_bytes([ARCHITECTURE], [tensor_info()], DATA, version=3 << 24),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1) + ARCHITECTURE,
        b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60) + ARCHITECTURE,
        b"GGUF" + struct.pack("<IQQ", 3, 9_000, 1) + ARCHITECTURE,
        gguf_bytes([ARCHITECTURE, text("a") + struct.pack("<IIQ", 9, 0, 2**60)]),
        gguf_bytes([ARCHITECTURE, text("a") + struct.pack("<IIQ", 9, 8, 2**60)]),
        gguf_bytes([ARCHITECTURE, text("a") + struct.pack("<IIQ", 9, 9, 1)]),
        gguf_bytes([ARCHITECTURE, text("a") + struct.pack("<IIQ", 9, 8, 200_000) + struct.pack("<Q", 0) * 200_000]),
        gguf_bytes([ARCHITECTURE, text("a") + struct.pack("<I", 99)]),
        gguf_bytes([ARCHITECTURE, struct.pack("<Q", 2**63) + b"a"]),
        gguf_bytes([ARCHITECTURE, text("general.alignment") + struct.pack("<II", 4, 0)], [tensor_info()], DATA),
        gguf_bytes([ARCHITECTURE, text("general.alignment") + struct.pack("<II", 4, 24)], [tensor_info()], DATA),
        gguf_bytes([ARCHITECTURE, text("general.alignment") + struct.pack("<II", 4, 2**31)], [tensor_info()], DATA),
        gguf_bytes([ARCHITECTURE, text("general.alignment") + struct.pack("<I", 8) + text("x")], [tensor_info()], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(shape=(2**62,))], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(shape=(0,))], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(shape=())], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(shape=(4,) * 9)], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(offset=2**64 - 32)], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(offset=32)], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(kind=2**31)], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(), tensor_info()], DATA),
        gguf_bytes([ARCHITECTURE], [tensor_info(f"direction.{n}", (4096,)) for n in range(1, 500)], DATA * 4096),
    ],
    ids=map(str, range(26)),
)
def test_hostile_gguf(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(data)
    refused(path)


# any bytes at all


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "damaged"),
        (b"PK", "damaged"),
        (b"PK\x05\x06" + b"\0" * 18, "damaged"),
        (b"text", "damaged"),
        (b"\0" * 100, "damaged"),
        (pickle.dumps({1: [1.0]}), "plain pickle"),
        (struct.pack("<Q", 2) + b"{}  ", "safetensors"),
    ],
)
def test_other_files(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "v.pt"
    path.write_bytes(data)
    refused(path, sentence)


def test_missing_and_oversized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "none.pt", "no file")
    refused(tmp_path, "no file")
    path = saved({1: torch.ones(3)}, tmp_path / "v.pt")
    monkeypatch.setattr(imported, "MAX_VECTOR_BYTES", 10)
    refused(path, "larger than")


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("good")
    (folder / "direction_metadata.json").write_text('{"pos": -1, "layer": 1}')
    paths = [
        saved({1: rows(1)[0], 2: rows(1)[0]}, folder / "a.pt"),
        saved(torch.stack([rows(3)] * 2), folder / "b.pt"),
        gguf_file(folder / "c.gguf", filled(1, 2)),
    ]
    return folder / "v.pt", [path.read_bytes() for path in paths]


def reads_or_refuses(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        found = read_vectors(path)
    except ace.EngineError as error:
        assert "\n" not in str(error)
    else:
        assert all(bool(torch.isfinite(vector).all()) for vector in found.vectors.values())


@given(data=st.data())
@settings(max_examples=300)
def test_damage_anywhere_is_noticed_or_harmless(good_files: tuple[Path, list[bytes]], data: st.DataObject) -> None:
    path, files = good_files
    good = data.draw(st.sampled_from(files))
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    reads_or_refuses(path, bytes(bad[: data.draw(st.sampled_from([len(bad), data.draw(st.integers(0, len(bad)))]))]))


@given(head=st.sampled_from([b"", b"PK", b"PK\x03\x04", b"GGUF", b"GGUF\x03\0\0\0", b"\x80\x02"]), tail=st.binary())
@settings(max_examples=200)
def test_random_bytes_are_refused(good_files: tuple[Path, list[bytes]], head: bytes, tail: bytes) -> None:
    reads_or_refuses(good_files[0], head + tail)


@given(code=st.binary(max_size=40))
@settings(max_examples=200)
def test_random_pickles_are_refused(good_files: tuple[Path, list[bytes]], code: bytes) -> None:
    path = good_files[0]
    reads_or_refuses(path, with_pickle(b"\x80\x02" + code + b".", path).read_bytes())


# export


def test_export_writes_the_recommended_block(tmp_path: Path) -> None:
    directions = tiny_directions("llama")
    layer = directions.recommended_layer
    assert layer > 0
    report = export_gguf(directions, tmp_path / "new" / "v.gguf", coefficient=-0.5)
    assert report == GGUFExport(tmp_path / "new" / "v.gguf", (layer,))
    reader = GGUFReader(report.path)
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{layer}"]
    (tensor,) = reader.tensors
    assert tensor.tensor_type.name == "F32" and list(tensor.shape) == [directions.width]
    expected = -0.5 * directions.direction
    assert np.array_equal(tensor.data, expected[layer].numpy())
    assert not np.array_equal(tensor.data, expected[layer - 1].numpy())
    contents = {name: field.contents() for name, field in reader.fields.items()}
    assert contents["general.architecture"] == "controlvector"
    assert contents["controlvector.layer_count"] == 1 and contents["controlvector.model_hint"] == directions.model_id
    for key in ("general.description", "ace.caution"):
        assert "addition only" in contents[key] and "ACE" in contents[key] and "ablation" in contents[key]
    assert contents["ace.coefficient"] == -0.5
    assert not list(tmp_path.rglob("*.tmp"))


def test_export_and_import_are_inverse(tmp_path: Path) -> None:
    directions = tiny_directions("llama")
    report = export_gguf(directions, tmp_path / "v.gguf", all_blocks=True)
    assert report.blocks == tuple(range(1, directions.blocks)) and report.dropped == (0,)
    found = read_vectors(report.path)
    assert found.format == "GGUF control vector (this project)" and tuple(found.vectors) == report.blocks
    assert all(torch.equal(found.vectors[block], directions.direction[block]) for block in report.blocks)
    again = export_gguf(directions, tmp_path / "w.gguf", all_blocks=True)
    assert again.path.read_bytes() == report.path.read_bytes()


def test_export_is_what_llama_cpp_takes(tmp_path: Path) -> None:
    """Its loader's rules, restated: rows N − 1 of a table, each added after block N."""
    directions = tiny_directions("llama")
    report = export_gguf(directions, tmp_path / "v.gguf", all_blocks=True)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(report.path).tensors}
    table = np.zeros((directions.blocks - 1, directions.width), np.float32)
    for il in range(1, directions.blocks):
        table[il - 1] = tensors[f"direction.{il}"]
    for il in range(1, directions.blocks):
        assert np.array_equal(table[il - 1], directions.direction[il].numpy())


def test_llama_cpp_reads_the_export(tmp_path: Path) -> None:
    """Its own reader, by the calls that its control-vector loader makes; needs ``xllamacpp``."""
    ggml = ctypes.CDLL(pytest.importorskip("xllamacpp.xllamacpp").__file__)

    class Options(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.POINTER(ctypes.c_void_p))]

    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    for name, result, arguments in (
        ("gguf_init_from_file", pointer, [text, Options]),
        ("gguf_get_n_tensors", number, [pointer]),
        ("gguf_get_tensor_name", text, [pointer, number]),
        ("gguf_find_key", number, [pointer, text]),
        ("gguf_get_val_str", text, [pointer, number]),
        ("ggml_get_tensor", pointer, [pointer, text]),
        ("ggml_nelements", number, [pointer]),
        ("ggml_n_dims", ctypes.c_int, [pointer]),
        ("ggml_get_data_f32", ctypes.POINTER(ctypes.c_float), [pointer]),
    ):
        getattr(ggml, name).restype, getattr(ggml, name).argtypes = result, arguments

    directions = tiny_directions("llama")
    report = export_gguf(directions, tmp_path / "v.gguf", all_blocks=True, coefficient=0.5)
    context = ctypes.c_void_p()
    file = ggml.gguf_init_from_file(str(report.path).encode(), Options(False, ctypes.pointer(context)))
    assert file and context
    assert ggml.gguf_get_val_str(file, ggml.gguf_find_key(file, b"general.architecture")) == b"controlvector"
    assert ggml.gguf_get_n_tensors(file) == directions.blocks - 1
    for index in range(directions.blocks - 1):
        name = ggml.gguf_get_tensor_name(file, index)
        tensor = ggml.ggml_get_tensor(context, name)
        assert ggml.ggml_n_dims(tensor) == 1 and ggml.ggml_nelements(tensor) == directions.width
        values = np.ctypeslib.as_array(ggml.ggml_get_data_f32(tensor), (directions.width,))
        block = int(name.decode().removeprefix("direction."))
        assert np.array_equal(values, 0.5 * directions.direction[block].numpy())
    report.path.write_bytes(report.path.read_bytes()[:100])
    assert not ggml.gguf_init_from_file(str(report.path).encode(), Options(True, None))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layer": 0}, "no place for block 0"),
        ({"layer": -1}, "blocks 0 to"),
        ({"layer": 99}, "blocks 0 to"),
        ({"layer": 1, "all_blocks": True}, "not both"),
        ({"coefficient": 0.0}, "other than 0"),
        ({"coefficient": float("nan")}, "other than 0"),
        ({"coefficient": 1e300}, "closer to 1"),
        ({"coefficient": 1e-60}, "closer to 1"),
    ],
)
def test_export_refuses(arguments: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ace.EngineError, match=sentence):
        export_gguf(tiny_directions("llama"), tmp_path / "v.gguf", **arguments)
    assert not list(tmp_path.iterdir())


def test_export_of_a_recommended_block_0_and_of_one_block(tmp_path: Path) -> None:
    directions = tiny_directions("llama")
    with pytest.raises(ace.EngineError, match="no place for block 0"):
        export_gguf(replace(directions, recommended_layer=0), tmp_path / "v.gguf")
    one = replace(
        directions,
        mean_harmless=directions.mean_harmless[:1],
        mean_harmful=directions.mean_harmful[:1],
        heldout_harmless=directions.heldout_harmless[:1],
        heldout_harmful=directions.heldout_harmful[:1],
        recommended_layer=0,
    )
    with pytest.raises(ace.EngineError, match="nothing to export"):
        export_gguf(one, tmp_path / "v.gguf", all_blocks=True)


def test_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ace.EngineError, match="could not be written"):
        export_gguf(tiny_directions("llama"), blocked / "v.gguf")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(ace.EngineError, match="No space left"):
        export_gguf(tiny_directions("llama"), tmp_path / "v.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# card


def test_card_says_what_is_in_the_file() -> None:
    directions = tiny_directions("llama")
    card = vector_card(replace(directions, metadata={**directions.metadata, "prompts_licence": "CC0-1.0"}))
    for part in (
        "# Refusal directions of llama",
        directions.metadata["template_sha256"],
        directions.metadata["harmful_sha256"],
        directions.metadata["torch"].split("+")[0],
        f"Block **{directions.recommended_layer}**",
        "CC0-1.0",
        'ace.load_model("llama")',
        "weights",
    ):
        assert part in card, part
    table = card.split("## All blocks")[1].strip().splitlines()
    assert len(table) == 2 + directions.blocks
    assert [line.split("|")[1].strip() for line in table[2:]] == [str(b) for b in range(directions.blocks)]
    assert all(line.count("|") == 6 for line in table)
    gap = float(table[2 + 1].split("|")[4])
    assert gap == pytest.approx(float(directions.gap[1]), rel=0.01)


def test_card_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = vector_card(tiny_directions("llama")).split("```python\n")[1].split("```")[0]
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ace, "load_model", lambda *a: calls.append(a) or "model")
    monkeypatch.setattr(ace, "load_directions", lambda *a: calls.append(a))
    exec(code, {})
    assert calls == [("llama",), ("model", "FILE.safetensors")]


@pytest.mark.parametrize(("model_id", "name"), [(REFUSING_ID, "embedded"), (EMBEDDED_ID, "embedded-base")])
def test_card_names_the_embedded_models_as_they_are_loaded(model_id: str, name: str) -> None:
    directions = tiny_directions("llama")
    assert f'load_model("{name}")' in vector_card(replace(directions, metadata={"model_id": model_id}))


def test_card_without_held_out_prompts_or_metadata() -> None:
    directions = tiny_directions("llama")
    none = torch.empty(directions.blocks, 0)
    card = vector_card(replace(directions, heldout_harmless=none, heldout_harmful=none, metadata={}))
    assert "nan" not in card and "AUROC –" in card and 'load_model("MODEL")' in card
    assert "| revision | – |" in card


NASTY = [
    "<script>alert(1)</script>",
    "a|b|c",
    "line\n\n# heading\n| x |",
    "[link](javascript:alert(1))",
    "![pic](https://example.org/x.png)",
    "`code` ```fence```",
    "**bold** _em_ ~~gone~~ $x$",
    "https://example.org www.example.org a@example.org",
    '"); import os; os.system("x") #',
    "\u202eevil\u200b\x00\x1b[31m",
    "&lt;b&gt; &#60;",
    "x" * 100_000,
    "{model} {0}",
    "\\",
]


@pytest.mark.parametrize("nasty", NASTY, ids=map(str, range(len(NASTY))))
def test_card_escapes_metadata(nasty: str) -> None:
    directions = tiny_directions("llama")
    keys = [*directions.metadata, "prompts_licence"]
    plain = vector_card(replace(directions, metadata={**dict.fromkeys(keys, "plain"), "model_id": "PLAIN ID"}))
    card = vector_card(replace(directions, metadata=dict.fromkeys(keys, nasty)))
    assert len(card) < len(plain) + 20 * 450
    lines = card.splitlines()
    assert len(lines) == len(plain.splitlines())
    assert [line.startswith("#") for line in lines] == [line.startswith("#") for line in plain.splitlines()]
    # what Markdown takes for marks
    live = re.sub(r"\\.", "", card)
    assert [line.count("|") for line in live.splitlines()] == [line.count("|") for line in plain.splitlines()]
    for mark in ("<", "\x00", "\x1b", "\u202e", "\u200b", "https:", "](", "www.", "[", "@", "$", "~", "_em"):
        assert mark not in live
    assert 'ace.load_model("MODEL")' in card or nasty.isalnum()
    assert card.count("```") == 2


def test_card_is_valid_markdown_for_a_real_parser() -> None:
    markdown = pytest.importorskip("markdown_it")
    directions = tiny_directions("llama")
    for nasty in NASTY:
        metadata = dict.fromkeys([*directions.metadata, "prompts_licence"], nasty)
        card = vector_card(replace(directions, metadata=metadata))
        page = markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
        for tag in ("<script", "<a ", "<img", "<del", "<b>"):
            assert tag not in page
        counts = {tag: page.count(f"<{tag}>") for tag in ("h1", "h2", "table", "em", "strong", "code", "pre")}
        assert counts == {"h1": 1, "h2": 3, "table": 2, "em": 1, "strong": 1, "code": 0, "pre": 1}
        (shown,) = re.findall(r"<td>model</td>\n<td>(.*?)</td>", page)
        assert html.unescape(shown).rstrip("…") == printable(nasty, 200)
