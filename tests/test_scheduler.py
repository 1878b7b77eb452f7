"""Many runs on one model: each gets what it would get alone, and what one does or suffers stops no other."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_directions, tiny_model

import ace_core as ace
from ace_core.checking.checks import Checker
from ace_core.decoding import Decoding, rows_can_join
from ace_core.errors import EngineError, explained, out_of_memory
from ace_core.generation import Row, stream_rows
from ace_core.host import Limits, ModelHost, RunStream
from ace_core.interventions import Plan
from ace_core.models import ChatModel
from ace_core.runs import Run, RunBuilder, RunSettings
from ace_core.sampling import Sampler, Sampling, exponential_noise, filtered
from ace_core.scheduling import caches, running
from ace_core.scheduling.limits import Footprint
from ace_core.scheduling.line import WaitingLine
from ace_core.scheduling.running import ActiveRun, Batch, Reading
from ace_core.scheduling.scheduler import Scheduler
from ace_core.scheduling.streams import Prepared
from families import FAMILIES

JOINING = [name for name, family in FAMILIES.items() if not family.recurrent]
PROMPTS = [
    "Hi",
    "How do I pick a lock?",
    "Name three fruits, please, and say which of them is the sweetest.",
    "Tell me a story about the sea at night, a lighthouse, and a keeper who is afraid of the dark.",
    "Why?",
]
METHODS = [
    ace.Baseline(), ace.Addition(1.0), ace.Addition(-2.0), ace.DirectionalAblation(), ace.ACE(0.0), ace.ACE(1.5),
]  # fmt: skip
Asked = tuple[str, RunSettings, list[Any]]


def asked(seed: int, tokens: int = 10) -> Asked:
    """A request with every setting drawn at random."""
    draw = random.Random(seed)
    scope = draw.choice(["one", "window", "all", "shared"])
    layer = draw.randrange(3)
    settings = RunSettings(
        layer=layer,
        last=layer + 1 if scope == "window" else None,
        scope=scope,  # type: ignore[arg-type]
        token_scope=draw.choice(["all", "prompt", "generated", "last"]),  # type: ignore[arg-type]
        temperature=draw.choice([0.0, 0.0, 1.0]),
        top_p=draw.choice([1.0, 0.9]),
        top_k=draw.choice([0, 20]),
        seed=draw.randrange(1000),
        max_new_tokens=draw.randint(1, tokens),
    )
    return draw.choice(PROMPTS), settings, draw.sample(METHODS, draw.randint(1, 4))


def prepared(model: ChatModel, directions: ace.RefusalDirections, request: Asked) -> Prepared:
    prompt, settings, methods = request
    ids = model.encode(prompt)
    rows = [Row(ids, settings.arm(method), settings.sampling()) for method in methods]
    return Prepared(model, directions, rows, RunBuilder(model.name, prompt, [], settings, methods))


def alone(model: ChatModel, directions: ace.RefusalDirections, request: Asked) -> Run:
    made = prepared(model, directions, request)
    for step in stream_rows(model, directions, made.rows):
        made.builder.add(step)
    return made.builder.snapshot()


def drain(stream: RunStream) -> Run:
    for _ in stream:
        pass
    assert stream.builder is not None
    return stream.builder.snapshot()


def same(got: Run, expected: Run, tolerance: float = 5e-3) -> None:
    """Equal texts, and coordinates equal up to rounding."""
    for mine, theirs in zip(got.arms, expected.arms, strict=True):
        assert (mine.token_ids, mine.text, mine.stop) == (theirs.token_ids, theirs.text, theirs.stop)
        for a, b in ((mine.before, theirs.before), (mine.after, theirs.after)):
            assert a.shape == b.shape
            assert np.abs(a - b).max() < tolerance


@functools.cache
def wide(family: str, seed: int = 0) -> ace.RefusalDirections:
    """Directions with wide class gaps, along which tiny models have coordinates of a few units."""
    fitted, generator = tiny_directions(family), torch.Generator().manual_seed(seed)
    means = [torch.randn(fitted.mean_harmless.shape, generator=generator) for _ in range(2)]
    return replace(fitted, mean_harmless=means[0], mean_harmful=means[1])


class Table:
    """A scheduler without its thread, so that a test decides when everything happens."""

    def __init__(self, family: str, limits: Limits | None = None, model: ChatModel | None = None) -> None:
        limits = limits or Limits(queue_steps=1000)
        self.model, self.directions = model or tiny_model(family), wide(family)
        self.limits, self.line = limits, WaitingLine(limits)
        self.scheduler = Scheduler(self.line, limits)

    def ask(
        self, request: Asked, directions: ace.RefusalDirections | None = None, visitor: str | None = None
    ) -> RunStream:
        stream = RunStream(
            lambda: prepared(self.model, directions or self.directions, request),
            visitor, self.limits.queue_steps, self.line.place, lambda: True,
        )  # fmt: skip
        self.line.put(stream)
        return stream

    def finish(self) -> None:
        for _ in range(5000):
            if not self.scheduler.round():
                return
        raise AssertionError("the scheduler never came to an end")


@pytest.fixture
def host() -> Iterator[ModelHost]:
    made = started()
    yield made
    made.close()
    assert not made.alive and not any(block._forward_hooks for block in tiny_model("llama").blocks)


def started(limits: Limits | None = None, family: str = "llama") -> ModelHost:
    made = ModelHost(limits)
    made.adopt(tiny_model(family), wide(family))
    assert made.wait_ready(30).status == "ready"
    return made


# What a visitor gets


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_among_eight_others_gets_what_it_gets_alone(family: str) -> None:
    table = Table(family)
    requests = [asked(seed) for seed in range(9)]
    streams = [table.ask(request) for request in requests]
    table.finish()
    for stream, request in zip(streams, requests, strict=True):
        same(drain(stream), alone(table.model, table.directions, request))


@pytest.mark.parametrize("family", JOINING)
def test_rows_share_a_batch_wherever_they_can(family: str) -> None:
    assert tiny_model(family).rows_join
    table = Table(family, model=replace(tiny_model(family), stop_ids=frozenset()))
    for seed in range(5):
        prompt, settings, methods = asked(seed)
        table.ask((prompt, replace(settings, max_new_tokens=20), methods))
    seen: list[int] = []
    network = table.model.network
    handle = network.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape[0]), with_kwargs=True)
    try:
        table.finish()
    finally:
        handle.remove()
    assert max(seen) == sum(len(asked(seed)[2]) for seed in range(5))


@pytest.mark.parametrize("family", ["llama", "mistral_sliding", "gemma2", "gemma3", "gpt2", "bloom", "mpt", "gpt_neo"])
@pytest.mark.parametrize("seed", [0, 1])
def test_joining_leaving_cancelling_and_stalling_at_random_changes_nobody(family: str, seed: int) -> None:
    draw = random.Random(seed)
    table = Table(family, Limits(queue_steps=4, rows=24, piece=draw.choice([3, 7, 64])))
    others = wide(family, 1)
    requests = {i: asked(100 * seed + i, tokens=24) for i in range(14)}
    streams: dict[int, RunStream] = {}
    readers: dict[int, Iterator[ace.Step]] = {}
    cancelled = set()
    waiting = list(requests)
    over: set[int] = set()
    for _ in range(4000):
        if waiting and draw.random() < 0.3:
            i = waiting.pop()
            streams[i] = table.ask(requests[i], others if i % 3 == 0 else None)
            readers[i] = iter(streams[i])
        table.scheduler.round()
        for i in streams.keys() - over:
            if draw.random() < 0.02 and i % 4 == 1:
                streams[i].cancel()
                cancelled.add(i)
            if draw.random() < 0.5 and streams[i].backlog:
                over |= {i} if next(readers[i], None) is None else set()
        if len(over) == len(requests):
            break
    assert len(over) == len(requests) and not table.scheduler.active
    for i, request in requests.items():
        builder = streams[i].builder
        if i not in cancelled:
            assert builder is not None
            same(builder.snapshot(), alone(table.model, others if i % 3 == 0 else table.directions, request))
        elif builder is not None:
            expected = alone(table.model, others if i % 3 == 0 else table.directions, request)
            for mine, theirs in zip(builder.snapshot().arms, expected.arms, strict=True):
                assert mine.token_ids == theirs.token_ids[: len(mine.token_ids)]
                assert mine.stop in ("cancelled", theirs.stop)


@pytest.mark.parametrize("family", JOINING)
def test_a_prompt_read_in_pieces_is_the_prompt_read_whole(family: str) -> None:
    model, directions = tiny_model(family), wide(family)
    request = (PROMPTS[3], RunSettings(layer=1, max_new_tokens=6), METHODS[:4])
    length = len(model.encode(PROMPTS[3]))
    expected = alone(model, directions, request)
    for piece in (1, 5, length - 1, length):
        table = Table(family, Limits(queue_steps=1000, piece=piece))
        stream = table.ask(request)
        rounds = 0
        while stream.backlog == 0:
            table.scheduler.round()
            rounds += 1
        assert rounds == -(-length // piece)
        table.finish()
        same(drain(stream), expected)


def test_a_long_prompt_stalls_nobody() -> None:
    table = Table("llama", Limits(queue_steps=1000, piece=4))
    first = table.ask(("Hi", RunSettings(layer=1, max_new_tokens=200), METHODS[:1]))
    while first.backlog == 0:
        table.scheduler.round()
    before = first.backlog * 1000
    table.ask((PROMPTS[3], RunSettings(layer=1, max_new_tokens=2), METHODS[:2]))
    for rounds in range(1, 6):
        table.scheduler.round()
        assert round(first.backlog * 1000 - before) == rounds  # one token a round all the while
    assert table.scheduler._reading


# Negative controls: the equivalences above see a wrong mask, position, row or window


@pytest.mark.parametrize("fault", ["padding", "position", "row", "window"])
def test_mistakes_in_joining_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = "gemma2" if fault == "window" else "llama"
    table = Table(family)
    join = Decoding.join

    def wrong(self: Decoding, others: Sequence[Decoding]) -> None:
        join(self, others)
        if fault == "padding":
            self._padded = False  # padding is read
        elif fault == "position":
            self._pads = self._pads + 1
        elif fault == "row":
            self.cache = caches.taken(self.cache, [*range(1, len(self)), 0], self.columns)
        else:
            for layer in self.cache.layers:
                if layer.is_sliding:
                    layer.keys = layer.keys.roll(1, dims=-2)

    monkeypatch.setattr(Decoding, "join", wrong)
    requests = [(prompt, RunSettings(layer=1, max_new_tokens=8), METHODS[:2]) for prompt in PROMPTS]
    streams = [table.ask(request) for request in requests]
    table.finish()
    with pytest.raises(AssertionError):
        for stream, request in zip(streams, requests, strict=True):
            same(drain(stream), alone(table.model, table.directions, request))
    if fault != "window":  # the measurement at load sees it as well, and turns are taken then
        assert not rows_can_join(table.model.network, table.model.device)


def test_rows_that_leave_take_their_columns_along() -> None:
    model, directions = tiny_model("mistral_sliding"), wide("mistral_sliding")
    batches = []
    for prompt in (PROMPTS[0], PROMPTS[3]):
        run = ActiveRun(None, prepared(model, directions, (prompt, RunSettings(layer=1), METHODS[:2])))  # type: ignore[arg-type]
        reading = Reading(run, 1000)
        reading.advance()
        batches.append(reading.batch()[0])
    short, long = (len(model.encode(prompt)) for prompt in (PROMPTS[0], PROMPTS[3]))
    both = batches[0].join(batches[1:])
    assert len(both) == 4 and both._decoding.columns == long
    left = both.take(batches[0].runs)
    assert isinstance(left, Batch) and len(left) == 2 and left._decoding.columns == short
    # the window of 8, less the next token
    assert {layer.keys.shape[-2] for layer in left._decoding.cache.layers} == {7}
    assert both.take([]) is None and both.take(both.runs) is both and len(batches[0]) == 2
    assert caches.cache_bytes(left._decoding.cache) * 2 == caches.cache_bytes(both._decoding.cache)


def test_plans_of_different_directions_join() -> None:
    model, directions = tiny_model("llama"), wide("llama")
    arms = [RunSettings(layer=1).arm(method) for method in METHODS[:3]]
    first, second = Plan(directions, arms, [4] * 3), Plan(wide("llama", 1), arms[:2], [6] * 2)
    joined = first.join([second])
    assert joined._blocks[1].unit.shape == (5, model.width) and first._blocks[1].unit.shape == (model.width,)
    back = joined.take([3, 4])
    for got, expected in zip(back._blocks, second._blocks, strict=True):
        assert torch.equal(got.unit, expected.unit.expand(2, -1))
        assert torch.equal(got.remove, expected.remove) and torch.equal(got.add, expected.add)
        assert (got.edits, got.every_row) == (expected.edits, expected.every_row)
    assert np.array_equal(back._low, second._low) and back._lengths.tolist() == [[6], [6]]
    assert first.join([first])._blocks[1].unit.shape == (model.width,)
    shallow = Plan(directions, arms[:1], [4])
    shallow._blocks = shallow._blocks[:2]
    with pytest.raises(EngineError, match="different models"):
        first.join([shallow])


def test_a_short_cut_of_the_nucleus_is_the_nucleus() -> None:
    torch.manual_seed(0)
    for scale in (0.0, 0.3, 3.0, 9.0):
        for top_p in (0.05, 0.5, 0.9, 0.999):
            logits = (torch.randn(2000) * scale).round(decimals=1)  # ties
            got = filtered(logits, Sampling(temperature=1.0, top_p=top_p))
            probabilities = torch.softmax(logits, -1)
            ordered, order = probabilities.sort(descending=True, stable=True)
            probabilities[order[ordered.cumsum(-1) - ordered >= top_p]] = 0
            assert torch.equal(got, probabilities / probabilities.sum())


def test_samplers_keep_their_place_in_their_random_numbers() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = [Sampling(temperature=1.0, seed=seed) for seed in range(3)]
    whole, parts = Sampler(rows), [Sampler(rows[:1]), Sampler(rows[1:])]
    joined = parts[0].join(parts[1:])
    assert [whole(logits) for _ in range(5)] == [joined(logits) for _ in range(5)]
    expected = [tokens[2] for tokens in (whole(logits) for _ in range(5))]
    last = joined.take([2])
    assert [last(logits[2:])[0] for _ in range(5)] == expected
    whole = Sampler(rows)
    for step in range(5):
        noise = torch.stack([exponential_noise(seed, step, 50) for seed in range(3)])
        assert whole(logits) == (torch.softmax(logits, -1) / noise).argmax(-1).tolist()
    same_seed = [Sampling(temperature=1.0, seed=4), Sampling(temperature=0.5, seed=4), Sampling(seed=4)]
    shared, apart = Sampler(same_seed), [Sampler([row]) for row in same_seed]
    for _ in range(5):
        assert shared(logits) == [apart[i](logits[i : i + 1])[0] for i in range(3)]
    logits[1] = torch.nan
    assert [token is None for token in whole.draw(logits)] == [False, True, False]
    with pytest.raises(EngineError, match="NaN"):
        whole(logits)


# Who is served


def test_everybody_advances_alike() -> None:
    table = Table("llama", Limits(queue_steps=1000, piece=1000))
    streams = [table.ask((PROMPTS[i % 5], RunSettings(layer=1, max_new_tokens=300), METHODS[:2])) for i in range(8)]
    while any(stream.backlog == 0 for stream in streams):
        table.scheduler.round()
    start = [stream.backlog for stream in streams]
    for _ in range(50):
        table.scheduler.round()
    gained = np.array([stream.backlog for stream in streams]) - start
    assert gained.sum() ** 2 / (len(gained) * (gained**2).sum()) > 0.999
    for stream in streams:
        stream.cancel()
    table.finish()


def test_the_line_is_first_come_first_served_with_a_cap_a_visitor() -> None:
    table = Table("llama", Limits(rows=2, visitor_running=1, visitor_waiting=2, waiting=5, queue_steps=1000))
    long = RunSettings(layer=1, max_new_tokens=30)
    greedy = [table.ask(("Hi", long, METHODS[:1]), visitor="a") for _ in range(2)]
    with pytest.raises(EngineError, match="2 of your runs are waiting"):
        table.ask(("Hi", long, METHODS[:1]), visitor="a")
    polite = table.ask(("Hi", long, METHODS[:1]), visitor="b")
    third = table.ask(("Hi", long, METHODS[:1]))
    assert third.position is not None and third.position.ahead == 3 and third.position.seconds is None
    table.scheduler.round()
    assert greedy[0].position is None and polite.position is None
    assert greedy[1].position.ahead == 0 and third.position.ahead == 1  # type: ignore[union-attr]
    table.finish()
    runs = [drain(s) for s in (*greedy, polite, third)]
    assert all(len(run.arms[0].token_ids) == 30 for run in runs)
    later = [table.ask(("Hi", long, METHODS[:1])) for _ in range(4)]
    seconds = [s.position.seconds for s in later]  # type: ignore[union-attr]
    assert all(a is not None and b is not None and a < b for a, b in itertools.pairwise(seconds))
    table.ask(("Hi", long, METHODS[:1]))
    with pytest.raises(EngineError, match="Too many people"):
        table.ask(("Hi", long, METHODS[:1]))
    table.scheduler.close()


def test_memory_limits_admission_but_one_may_always_try() -> None:
    request = ("Hi", RunSettings(layer=1, max_new_tokens=30), METHODS[:2])
    model = tiny_model("llama")
    footprint = Footprint.of(model)
    assert footprint.token >= 4 * 2 * 2 * 12 * 4  # blocks, keys and values, heads, width of a head, bytes
    need = footprint.bytes(2, len(model.encode("Hi")) + 30)
    for memory, together in ((need // 2, 1), (2 * need, 2), (3 * need + 1, 3)):
        table = Table("llama", Limits(memory=memory, queue_steps=1000))
        streams = [table.ask(request) for _ in range(3)]
        table.scheduler.round()
        assert len(table.scheduler.active) == together
        table.finish()
        assert all(len(drain(stream).arms[0].token_ids) == 30 for stream in streams)


def test_cancelled_and_late_runs_leave_the_line() -> None:
    table = Table("llama", Limits(rows=1, wait_seconds=1.0, queue_steps=1000))
    first = table.ask(("Hi", RunSettings(layer=1, max_new_tokens=200), METHODS[:1]))
    gone, late = (table.ask(("Hi", RunSettings(layer=1), METHODS[:1])) for _ in range(2))
    table.scheduler.round()
    gone.cancel()
    table.scheduler.round()
    assert list(gone) == [] and gone.builder is None and gone.position is None
    time.sleep(1.1)
    table.scheduler.round()
    with pytest.raises(EngineError, match="busy for too long"):
        list(late)
    table.finish()
    assert len(drain(first).arms[0].token_ids) == 200


def test_a_slow_reader_pauses_alone_and_loses_nothing(host: ModelHost) -> None:
    request = ("Hi", RunSettings(layer=1, max_new_tokens=200), METHODS[:2])
    expected = alone(tiny_model("llama"), wide("llama"), request)
    slow, quick = host.compare(*request), host.compare(*request)
    same(drain(quick), expected)
    deadline = time.monotonic() + 10
    while host.active > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert slow.backlog == 1.0 and host.active == 1
    same(drain(slow), expected)


# What goes wrong


def failing(model: ChatModel, error: Exception, when: Callable[[torch.Tensor], bool], block: int = 2) -> Any:
    """Raise halfway through the blocks, when the first of them have grown their caches."""
    state = {"on": False}
    outer = model.network.register_forward_pre_hook(
        lambda m, a, k: state.update(on=when(k["input_ids"])), with_kwargs=True
    )

    def hook(*_: Any) -> None:
        if state["on"]:
            raise error

    inner = model.blocks[block].register_forward_hook(hook)

    class Both:
        def remove(self) -> None:
            outer.remove()
            inner.remove()

    return Both()


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])
def test_an_exception_ends_the_runs_that_cause_it_only(family: str) -> None:
    table = Table(family)
    requests = [(PROMPTS[i % 5], RunSettings(layer=1, max_new_tokens=12), METHODS[:2]) for i in range(6)]
    expected = [alone(table.model, table.directions, request) for request in requests]
    streams = [table.ask(request) for request in requests]
    if family == "mamba":  # its rows never share a pass
        culprit, length = 3, len(table.model.encode(PROMPTS[3]))
        handle = failing(table.model, ValueError("x"), lambda ids: ids.shape[1] == length)
    else:
        culprit, handle = failing_at_a_token_of_one(table, expected)
    try:
        table.finish()
    finally:
        handle.remove()
    for i, stream in enumerate(streams):
        if i == culprit:
            with pytest.raises(EngineError, match="unexpected ValueError"):
                list(stream)
        else:
            same(drain(stream), expected[i])


def failing_at_a_token_of_one(table: Table, expected: Sequence[Run]) -> tuple[int, Any]:
    written = [{token for arm in run.arms for token in arm.token_ids[:-1]} for run in expected]
    culprit, bad = next(
        (i, token) for i, own in enumerate(written) for token in sorted(own) if sum(token in w for w in written) == 1
    )
    return culprit, failing(table.model, ValueError("x"), lambda ids: ids.shape[1] == 1 and bool((ids == bad).any()))


def test_memory_that_runs_out_shrinks_the_batch_and_stops_nobody() -> None:
    table = Table("llama")
    requests = [asked(seed, 16) for seed in range(8)]
    streams = [table.ask(request) for request in requests]
    sizes: list[int] = []

    def too_many(ids: torch.Tensor) -> bool:
        sizes.append(ids.shape[0])
        return ids.shape[0] > 6

    handle = failing(table.model, RuntimeError("CUDA out of memory"), too_many)
    try:
        table.finish()
    finally:
        handle.remove()
    assert max(sizes) > 6 and table.scheduler._rows <= 6
    assert sum(size > 6 for size in sizes) < 6  # it learns
    for stream, request in zip(streams, requests, strict=True):
        same(drain(stream), alone(table.model, table.directions, request))
    table.scheduler._shrunk -= 1000
    table.scheduler.round()
    assert table.scheduler._rows > 6 or table.scheduler._rows == 2 * 3


def test_no_memory_at_admission_waits_for_room_and_fails_alone() -> None:
    table = Table("llama")
    first = table.ask(("Hi", RunSettings(layer=1, max_new_tokens=10), METHODS[:1]))
    while first.backlog == 0:
        table.scheduler.round()
    request = (PROMPTS[3], RunSettings(layer=1, max_new_tokens=5), METHODS[:2])
    second = table.ask(request)
    crowded = [True]
    handle = failing(table.model, MemoryError(), lambda ids: crowded[0] and ids.shape[1] > 1)
    try:
        table.scheduler.round()
        assert second.position is not None and second.position.ahead == 0  # back in the line
        crowded[0] = False
        table.finish()
        same(drain(second), alone(table.model, table.directions, request))
        crowded[0] = True
        third = table.ask(request)
        table.finish()
        with pytest.raises(EngineError, match="too little memory"):
            list(third)
    finally:
        handle.remove()
    assert len(drain(first).arms[0].token_ids) == 10


def test_nan_ends_its_row_and_no_other() -> None:
    table = Table("llama")
    requests = [(prompt, RunSettings(layer=1, max_new_tokens=8), METHODS[:3]) for prompt in PROMPTS[:3]]
    expected = [alone(table.model, table.directions, request) for request in requests]
    streams = [table.ask(request) for request in requests]

    def poison(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor | None:
        if out.shape[:2] != (9, 1):
            return None
        out = out.clone()
        out[4] = torch.nan
        return out

    handle = table.model.blocks[3].register_forward_hook(poison)
    try:
        table.finish()
    finally:
        handle.remove()
    runs = [drain(stream) for stream in streams]
    assert [arm.stop for run in runs for arm in run.arms].count("nan") == 1 and runs[1].arms[1].stop == "nan"
    for run, other in zip(runs, expected, strict=True):
        for mine, theirs in zip(run.arms, other.arms, strict=True):
            if mine.stop != "nan":
                assert mine.token_ids == theirs.token_ids


def test_a_row_whose_text_can_not_be_told_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("llama")
    streams = [table.ask((p, RunSettings(layer=1, max_new_tokens=8), METHODS[:2])) for p in PROMPTS[:3]]
    while any(stream.backlog == 0 for stream in streams):
        table.scheduler.round()
    run = table.scheduler.active[1]

    def broken(*_: Any) -> None:
        raise KeyError("no such token")

    monkeypatch.setattr(run.transcript, "add", broken)
    table.finish()
    with pytest.raises(EngineError, match="unexpected KeyError"):
        list(streams[1])
    assert all(len(drain(stream).arms[0].token_ids) == 8 for stream in (streams[0], streams[2]))


def test_swapping_the_model_mixes_nothing_up(host: ModelHost) -> None:
    request = (PROMPTS[1], RunSettings(layer=1, max_new_tokens=40), METHODS[:2])
    expected = {f: alone(tiny_model(f), wide(f), request) for f in ("llama", "gemma2")}
    before = [host.compare(*request) for _ in range(3)]
    host.adopt(tiny_model("gemma2"), wide("gemma2"))
    after = [host.compare(*request) for _ in range(3)]
    mine = host.compare(*request, directions=wide("llama"))
    for stream in before:
        same(drain(stream), expected["llama"])
    for stream in after:
        same(drain(stream), expected["gemma2"])
    with pytest.raises(EngineError, match="llama"):
        list(mine)
    assert host.state.info is not None and host.state.info.name == "gemma2"


def test_closing_ends_everybody_soon() -> None:
    host = started(Limits(rows=4))
    streams = [host.compare("Hi", RunSettings(layer=1, max_new_tokens=500), METHODS[:2]) for _ in range(4)]
    next(iter(streams[0]))
    begun = time.monotonic()
    host.close()
    assert time.monotonic() - begun < 5 and not host.alive
    for stream in streams:
        with pytest.raises(EngineError, match="shut down"):
            list(stream)
    builder = streams[0].builder
    assert builder is not None and {arm.stop for arm in builder.snapshot().arms} == {"cancelled"}
    with pytest.raises(EngineError, match="shut down"):
        host.compare("Hi", RunSettings(layer=1), METHODS[:2])


def test_a_task_yields_to_people_but_not_to_a_reader_that_sleeps(host: ModelHost) -> None:
    sleeper = host.compare("Hi", RunSettings(layer=1, max_new_tokens=300), METHODS[:1])
    streams: list[RunStream] = []

    def compute(model: ChatModel, task: Any) -> bool:
        streams.append(host.compare("Hi", RunSettings(layer=1, max_new_tokens=20), METHODS[:1]))
        task.report("Half", 0.5)
        return streams[0].backlog * Limits().queue_steps >= 20

    assert host.work(compute).result(60)
    assert len(drain(streams[0]).arms[0].token_ids) == 20
    sleeper.cancel()


def test_one_function_makes_sentences() -> None:
    known = EngineError("Do this.")
    assert explained(known, "run", "less") is known
    for error in (MemoryError(), RuntimeError("CUDA out of memory"), RuntimeError("can't allocate memory: 5 bytes")):
        assert out_of_memory(error)
        assert str(explained(error, "run", "fewer arms")) == (
            "The run stopped because of too little memory: use fewer arms."
        )
    assert not out_of_memory(ValueError("out of memory"))
    assert str(explained(KeyError("secret"), "run", "less")) == "The run stopped because of an unexpected KeyError."


# The real model


def logits_of(batches: Sequence[Batch], steps: int, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], list]:
    """Logits and choices of every step of every row, batches joining one a step; rows by index of batch and row."""
    seen: dict[tuple[int, int], list] = {}
    names = {id(run): i for i, batch in enumerate(batches) for run in batch.runs}
    newest: list[torch.Tensor] = []
    forward = running._forward
    monkeypatch.setattr(running, "_forward", lambda *a: (newest.append((out := forward(*a))[0]), out)[1])
    waiting = list(batches)
    batch: Batch | None = None
    for _ in range(steps + len(batches)):
        if waiting:
            batch = waiting.pop(0) if batch is None else batch.join([waiting.pop(0)])
        if batch is None:
            break
        rows = batch._rows
        batch.step()
        for place, (run, row) in enumerate(rows):
            seen.setdefault((names[id(run)], row), []).append((newest[-1][place].float(), run.transcript.chosen(row)))
        batch = batch.take(batch.runs)
    monkeypatch.setattr(running, "_forward", forward)
    return seen


@pytest.mark.embedded
def test_logits_in_company_are_within_the_bound_of_check(
    embedded: ChatModel, embedded_directions: ace.RefusalDirections, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = Checker(embedded, embedded_directions).logit_bound
    settings = RunSettings(layer=embedded_directions.recommended_layer, max_new_tokens=12)
    requests = [
        (PROMPTS[0], settings, METHODS[:2]),
        (PROMPTS[3], replace(settings, scope="all"), METHODS[3:5]),
        (PROMPTS[1], replace(settings, max_new_tokens=5, temperature=1.0), METHODS[4:5]),
        (PROMPTS[2], replace(settings, token_scope="generated"), METHODS[5:6]),
    ]

    def batch(request: Asked) -> Batch:
        reading = Reading(ActiveRun(None, prepared(embedded, embedded_directions, request)), 16)  # type: ignore[arg-type]
        while not reading.done:
            reading.advance()
        return reading.batch()[0]

    together = logits_of([batch(request) for request in requests], 12, monkeypatch)
    worst, flips = 0.0, 0
    for i, request in enumerate(requests):
        for (_, row), steps in logits_of([batch(request)], 12, monkeypatch).items():
            assert len(steps) == len(together[i, row])
            for (mine, my_token), (theirs, their_token) in zip(steps, together[i, row], strict=True):
                worst = max(worst, float((mine - theirs).abs().max() / mine.std()))
                if my_token != their_token:
                    flips += 1
                    break
    assert worst <= bound and flips == 0


@pytest.mark.embedded
def test_visitors_of_the_embedded_model(embedded: ChatModel, embedded_directions: ace.RefusalDirections) -> None:
    host = ModelHost()
    host.adopt(embedded, embedded_directions)
    assert host.wait_ready(30).status == "ready"
    requests = [asked(seed, 12) for seed in range(9)]
    streams = [host.compare(*request) for request in requests]
    runs = [drain(stream) for stream in streams]
    host.close()
    for run, request in zip(runs, requests, strict=True):
        same(run, alone(embedded, embedded_directions, request), tolerance=2e-2)
