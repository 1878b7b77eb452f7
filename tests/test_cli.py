"""The command line in its own process: JSON on stdout, sentences on stderr, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from families import save_tiny

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace_core", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def lines(result: subprocess.CompletedProcess[str]) -> list[dict]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


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
    assert events[-1]["harmful_count"] == "8" and events[0]["auroc"] is not None
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
