"""The command line in its own process: JSON on stdout, sentences on stderr, exit codes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ace_core as ace
from ace_core.cli import main
from ace_core.exchange import read_vectors
from ace_core.store import load_directions
from families import save_tiny

NINTH = ("--harmful", "{bad}", "--harmless", "{good}", "--model", "{model}", "--block", "9")
ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace_core", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def lines(result: subprocess.CompletedProcess[str]) -> list[dict]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def inside(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command run in this process."""
    capsys.readouterr()
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        logging.disable(logging.NOTSET)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A local model folder, two prompt files and the vectors extracted from them."""
    base = tmp_path_factory.mktemp("cli")
    save_tiny(base / "tiny", "qwen2")
    (base / "bad.txt").write_text("\n".join(f"Do something bad, number {i}" for i in range(10)))
    rows = [{"prompt": f"Do something good, number {i}"} for i in range(10)]
    (base / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {
        "model": str(base / "tiny"),
        "bad": str(base / "bad.txt"),
        "good": str(base / "good.jsonl"),
        "vectors": str(base / "v.safetensors"),
    }
    result = run(
        "extract", "--model", files["model"], "--harmful", files["bad"], "--harmless", files["good"],
        "--out", files["vectors"], "--precision", "float32", "--json",
    )  # fmt: skip
    events = lines(result)
    assert [e["event"] for e in events] == ["block"] * 4 + ["done"]
    assert events[-1]["harmful_count"] == "6" and events[0]["auroc"] is not None
    assert events[-1]["variant"] == "mean_difference" and "SHA-256" in events[-1]["split_rule"]
    return files


def test_compare_streams_steps_then_one_object_an_arm(tiny: dict[str, str]) -> None:
    arms = ["baseline", "addition:1.0", "ablation", "ace:0.0"]
    options = [o for arm in arms for o in ("--arm", arm)]
    events = lines(
        run(
            "compare",
            "Hello there",
            "--model",
            tiny["model"],
            "--vectors",
            tiny["vectors"],
            "--layer",
            "2",
            "--scope",
            "one",
            "--tokens",
            "all",
            "--max-new-tokens",
            "5",
            "--temperature",
            "0",
            "--seed",
            "0",
            "--precision",
            "float32",
            "--json",
            *options,
        )
    )
    steps = [e for e in events if e["event"] == "step"]
    finals = [e for e in events if e["event"] == "arm"]
    assert events == steps + finals
    assert [f["arm"] for f in finals] == arms
    for row, final in enumerate(finals):
        assert final["text"] == "".join(step["text"][row] for step in steps)
        assert final["tokens"] == [s["tokens"][row] for s in steps if s["tokens"][row] is not None]
        assert final["stop"] in ("length", "end") and isinstance(final["refused"], bool)
    assert all(abs(c) < 1e-3 for c in finals[3]["coordinates"]["after"][2])
    assert finals[0]["coordinates"]["before"] == finals[0]["coordinates"]["after"]


def test_the_reference_point_of_ace_is_a_setting_of_a_run(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--model", tiny["model"], "--vectors", tiny["vectors"], "--precision", "float32", "--layer", "2"]
    wanted = ["--arm", "ablation", "--arm", "ace:0", "--arm", "ace:0@harmless", "--max-new-tokens", "4"]
    saved = tmp_path / "run.json"
    status, *_ = inside(capsys, "compare", "Hi", *place, *wanted[:4], "--reference", "origin", "--save", str(saved))
    run = json.loads(saved.read_text("utf-8"))
    assert status == 0 and run["settings"]["reference"] == "origin"
    # ACE at 0 from the origin is directional ablation
    assert run["arms"][0]["after"] == run["arms"][1]["after"] and run["arms"][0]["text"] == run["arms"][1]["text"]
    status, text, _ = inside(capsys, "compare", "Hi", *place, *wanted, "--reference", "origin", "--json")
    arms = [json.loads(line) for line in text.splitlines()][-3:]
    assert "from the origin" in arms[1]["label"] and "from" not in arms[2]["label"], "an arm's own reference wins"
    assert arms[0]["coordinates"]["after"] == arms[1]["coordinates"]["after"] != arms[2]["coordinates"]["after"]
    for reference, sentence in (("nowhere", "Unknown reference point"), ("third", "no third set's mean")):
        status, _, said = inside(capsys, "compare", "Hi", *place, *wanted, "--reference", reference)
        assert status == 2 and sentence in said


def test_plain_output_is_for_reading(tiny: dict[str, str]) -> None:
    result = run(
        "compare", "Hello", "--model", tiny["model"], "--vectors", tiny["vectors"], "--max-new-tokens", "3",
        "--arm", "ace:0.5",
    )  # fmt: skip
    assert result.returncode == 0 and "ACE, α = 0.5" in result.stdout and not result.stdout.startswith("{")


def test_check_reports_every_row(tiny: dict[str, str]) -> None:
    options = ("--model", tiny["model"], "--vectors", tiny["vectors"], "--precision", "float32", "--json")
    rows = lines(run("check", *options))
    assert len(rows) >= 8 and all(row["passed"] and row["measured"] <= row["bound"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "", "--model", "{model}"], "prompt is empty"),
        (["compare", "x" * 5000, "--model", "{model}"], "shorten it"),
        (["compare", "hi", "--model", "/nowhere/x"], "no model folder"),
        (["compare", "hi", "--model", "{model}", "--vectors", "none.safetensors"], "no vectors file"),
        (["compare", "hi", "--model", "{model}", "--vectors", "{bad}"], "not a vectors file"),
        (["compare", "hi", "--model", "{model}", "--vectors", "{vectors}", "--layer", "99"], "out of range"),
        (["compare", "hi", "--model", "{model}", "--vectors", "{vectors}", "--scope", "some"], "Unknown layer scope"),
        (["compare", "hi", "--arm", "ace:nan"], "out of range"),
        (["compare", "hi", "--arm", "magic"], "Unknown method"),
        (["compare", "hi", "--layer", "two"], "--layer"),
        (["compare"], "Missing argument"),
        (["frobnicate"], "frobnicate"),
        (["extract", "--harmful", "{bad}", "--harmless", "{good}", "--out", "v.bin"], "must end in"),
        (["extract", "--harmful", "none.txt", "--harmless", "{good}", "--out", "v.safetensors"], "none.txt"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(tiny: dict[str, str], arguments: list[str], sentence: str) -> None:
    result = run(*(a.format(**tiny) for a in arguments))
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""


def options(tiny: dict[str, str], *more: str) -> list[str]:
    shared = ["--model", tiny["model"], "--precision", "float32", "--harmful", tiny["bad"], "--harmless", tiny["good"]]
    return [*shared, *more]


def test_extract_takes_variant_position_site_and_seed(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    chosen = ["--variant", "trimmed-mean", "--position", "mean", "--site", "input", "--seed", "4", "--out", str(out)]
    status, text, said = inside(capsys, "extract", *options(tiny, *chosen, "--reference", tiny["good"], "--json"))
    assert status == 0 and "prompts" in said
    done = [json.loads(line) for line in text.splitlines()][-1]
    fitted = load_directions(out)
    assert done["variant"] == fitted.variant == "trimmed_mean" and fitted.site == "input"
    assert "mean" in done["position"] and done["seed"] == "4" and done["reference_count"] == "10"
    # another seed splits the sets anew
    plain = load_directions(tiny["vectors"])
    assert fitted.metadata["harmful_sha256"] != plain.metadata["harmful_sha256"]


def test_extract_from_a_builtin_set_and_one_split(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Bad {i}", "split": "mine" if i < 6 else "other"} for i in range(9)]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(map(json.dumps, rows)))
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(json.dumps({"prompt": f"Good {i}", "split": "mine"}) for i in range(6)))
    out = tmp_path / "v.safetensors"
    sets = ["--harmful", str(mine), "--harmless", str(good), "--split", "mine"]
    status, text, _ = inside(
        capsys, "extract", "--model", tiny["model"], "--precision", "float32", "--out", out, *sets, "--json"
    )
    done = json.loads(text.splitlines()[-1])
    assert status == 0 and done["harmful_count"] == "5" and done["harmless_count"] == "5"


def test_select_prints_one_object_a_candidate_and_the_recommendation(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chosen.safetensors"
    arguments = options(tiny, "--vectors", tiny["vectors"], "--part", "all", "--limit", "4")
    status, text, said = inside(capsys, "select", *arguments, "--out", str(out), "--json")
    events = [json.loads(line) for line in text.splitlines()]
    assert status == 0 and "refuses none" in said
    assert [e["event"] for e in events] == ["candidate"] * 4 + ["recommendation"]
    final = events[-1]
    assert [e["block"] for e in events[:-1] if not e["reason"]] == [final["recommended"]]
    assert final["criterion"] == "cosmic" and final["baseline_harmful"] is None and final["tokens"]["ids"] == []
    assert set(events[0]["effects"]) == {"ace", "ablation"} and events[0]["effects"]["ace"]["bypass"] is None
    assert load_directions(out).recommended_layer == final["recommended"]
    status, text, _ = inside(capsys, "select", *arguments, "--block", "1", "--block", "2", "--last", "0", "--kl", "99")
    assert status == 0 and "recommended" in text and "Block" in text and not text.startswith("{")


def test_inspect_shows_blocks_and_achieved_coordinates(
    tiny: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(tiny, "--vectors", tiny["vectors"], "--limit", "2", "--block", "2", "--coefficient", "0.5")
    status, text, _ = inside(capsys, "inspect", *arguments, "--json")
    events = [json.loads(line) for line in text.splitlines()]
    assert status == 0 and [e["event"] for e in events] == ["block"] * 4 + ["achieved"] * 2
    assert [e["block"] for e in events if e.get("recommended")] == [load_directions(tiny["vectors"]).recommended_layer]
    assert all(abs(e["achieved"] - 0.5) < 1e-3 and e["block"] == 2 for e in events[4:])
    status, text, _ = inside(capsys, "inspect", *arguments)
    assert status == 0 and "class gap" in text and "+0.5000" in text


def test_inspect_shows_two_directions_side_by_side(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "instruction.safetensors"
    inside(capsys, "extract", *options(tiny, "--position", "instruction", "--out", str(other)))
    short = ["--vectors", tiny["vectors"], "--limit", "1", "--block", "2", "--coefficient", "0"]
    status, text, _ = inside(capsys, "inspect", *options(tiny, *short, "--against", str(other), "--json"))
    found = [json.loads(line)["against"] for line in text.splitlines()[:4]]
    one, two = (load_directions(path).unit for path in (tiny["vectors"], other))
    assert status == 0 and found == pytest.approx((one * two).sum(-1).tolist(), abs=1e-5) and max(found) < 0.999
    status, text, _ = inside(capsys, "inspect", *options(tiny, *short, "--against", str(other)))
    assert status == 0 and "cosine with instruction.safetensors" in text
    status, text, said = inside(capsys, "inspect", *options(tiny, *short, "--against", "none.safetensors"))
    assert (status, text) == (2, "") and "no vectors file" in said


def test_export_writes_vector_and_card_and_says_what_it_cannot_carry(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.gguf"
    status, text, _ = inside(
        capsys, "export", "--vectors", tiny["vectors"], "--out", out, "--layer", "2", "--coefficient", "-0.5"
    )
    assert status == 0 and "activation addition only" in text
    vector = read_vectors(out).vectors[2]
    assert torch.allclose(vector, -0.5 * load_directions(tiny["vectors"]).direction[2])
    assert "Refusal directions" in (tmp_path / "v.card.md").read_text("utf-8")
    status, text, _ = inside(capsys, "export", "--vectors", tiny["vectors"], "--out", out, "--all-blocks", "--json")
    assert json.loads(text)["blocks"] == [1, 2, 3] and json.loads(text)["dropped"] == [0]


def test_import_describes_and_completes(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "v.gguf", tmp_path / "v.safetensors"
    inside(capsys, "export", "--vectors", tiny["vectors"], "--out", file, "--layer", "2")
    status, text, _ = inside(capsys, "import", file, "--json")
    gap = float(load_directions(tiny["vectors"]).gap[2])
    assert status == 0 and json.loads(text)["lengths"]["2"] == pytest.approx(gap, rel=1e-5)
    status, text, _ = inside(capsys, "import", file)
    assert status == 0 and "addition only" in text and not out.exists()
    status, text, _ = inside(capsys, "import", file, *options(tiny, "--out", str(out), "--json"))
    done = json.loads(text.splitlines()[-1])
    assert status == 0 and done["variant"] == "imported"
    completed = load_directions(out)
    assert torch.allclose(completed.unit[2], load_directions(tiny["vectors"]).unit[2], atol=1e-5)
    (answer,) = [
        step.after[0][2, -1]
        for step in ace.stream(ace.load_model(tiny["model"], precision="float32"), completed, "Hi", [ace.ACE(0.5)],
                               layer=2, max_new_tokens=1)
    ]  # fmt: skip
    assert answer == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["extract", "--harmful", "magic", "--out", "v.safetensors"], "'magic' is no prompt set"),
        (["extract", "--out", "v.safetensors", "--variant", "magic"], "magic"),
        (["extract", "--out", "v.safetensors", "--position", "first"], "Unknown position"),
        (["extract", "--harmful", "{bad}", "--harmless", "{bad}", "--out", "v.safetensors"], "in both sets"),
        (["extract", "--harmful", "{good}", "--split", "x", "--out", "v.safetensors"], "no prompt in the split 'x'"),
        (["select", "--method", "magic"], "No block can be chosen for 'magic'"),
        (["select", "--kl", "-1"], "KL limit"),
        (["select", "--last", "1"], "last blocks"),
        (["select", "--part", "some"], "Unknown part"),
        (["select", "--out", "v.bin"], "must end in"),
        (["select", "--limit", "0"], "--limit"),
        (["select", *NINTH], "candidate blocks"),
        (["inspect", *NINTH], "out of range"),
        (["inspect", "--vectors", "none.safetensors", "--model", "{model}"], "no vectors file"),
        (["export", "--out", "v.bin", "--vectors", "{vectors}"], "must end in .gguf"),
        (["export", "--out", "v.gguf", "--vectors", "{bad}"], "not a vectors file"),
        (["export", "--out", "v.gguf", "--vectors", "{vectors}", "--layer", "0"], "no place for block 0"),
        (["import", "none.pt"], "no file"),
        (["import", "{bad}"], "no vectors file"),
        (["import", "{bad}", "--model", "{model}"], "--out"),
    ],
)
def test_bad_input_of_the_lab_exits_2_with_one_sentence(
    tiny: dict[str, str],
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    if "{model}" in arguments and "--vectors" not in arguments and arguments[0] != "import":
        arguments = [*arguments, "--vectors", "{vectors}"]
    status, out, err = inside(capsys, *(a.format(**tiny) for a in arguments))
    assert status == 2 and out == ""
    assert sentence in err and "Traceback" not in err
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
