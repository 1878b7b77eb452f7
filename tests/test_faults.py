"""Things that go wrong around a run: vectors, disk, a failed swap of the model, tasks under constant load."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_directions, tiny_model

import ace_core as ace
from ace_core import host as host_module
from ace_core import lab
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError, explained
from ace_core.host import Limits, ModelHost, RunStream
from ace_core.models import ChatModel
from ace_core.runs import RunSettings
from ace_core.store import save_directions
from ace_core.sweeps.records import SweepFolder, read_records
from ace_core.tasks import Task
from ace_core.ui.directions.bench import Bench
from families import save_tiny

METHODS = [ace.Baseline(), ace.ACE(0.0)]
LONG = RunSettings(layer=1, max_new_tokens=500)
SHORT = RunSettings(layer=1, max_new_tokens=6)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def started(limits: Limits | None = None) -> ModelHost:
    host = ModelHost(limits)
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert host.wait_ready(60).status == "ready"
    return host


@pytest.fixture
def host() -> Iterator[ModelHost]:
    made = started()
    yield made
    made.close()


def settled(host: ModelHost) -> str:
    deadline = time.monotonic() + 60
    while host.state.status == "loading" and time.monotonic() < deadline:
        time.sleep(0.01)
    return host.state.status


# Loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:40] + bytes(255 - byte for byte in data[40:80]) + data[80:]


@pytest.mark.parametrize("damage", [cut, flipped, lambda data: b"", lambda data: b"\x80\x04pickle"])
def test_corrupt_vectors_fail_the_loading_and_nothing_else(damage: Any, folder: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    model = ace.load_model(str(folder))
    save_directions(ace.fit_directions(model, ["Break a lock", "Steal a car"], ["Bake bread", "Plant a tree"]), good)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(damage(good.read_bytes()))
    host = ModelHost()
    host.load(str(folder), vectors=bad)
    assert settled(host) == "failed"
    assert "bad.safetensors is not a vectors file of this project, or is damaged" in host.state.message
    with pytest.raises(EngineError, match="damaged"):
        host.compare("Hi", SHORT, METHODS)
    host.load(str(folder), vectors=good)
    assert settled(host) == "ready" and host.alive
    assert len(list(host.compare("Hi", SHORT, METHODS))) == 6
    host.close()


def test_a_swap_that_fails_lets_streams_end_first(host: ModelHost) -> None:
    streams = [host.compare("Hello there", RunSettings(layer=1, max_new_tokens=40), METHODS) for _ in range(3)]
    first = iter(streams[0])
    next(first)
    host.load("/nowhere/at/all")
    assert 1 + len(list(first)) == 40
    assert all(len(list(stream)) == 40 for stream in streams[1:])
    assert settled(host) == "failed" and host.alive
    with pytest.raises(EngineError, match="no model folder"):
        host.compare("Hi", SHORT, METHODS)


def test_an_end_while_a_model_is_loaded_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = threading.Event()

    def slow(_name: str, *, progress: Any, **_: Any) -> ChatModel:
        for step in range(3000):
            loading.set()
            progress("Fetching", step / 3000)
            time.sleep(0.01)
        raise AssertionError("nobody stopped the loading")

    monkeypatch.setattr(host_module, "load_model", slow)
    host = ModelHost()
    host.load("owner/name")
    assert loading.wait(30)
    begun = time.monotonic()
    host.close(10)
    assert not host.alive and time.monotonic() - begun < 10
    with pytest.raises(EngineError, match="shut down"):
        host._put(lambda: None)


def test_an_end_during_a_long_pass_ends_the_streams() -> None:
    host, inside, over = started(), threading.Event(), threading.Event()

    def long(*_: object) -> None:
        inside.set()
        over.wait(60)

    handle = tiny_model("llama").blocks[0].register_forward_hook(long)
    try:
        stream = host.compare("Hi", LONG, METHODS)
        assert inside.wait(30)
        host.close(0.2)
        assert host.alive, "the pass goes on"
        with pytest.raises(EngineError, match="shut down"):
            list(stream)
    finally:
        handle.remove()
        over.set()
    host.close()
    assert not host.alive


# A full disk


def test_a_full_disk_leaves_no_half_file_and_names_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directions = tiny_directions("llama")
    whole = Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        whole(path, data[: len(data) // 2])
        raise FULL

    lab.write_files(directions, tmp_path)
    before = (tmp_path / "llama.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(EngineError, match="No space left"):
            save_directions(directions, tmp_path / "llama.safetensors")
        assert (tmp_path / "llama.safetensors").read_bytes() == before, "the old file stays whole"
        with pytest.raises(EngineError, match="want of room") as refused:
            lab.write_files(directions, tmp_path)
        assert str(tmp_path) not in str(refused.value)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_page_without_room_for_a_folder_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise FULL

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(EngineError, match="no room"):
        Bench().folder()


def test_a_sweep_on_a_full_disk_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = SweepFolder(tmp_path / "sweep")
    with place.open({"cells": 2}):
        place.append([{"cell": "one"}])

        def full(_descriptor: int) -> None:
            raise FULL

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(EngineError, match="free some space, and resume") as refused:
            place.append([{"cell": "two"}])
        assert str(tmp_path) not in str(refused.value)
        monkeypatch.undo()
    with place.open({"cells": 2}):
        place.append([{"cell": "two"}])
    assert [record["cell"] for record in read_records(place.results)] == ["one", "two"]


def test_a_task_that_finds_the_disk_full_is_told_in_words(host: ModelHost) -> None:
    def compute(_model: ChatModel, _task: Task[None]) -> None:
        raise FULL

    with pytest.raises(EngineError, match="disk is full"):
        host.work(compute).result(60)
    assert explained(FULL, "run", "less").reason == "disk"
    assert len(list(host.compare("Hi", SHORT, METHODS))) == 6


# Long tasks and people


class Crowd:
    """Visitors who always have another run going, so that the model is never idle."""

    def __init__(self, host: ModelHost, visitors: int = 2) -> None:
        self._host, self._over = host, threading.Event()
        self.tokens = 0
        self._threads = [threading.Thread(target=self._visit) for _ in range(visitors)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 60
        while self._host.active < len(self._threads) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _visit(self) -> None:
        while not self._over.is_set():
            # two at once, so that there is no moment between one run and the next
            streams = [self._host.compare("Hello there", LONG, METHODS) for _ in range(2)]
            for stream in streams:
                self._read(stream)

    def _read(self, stream: RunStream) -> None:
        for _ in stream:
            self.tokens += 1
            if self._over.is_set():
                stream.cancel()


def counted(_model: ChatModel, task: Task[int]) -> int:
    """Ten short pieces."""
    for piece in range(10):
        time.sleep(0.02)
        task.report(f"Piece {piece}", piece / 10)
        if task.cancelled():
            return piece
    return 10


def test_a_task_moves_on_under_constant_load_and_people_do_too() -> None:
    host = started(Limits(task_patience=0.2))
    with Crowd(host) as crowd:
        task = host.work(counted)
        before = crowd.tokens
        assert task.result(120) == 10
        assert crowd.tokens > before, "people went on meanwhile"
        assert host.active > 0
    host.close()


def test_without_a_bound_a_task_starves() -> None:
    host = started(Limits(task_patience=3600.0))
    with Crowd(host):
        task = host.work(counted)
        with pytest.raises(EngineError, match="not finished"):
            task.result(3)
        task.cancel()
    host.close()


def test_a_long_task_makes_room_for_those_that_wait() -> None:
    host = started(Limits(task_turn=0.3))
    begun = threading.Event()

    def endless(_model: ChatModel, task: Task[int]) -> int:
        pieces = 0
        while not task.cancelled():
            begun.set()
            time.sleep(0.02)
            pieces += 1
            task.report("Going on")
        return pieces

    first = host.work(endless)
    assert begun.wait(30)
    time.sleep(0.6)
    assert not first.cancelled(), "nobody waits, so it may go on"
    second = host.work(lambda model, task: "served")
    assert second.result(60) == "served"
    assert first.result(0) > 15, "what it has done is kept"
    host.close()


def test_one_visitor_cannot_fill_the_line_of_tasks(host: ModelHost) -> None:
    hold = threading.Event()

    def waits(_model: ChatModel, _task: Task[None]) -> None:
        assert hold.wait(60)

    tasks = [host.work(waits, visitor="ada") for _ in range(Limits().visitor_tasks)]
    with pytest.raises(EngineError, match="your computations"):
        host.work(waits, visitor="ada")
    tasks.append(host.work(waits, visitor="bob"))
    hold.set()
    for task in tasks:
        task.result(60)
    host.work(waits, visitor="ada").result(60)


def test_a_model_to_be_loaded_goes_before_tasks_that_wait(host: ModelHost) -> None:
    stream = host.compare("Hello there", RunSettings(layer=1, max_new_tokens=200), METHODS)
    next(iter(stream))
    host.adopt(tiny_model("gemma2"), directions := tiny_directions("gemma2"))
    task = host.work(lambda model, task: model.name)
    assert len(list(stream)) >= 100
    assert task.result(60) == "gemma2" and isinstance(directions, RefusalDirections)


# Answers


def test_answers_longer_than_the_cap_are_refused() -> None:
    host = started(Limits(tokens=8))
    with pytest.raises(EngineError, match="at most 8 tokens"):
        host.compare("Hi", RunSettings(layer=1, max_new_tokens=9), METHODS)
    assert len(list(host.compare("Hi", RunSettings(layer=1, max_new_tokens=8), METHODS))) == 8
    host.close()
