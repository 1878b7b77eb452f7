"""ZeroGPU: the decorated call runs in a forked process, and nothing but bytes crosses."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_directions, tiny_model

import ace_core as ace
from ace_core.errors import EngineError
from ace_core.generation import MAX_ROWS, Row, Step
from ace_core.host import Limits, ModelHost
from ace_core.runs import Run, RunSettings
from ace_core.scheduling.outlet import messages
from ace_core.scheduling.streams import Prepared
from ace_core.zero_gpu import Call, ZeroGpuHost, create_host, on_zero_gpu
from families import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning")

METHODS = [ace.Baseline(), ace.Addition(1.0), ace.DirectionalAblation(), ace.ACE(0.0)]
PROMPT = "How do I pick a lock?"
FORK = multiprocessing.get_context("fork")


class Toast(Exception):
    """How `spaces` speaks to a visitor."""

    def __init__(self, title: str, message: str) -> None:
        super().__init__(message)
        self.title, self.message = title, message


@dataclass
class Spaces:
    """What Hugging Face's `spaces.GPU` does: a forked worker a call, arguments and yields pickled, a stop event."""

    durations: list[int] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    """Every yield, as unpickled here."""
    times: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    workers: list[multiprocessing.process.BaseProcess] = field(default_factory=list)
    refuse: Exception | None = None

    def GPU(self, task: Callable[..., Iterator[Any]], *, duration: Callable[..., int]) -> Callable[..., Iterator[Any]]:
        def call(*args: Any) -> Iterator[Any]:
            if self.refuse is not None:
                raise self.refuse
            self.durations.append(duration(*args))
            here, there = FORK.Pipe()
            stop = FORK.Event()
            worker = FORK.Process(target=work, args=(task, pickle.dumps(args), there, stop), daemon=True)
            worker.start()
            there.close()
            self.workers.append(worker)
            kind = "yield"
            try:
                while kind == "yield":
                    data = receive(here)
                    kind, value = pickle.loads(data)
                    if kind == "error":
                        raise Toast("ZeroGPU worker error", value)
                    if kind == "yield":
                        self.times.append(time.monotonic())
                        self.sizes.append(len(data))
                        self.sent.append(value)
                        yield value
            except GeneratorExit:  # the worker ends at its next yield, and so long this waits
                stop.set()
                while pickle.loads(receive(here))[0] == "yield":
                    pass
                raise
            except EOFError:
                raise Toast("ZeroGPU worker error", "GPU task aborted") from None
            finally:
                worker.join(60)
                here.close()

        return call


def receive(pipe: Connection) -> bytes:
    assert pipe.poll(120), "the worker is silent"
    return pipe.recv_bytes()


def work(task: Callable[..., Iterator[Any]], arguments: bytes, pipe: Connection, stop: Any) -> None:
    """Life of a worker, in the order in which `spaces` does it."""
    try:
        generator = task(*pickle.loads(arguments))
        for value in generator:
            if stop.is_set():
                generator.close()  # type: ignore[attr-defined]
                break
            pipe.send_bytes(pickle.dumps(("yield", value)))
        pipe.send_bytes(pickle.dumps(("end", None)))
    except BaseException as error:
        pipe.send_bytes(pickle.dumps(("error", repr(error))))
    finally:
        pipe.close()
        os._exit(0)


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spaces]:
    """A ZeroGPU Space without its GPU."""
    fake = Spaces()
    module = ModuleType("spaces")
    module.GPU = fake.GPU  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", module)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield fake
    for worker in fake.workers:
        worker.join(30)
        assert not worker.is_alive()


def adopted(host: ModelHost, family: str = "llama") -> ModelHost:
    host.adopt(tiny_model(family), tiny_directions(family))
    assert host.wait_ready(30).status == "ready"
    return host


@pytest.fixture
def zero(spaces: Spaces) -> Iterator[ModelHost]:
    host = adopted(create_host())
    assert isinstance(host, ZeroGpuHost)
    yield host
    host.close()
    assert not host.alive and not host.active


@pytest.fixture(scope="module")
def plain() -> Iterator[dict[str, ModelHost]]:
    """Hosts without a GPU call, by family."""
    hosts = {family: adopted(ModelHost(), family) for family in ("llama", "mamba")}
    yield hosts
    for host in hosts.values():
        host.close()


def ran(host: ModelHost, settings: RunSettings, methods: list[Any] = METHODS, **more: Any) -> Run:
    stream = host.compare(PROMPT, settings, methods, **more)
    for _ in stream:
        pass
    assert stream.builder is not None
    return stream.builder.snapshot()


def same(one: Run, other: Run) -> None:
    assert (one.model, one.prompt, one.prompt_tokens, one.settings) == (
        other.model, other.prompt, other.prompt_tokens, other.settings,
    )  # fmt: skip
    assert len(one.arms) == len(other.arms)
    for mine, theirs in zip(one.arms, other.arms, strict=True):
        for name in ("label", "method", "coefficient", "token_ids", "tokens", "text", "stop", "verdict"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert mine.before.dtype == theirs.before.dtype and mine.before.shape == theirs.before.shape
        np.testing.assert_allclose(mine.before, theirs.before, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(mine.after, theirs.after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.parametrize(
    "settings",
    [
        RunSettings(layer=1, max_new_tokens=24),
        RunSettings(layer=0, last=2, scope="window", token_scope="generated", max_new_tokens=9),
        RunSettings(layer=2, scope="all", temperature=0.9, top_p=0.9, top_k=20, seed=7, max_new_tokens=24),
    ],
)
def test_run_equals_that_of_a_host_that_does_not_fork(
    spaces: Spaces, plain: dict[str, ModelHost], family: str, settings: RunSettings
) -> None:
    host = adopted(create_host(), family)
    try:
        same(ran(host, settings), ran(plain[family], settings))
    finally:
        host.close()
    assert len(spaces.workers) == 1, "all arms are one call"


def test_the_comparison_of_runs_can_fail(zero: ModelHost, plain: dict[str, ModelHost]) -> None:
    with pytest.raises(AssertionError):
        same(
            ran(zero, RunSettings(layer=1, temperature=1.0, seed=1)),
            ran(plain["llama"], RunSettings(layer=1, temperature=1.0, seed=2)),
        )


def test_own_directions_cross(zero: ModelHost, plain: dict[str, ModelHost], spaces: Spaces) -> None:
    own = ace.fit_directions(tiny_model("llama"), ["Break it.", "Steal it."], ["Bake it.", "Grow it."])
    settings = RunSettings(layer=1, max_new_tokens=12)
    mine = ran(zero, settings, directions=own)
    same(mine, ran(plain["llama"], settings, directions=own))
    assert not np.allclose(mine.arms[3].before, ran(plain["llama"], settings).arms[3].before, atol=1e-3)


def test_what_crosses_is_plain_and_small(zero: ModelHost, spaces: Spaces) -> None:
    ran(zero, RunSettings(layer=1, max_new_tokens=40))
    assert sum(len(told) for told in spaces.sent) == 40
    assert not tensors(spaces.sent) and max(spaces.sizes) < 200_000
    model, own = tiny_model("llama"), tiny_directions("llama")
    arm = RunSettings(layer=1).arm(ace.ACE(0.0))
    rows = [Row(model.encode(PROMPT), arm)]
    prepared = Prepared(model, own, rows)
    crossing = pickle.loads(pickle.dumps(Call.of(prepared, None)))
    assert not tensors(crossing)
    again = crossing.steering(own)
    assert again is not own and torch.equal(again.mean_harmful, own.mean_harmful) and again.metadata == own.metadata
    assert Call.of(prepared, own).directions is None


def tensors(value: Any) -> list[Any]:
    """Tensors and modules anywhere in plain data."""
    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return [value]
    if isinstance(value, dict):
        return [found for part in value.values() for found in tensors(part)]
    if isinstance(value, (list, tuple)):
        return [found for part in value for found in tensors(part)]
    return [found for part in vars(value).values() for found in tensors(part)] if hasattr(value, "__dict__") else []


def test_cancel_ends_the_call_and_says_so(zero: ModelHost, spaces: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.02)
    stream = zero.compare(PROMPT, RunSettings(layer=1, max_new_tokens=500), METHODS)
    begun = time.monotonic()
    for step in stream:
        if step.index == 3:
            stream.cancel()
    assert stream.builder is not None
    run = stream.builder.snapshot()
    assert {arm.stop for arm in run.arms} == {"cancelled"} and 4 <= len(run.arms[0].token_ids) < 200
    assert time.monotonic() - begun < 20
    spaces.workers[0].join(20)
    assert not spaces.workers[0].is_alive() and not zero.active
    assert len(ran(zero, RunSettings(layer=1, max_new_tokens=8)).arms[0].token_ids) == 8


def test_a_reader_that_leaves_ends_the_call(zero: ModelHost, spaces: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.02)
    stream = zero.compare(PROMPT, RunSettings(layer=1, max_new_tokens=500), METHODS)
    next(iter(stream))
    stream.close()
    wait_until(lambda: not zero.active)
    assert not zero.active and not spaces.workers[0].is_alive()


def test_closing_the_host_ends_its_calls(zero: ModelHost, spaces: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.02)
    stream = zero.compare(PROMPT, RunSettings(layer=1, max_new_tokens=500), METHODS)
    next(iter(stream))
    zero.close()
    with pytest.raises(EngineError, match="shut down"):
        list(stream)
    with pytest.raises(EngineError, match="shut down"):
        zero.compare(PROMPT, RunSettings(layer=1), METHODS)


def test_yields_are_close_together_though_the_model_is_slow(
    zero: ModelHost, spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, 1.0)
    ran(zero, RunSettings(layer=1, max_new_tokens=4))
    gaps = np.diff(spaces.times)
    assert spaces.times[-1] - spaces.times[0] > 2.5
    # now and then a busy machine lets a process wait
    assert np.quantile(gaps, 0.9) <= 0.3 and sum(1 for told in spaces.sent if told == ()) >= 8


def test_fast_steps_share_messages(zero: ModelHost, spaces: Spaces) -> None:
    ran(zero, RunSettings(layer=1, max_new_tokens=200))
    assert sum(len(told) for told in spaces.sent) == 200 and len(spaces.sent) < 100


def test_messages_end_with_the_error_and_lose_nothing() -> None:
    told: queue.Queue[Any] = queue.Queue()
    empty = np.empty((0, 0), np.float32)
    step = Step(0, (1,), ("a",), (empty,), (empty,), (None,))
    for item in (step, step, EngineError("Stop here.")):
        told.put(item)
    assert [type(m) if isinstance(m, EngineError) else len(m) for m in messages(told)] == [2, EngineError]


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every forward pass of the tiny model take so much longer, in forks to come as well."""
    network = tiny_model("llama").network
    forward = network.forward

    def late(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return forward(*args, **kwargs)

    monkeypatch.setattr(network, "forward", late)


def broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(tiny_model("llama").network, "forward", fail)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (EngineError("Use a smaller coefficient."), "^Use a smaller coefficient.$"),
        (RuntimeError("CUDA out of memory"), "too little memory"),
        (KeyError("x"), "unexpected KeyError"),
    ],
)
def test_errors_of_the_model_cross_as_sentences(
    zero: ModelHost, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    with monkeypatch.context() as patch:
        broken(patch, error)
        with pytest.raises(EngineError, match=sentence):
            list(zero.compare(PROMPT, RunSettings(layer=1), METHODS))
    assert len(ran(zero, RunSettings(layer=1, max_new_tokens=8)).arms[0].token_ids) == 8


def test_directions_of_another_model_are_refused_inside_the_call(zero: ModelHost) -> None:
    with pytest.raises(EngineError, match="vectors"):
        list(zero.compare(PROMPT, RunSettings(layer=1), METHODS, tiny_directions("gpt2")))


def test_refusals_of_spaces_are_told_in_its_words(zero: ModelHost, spaces: Spaces) -> None:
    spaces.refuse = Toast("ZeroGPU quota exceeded", "You have exceeded your GPU quota. ")
    with pytest.raises(EngineError, match=r"^ZeroGPU quota exceeded: You have exceeded your GPU quota\.$"):
        list(zero.compare(PROMPT, RunSettings(layer=1), METHODS))


def test_a_worker_that_dies_is_an_error_and_no_hang(zero: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model("llama").network, "forward", lambda *args, **kwargs: os._exit(9))
    with pytest.raises(EngineError, match="GPU task aborted"):
        list(zero.compare(PROMPT, RunSettings(layer=1), METHODS))


def test_calls_of_one_visitor_and_of_all_are_capped(spaces: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.05)
    host = adopted(create_host(Limits(waiting=3, visitor_running=1, visitor_waiting=1)))
    long = RunSettings(layer=1, max_new_tokens=500)
    streams = [host.compare(PROMPT, long, METHODS, visitor="me") for _ in range(2)]
    with pytest.raises(EngineError, match="2 of your runs"):
        host.compare(PROMPT, long, METHODS, visitor="me")
    streams.append(host.compare(PROMPT, long, METHODS, visitor="you"))
    with pytest.raises(EngineError, match="Too many people"):
        host.compare(PROMPT, long, METHODS, visitor="they")
    for stream in streams:
        stream.cancel()
    wait_until(lambda: not host.active)
    host.close()
    assert not host.active


def test_bad_requests_never_reach_spaces(zero: ModelHost, spaces: Spaces) -> None:
    for settings, methods in (
        (RunSettings(layer=99), METHODS),
        (RunSettings(layer=1, max_new_tokens=0), METHODS),
        (RunSettings(layer=1), []),
        (RunSettings(layer=1), [ace.Baseline()] * (MAX_ROWS + 1)),
    ):
        with pytest.raises(EngineError):
            zero.compare(PROMPT, settings, methods)
    assert not spaces.workers


def test_duration_grows_with_tokens_and_arms(zero: ModelHost, spaces: Spaces) -> None:
    for tokens, arms in ((8, 1), (8, 4), (500, 4)):
        stream = zero.compare(PROMPT, RunSettings(layer=1, max_new_tokens=tokens), METHODS[:arms])
        next(iter(stream))
        stream.cancel()
        wait_until(lambda: not zero.active)
    assert 10 <= spaces.durations[0] <= spaces.durations[1] < spaces.durations[2] < 60


def test_call_for_another_model_is_refused(zero: ModelHost) -> None:
    assert isinstance(zero, ZeroGpuHost)
    row = Row((1, 2), RunSettings(layer=1).arm(ace.Baseline()))
    (error,) = zero.answer(Call("another", (row,)))
    assert isinstance(error, EngineError) and "run it again" in str(error)


def test_long_tasks_and_a_second_model_are_refused(zero: ModelHost) -> None:
    with pytest.raises(EngineError, match="only for comparisons"):
        zero.work(lambda model, task: None)
    with pytest.raises(EngineError, match="one model"):
        zero.load("owner/other")


def test_precision_must_be_one_that_gpus_have(spaces: Spaces) -> None:
    host = create_host()
    for precision in ("fast", "float32"):
        with pytest.raises(EngineError, match="bfloat16 or float16"):
            host.load("embedded", precision=precision)  # type: ignore[arg-type]
    host.close()


def test_loading_returns_when_the_model_is_there(spaces: Spaces, tmp_path: Any) -> None:
    save_tiny(tmp_path)
    host = create_host()
    host.load(str(tmp_path))
    assert host.state.status == "ready" and host.state.info is not None and host.state.info.precision == "bfloat16"
    assert len(ran(host, RunSettings(layer=1, max_new_tokens=8)).arms[0].token_ids) == 8
    host.close()


def test_a_failed_load_is_told_and_may_be_repeated(spaces: Spaces) -> None:
    host = create_host()
    host.load("/nowhere/at/all")
    assert host.state.status == "failed"
    host.load("/nowhere/at/all")
    host.close()


def test_elsewhere_the_host_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert not on_zero_gpu()
    host = create_host()
    assert type(host) is ModelHost
    host.close()


def test_without_the_decorator_the_call_runs_here(monkeypatch: pytest.MonkeyPatch, plain: dict[str, ModelHost]) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    host = adopted(ZeroGpuHost())
    settings = RunSettings(layer=1, max_new_tokens=12)
    same(ran(host, settings), ran(plain["llama"], settings))
    host.close()


def test_a_space_without_the_package_says_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    monkeypatch.setitem(sys.modules, "spaces", None)
    before = threading.active_count()
    with pytest.raises(EngineError, match="requirements"):
        create_host()
    assert threading.active_count() == before


def wait_until(done: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
