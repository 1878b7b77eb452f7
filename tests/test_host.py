"""The model thread: streams in turn, cancelling, slow readers, errors that leave it alive."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from conftest import tiny_directions, tiny_model

import ace_core as ace
from ace_core.host import Limits, ModelHost, RunStream
from ace_core.runs import Run, RunSettings
from ace_core.tasks import Task

METHODS = [ace.Baseline(), ace.Addition(1.0), ace.DirectionalAblation(), ace.ACE(0.0)]
SETTINGS = RunSettings(layer=1, max_new_tokens=12)


def started(limits: Limits | None = None) -> ModelHost:
    made = ModelHost(limits)
    made.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert made.wait_ready(30).status == "ready"
    return made


@pytest.fixture
def host():
    made = started()
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
    assert len(run.arms[0].token_ids) <= cancelled_at + Limits().queue_steps + 2
    assert sum(1 for _ in host.compare("Hello there", SETTINGS, METHODS)) == 12


def test_a_reader_that_never_reads_blocks_nobody() -> None:
    host = started(Limits(stalled_seconds=0.3))
    stream = host.compare("Hello there", RunSettings(layer=1, max_new_tokens=500), METHODS)
    assert sum(1 for _ in host.compare("Hi", SETTINGS, METHODS)) == 12
    deadline = time.monotonic() + 20
    while host.active and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not host.active
    with pytest.raises(ace.EngineError, match="nobody took"):
        list(stream)
    host.close()


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


def test_the_thread_outlives_a_model_that_cannot_be_used(host: ModelHost) -> None:
    host.adopt(None, tiny_directions("llama"))  # type: ignore[arg-type]
    deadline = time.monotonic() + 20
    while host.state.status != "failed" and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ace.EngineError, match="unexpected AttributeError"):
        host.compare("Hi", SETTINGS, METHODS)
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert host.wait_ready(30) and host.alive
    while host.state.status != "ready" and time.monotonic() < deadline:
        time.sleep(0.01)
    stream = host.compare("Hello there", SETTINGS, METHODS, visitor="somebody")
    while stream.wait(0.1) is not None:
        pass
    assert stream.position is None and sum(1 for _ in stream) == 12


def test_queue_is_bounded(host: ModelHost) -> None:
    long = RunSettings(layer=1, max_new_tokens=500)
    streams = []
    with pytest.raises(ace.EngineError, match="Too many people"):
        for _ in range(100):
            streams.append(host.compare("Hello there", long, METHODS))
    for stream in streams:
        stream.cancel()


def test_task_reports_and_lets_runs_pass(host: ModelHost) -> None:
    started, asked = threading.Event(), threading.Event()
    order: list[str] = []

    def compute(model: ace.ChatModel, task: Task[int]) -> int:
        assert model is tiny_model("llama")
        for piece in range(3):
            started.set()
            assert asked.wait(30)
            order.append(f"piece {piece}")
            task.report(f"Piece {piece}", piece / 3)
        return 7

    task = host.work(compute)
    assert started.wait(30)
    stream = host.compare("Hello there", SETTINGS, METHODS)
    asked.set()
    assert sum(1 for _ in stream) == 12  # it ended while the task went on, or the task would have to wait
    reports = list(task.reports())
    assert task.result(30) == 7 and reports[-1].done
    assert order == ["piece 0", "piece 1", "piece 2"]


def test_run_passes_between_two_pieces_of_a_task(host: ModelHost) -> None:
    done: list[str] = []
    streams: list[RunStream] = []

    def compute(model: ace.ChatModel, task: Task[None]) -> None:
        streams.append(host.compare("Hello there", SETTINGS, METHODS))
        task.report("Half", 0.5)
        builder = streams[0].builder
        done.append("finished" if builder is not None and not host.active else "unfinished")

    host.work(compute).result(60)
    assert done == ["finished"]
    assert sum(1 for _ in streams[0]) == 12


def test_task_can_be_stopped_and_may_fail(host: ModelHost) -> None:
    started = threading.Event()

    def endless(model: ace.ChatModel, task: Task[None]) -> None:
        while not task.cancelled():
            started.set()
            task.report("Going on")
        raise ace.EngineError("Stopped as asked.")

    task = host.work(endless)
    waiting = host.work(lambda model, task: 1)
    assert started.wait(30)
    with pytest.raises(ace.EngineError, match="not finished"):
        waiting.result(0.05)
    task.cancel()
    with pytest.raises(ace.EngineError, match="Stopped as asked"):
        task.result(30)
    assert waiting.result(30) == 1
    with pytest.raises(ace.EngineError, match="unexpected ZeroDivisionError"):
        host.work(lambda model, task: 1 // 0).result(30)
    assert sum(1 for _ in host.compare("Hello there", SETTINGS, METHODS)) == 12


def test_no_task_without_a_model_and_none_after_the_end(host: ModelHost) -> None:
    empty = ModelHost()
    with pytest.raises(ace.EngineError, match="No model is loaded"):
        empty.work(lambda model, task: 1)
    empty.close()
    started = threading.Event()

    def endless(model: ace.ChatModel, task: Task[None]) -> None:
        while not task.cancelled():
            started.set()
            task.report("Going on")

    running, waiting = host.work(endless), host.work(lambda model, task: 1)
    assert started.wait(30)
    host.close()
    running.result(30)
    with pytest.raises(ace.EngineError):
        waiting.result(30)
