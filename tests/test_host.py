"""The model thread: streams in turn, cancelling, slow readers, errors that leave it alive."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from conftest import tiny_directions, tiny_model

import ace_core as ace
from ace_core import host as host_module
from ace_core.host import ModelHost
from ace_core.runs import Run, RunSettings

METHODS = [ace.Baseline(), ace.Addition(1.0), ace.DirectionalAblation(), ace.ACE(0.0)]
SETTINGS = RunSettings(layer=1, max_new_tokens=12)


@pytest.fixture
def host():
    made = ModelHost()
    made.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert made.wait_ready(30).status == "ready"
    yield made
    made.close()
    assert not made.alive


def alone(prompt: str, settings: RunSettings = SETTINGS) -> list[str]:
    steps = list(
        ace.stream(
            tiny_model("llama"), tiny_directions("llama"), prompt, METHODS, layer=settings.layer,
            max_new_tokens=settings.max_new_tokens,
        )
    )  # fmt: skip
    return ["".join(step.text[row] for step in steps) for row in range(len(METHODS))]


def test_run_equals_the_library_and_survives_json(host: ModelHost) -> None:
    stream = host.compare("How do I pick a lock?", SETTINGS, METHODS)
    count = sum(1 for _ in stream)
    assert count == 12 and stream.builder is not None
    run = stream.builder.snapshot()
    assert [arm.text for arm in run.arms] == alone("How do I pick a lock?")
    assert all("".join(arm.tokens) == arm.text for arm in run.arms)
    positions = len(run.prompt_tokens) + 12 - 1
    assert all(arm.before.shape == (4, positions) for arm in run.arms)
    again = Run.from_json(run.to_json(decimals=9))
    assert again.settings == run.settings and again.arms[3].tokens == run.arms[3].tokens
    assert abs(again.arms[3].after - run.arms[3].after).max() < 1e-6
    with pytest.raises(ace.EngineError, match="not a recorded run"):
        Run.from_json({"model": "x"})


def test_visitors_take_turns(host: ModelHost) -> None:
    prompts = ["Hello there", "Name three fruits", "Tell me a story"]
    streams = [host.compare(p, SETTINGS, METHODS) for p in prompts]
    texts: list[list[str]] = [[], [], []]

    def read(i: int) -> None:
        for _ in streams[i]:
            pass
        builder = streams[i].builder
        assert builder is not None
        texts[i] = [arm.text for arm in builder.snapshot().arms]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert texts == [alone(p) for p in prompts]


def test_cancel_stops_soon_and_the_next_run_works(host: ModelHost) -> None:
    long = RunSettings(layer=1, max_new_tokens=500)
    stream = host.compare("Hello there", long, METHODS)
    for seen, step in enumerate(stream):
        if seen == 2:
            stream.cancel()
            cancelled_at = step.index
    assert stream.builder is not None
    run = stream.builder.snapshot()
    assert {arm.stop for arm in run.arms} == {"cancelled"}
    # steps computed before the cancel may still be queued, but never more than the queue holds
    assert len(run.arms[0].token_ids) <= cancelled_at + host_module._QUEUE_STEPS + 2
    assert sum(1 for _ in host.compare("Hello there", SETTINGS, METHODS)) == 12


def test_a_reader_that_never_reads_blocks_nobody(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_ABANDONED_SECONDS", 0.3)
    host.compare("Hello there", RunSettings(layer=1, max_new_tokens=500), METHODS)
    assert sum(1 for _ in host.compare("Hi", SETTINGS, METHODS)) == 12
    deadline = time.monotonic() + 20
    while host._active and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not host._active


def test_exception_in_the_model_ends_one_run_only(host: ModelHost) -> None:
    model = tiny_model("llama")

    def explode(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    handle = model.blocks[2].register_forward_hook(explode)
    try:
        with pytest.raises(ace.EngineError, match="too little memory"):
            list(host.compare("Hello there", SETTINGS, METHODS))
    finally:
        handle.remove()
    assert not model.blocks[0]._forward_hooks
    assert sum(1 for _ in host.compare("Hello there", SETTINGS, METHODS)) == 12


def test_nan_logits_end_with_a_sentence(host: ModelHost) -> None:
    handle = tiny_model("llama").blocks[3].register_forward_hook(lambda m, a, out: torch.full_like(out, torch.nan))
    try:
        with pytest.raises(ace.EngineError, match="NaN"):
            list(host.compare("Hello there", SETTINGS, METHODS))
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("prompt", "settings", "methods", "sentence"),
    [
        ("", SETTINGS, METHODS, "prompt is empty"),
        ("x" * 100_000, SETTINGS, METHODS, "shorten"),
        ("Hi", RunSettings(layer=9), METHODS, "out of range"),
        ("Hi", RunSettings(layer=1, temperature=float("nan")), METHODS, "Temperature"),
        ("Hi", SETTINGS, [], "at least one arm"),
    ],
)
def test_bad_requests_are_refused_at_once(host: ModelHost, prompt, settings, methods, sentence: str) -> None:
    with pytest.raises(ace.EngineError, match=sentence):
        host.compare(prompt, settings, methods)


def test_no_model_yet_and_a_model_that_fails() -> None:
    made = ModelHost()
    with pytest.raises(ace.EngineError, match="No model"):
        made.compare("Hi", SETTINGS, METHODS)
    made.load("/nowhere/at/all")
    assert made.wait_ready(30).status == "failed"
    with pytest.raises(ace.EngineError, match="no model folder"):
        made.compare("Hi", SETTINGS, METHODS)
    made.close()


def test_queue_is_bounded(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    long = RunSettings(layer=1, max_new_tokens=500)
    streams = []
    with pytest.raises(ace.EngineError, match="Too many people"):
        for _ in range(100):
            streams.append(host.compare("Hello there", long, METHODS))
    for stream in streams:
        stream.cancel()
