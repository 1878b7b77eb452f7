"""Memory goes back to the system when runs are over, not only at the end."""

from __future__ import annotations

import sys
import time

import psutil
import pytest
import torch
from conftest import tiny_directions, tiny_model

from ace_core.host import ModelHost
from ace_core.methods import ACE, Baseline
from ace_core.runs import RunSettings
from ace_core.scheduling import heap
from ace_core.scheduling.heap import Heap, release_free_memory

MEGABYTE = 2**20


def resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(sys.platform != "linux" or heap._TRIM is None, reason="this C library can't give memory back")
def test_memory_in_gaps_goes_back_only_when_asked() -> None:
    # small enough for the heap, where a piece that lives on keeps all before it
    pieces = [torch.ones(16_000) for _ in range(4_000)]
    kept = pieces[::8]
    del pieces
    before = resident()
    time.sleep(0.1)
    assert abs(resident() - before) < 20 * MEGABYTE, "freeing alone gives nothing back, or this test shows nothing"
    assert release_free_memory()
    assert before - resident() > 100 * MEGABYTE
    assert all(float(piece.sum()) == 16_000 for piece in kept)


def test_memory_is_looked_at_once_it_was_freed_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(heap, "release_free_memory", lambda: given.append(time.monotonic()))
    keeper = Heap(every=0.2, idle=0.05)
    for _ in range(3):
        keeper.look(freed=False, idle=True)
    assert given == []
    for _ in range(30):
        keeper.look(freed=True, idle=False)
        time.sleep(0.01)
    assert 2 <= len(given) <= 3
    time.sleep(0.06)
    keeper.look(freed=False, idle=True)
    count = len(given)
    keeper.look(freed=False, idle=True)
    assert len(given) == count, "nothing was freed since"


def test_a_host_gives_memory_back_after_the_last_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(heap, "release_free_memory", lambda: given.append(host.active))
    host = ModelHost()
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert host.wait_ready(60).status == "ready"
    for _ in host.compare("Hello there", RunSettings(layer=1, max_new_tokens=8), [Baseline(), ACE(0.0)]):
        pass
    deadline = time.monotonic() + 30
    while not given and time.monotonic() < deadline:
        time.sleep(0.05)
    host.close()
    assert given and given[-1] == 0
