"""The soak, twenty seconds of it on a tiny model, and that its verdict can be a bad one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from benchmarks.soak import Sample, Tally, problems

from ace_core.host import ModelHost
from ace_core.ui import build_page

ROOT = Path(__file__).resolve().parent.parent
QUIET = Sample(0.0, 600 * 2**20, threads=8, files=12, hooks=0, rows=0, runs=0, waiting=0, tasks=0, sessions=0)
BEGUN, ENDED = 10.0, 910.0


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ACE_SOAK"), reason="takes a minute: set ACE_SOAK=1")
def test_twenty_seconds_of_visitors_leave_nothing_behind() -> None:
    command = [sys.executable, "tests/benchmarks/soak.py", "--model", "tiny", "--minutes", "0.33", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["problems"] == [] and told["deeds"]["read"] > 0


def samples(**last: int) -> list[Sample]:
    """A quarter of an hour in which all is well, ending in what is given."""
    busy = replace(QUIET, rows=9, runs=3, hooks=120, sessions=8, threads=20, files=30)
    during = [replace(busy, seconds=BEGUN + 2.0 * i) for i in range(450)]
    return [QUIET, *during, replace(QUIET, seconds=ENDED + 30, **last)]


def happy() -> Tally:
    tally = Tally()
    tally.saw("read")
    tally.hear("Choose a whole number from 0 to 29.")
    return tally


def test_a_good_run_has_no_problems() -> None:
    assert problems(samples(), BEGUN, ENDED, happy(), '{"event": "run finished", "level": "info"}') == []


@pytest.mark.parametrize("name", ["hooks", "rows", "runs", "waiting", "tasks", "sessions"])
def test_anything_left_is_a_problem(name: str) -> None:
    left = 2 if name == "sessions" else 1
    (found,) = problems(samples(**{name: left}), BEGUN, ENDED, happy(), "")
    assert found.startswith(f"{left} {name} left")


@pytest.mark.parametrize("name", ["threads", "files"])
def test_more_threads_or_files_than_at_first_are_a_problem(name: str) -> None:
    assert problems(samples(**{name: 22}), BEGUN, ENDED, happy(), "") == []
    (found,) = problems(samples(**{name: 40}), BEGUN, ENDED, happy(), "")
    assert name in found


@pytest.mark.parametrize(("growth", "fine"), [(1.04, True), (1.06, False)])
def test_memory_may_grow_by_a_twentieth(growth: float, fine: bool) -> None:
    grown = [replace(s, memory=int(s.memory * growth)) if s.seconds > BEGUN + 400 else s for s in samples()]
    found = problems(grown, BEGUN, ENDED, happy(), "")
    assert (found == []) is fine and (fine or "memory grew" in found[0])


def test_errors_and_tracebacks_are_problems() -> None:
    tally = happy()
    tally.hear("The run stopped because of an unexpected KeyError.")
    tally.wrong("ReadTimeout: timed out")
    log = 'fine\nTraceback (most recent call last):\n{"level": "error", "event": "unexpected error"}\n'
    assert len(problems(samples(), BEGUN, ENDED, tally, log)) == 4


def test_nobody_served_is_a_problem() -> None:
    assert problems(samples(), BEGUN, ENDED, Tally(), "") == ["nobody read an answer to its end"]


def test_a_closed_page_leaves_nothing_in_gradio() -> None:
    host = ModelHost()
    page = build_page(host, None)
    leave = next(event.fn for event in page.fns.values() if any(target[1] == "unload" for target in event.targets))
    assert leave is not None
    kept = page.state_holder
    kept.set_blocks(page)
    for key in ("one", "other"):
        assert kept[key] is not None
    leave(gr.Request(session_hash="one"))
    leave(gr.Request(session_hash="never seen"))
    assert list(kept.session_data) == list(kept.time_last_used) == ["other"]
    host.close()
