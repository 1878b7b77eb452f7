"""The sweep tab: its engine through a real model thread, and the page in a real browser with a tiny model."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_directions, tiny_model
from playwright.sync_api import Browser, Page, expect

import ace_core as ace
from ace_core import lab
from ace_core.errors import EngineError
from ace_core.host import ModelHost
from ace_core.lab import LabSweep, recorded_sweep, sweep_request
from ace_core.runs import RunSettings
from ace_core.sweeps.records import SweepFolder, read_records
from ace_core.sweeps.report import read_sweep
from ace_core.sweeps.runner import run_sweep
from ace_core.tasks import Task
from ace_core.ui import build_page
from ace_core.ui import page as page_module
from ace_core.ui.sessions import Sessions
from ace_core.ui.sweep import views as show
from browsing import in_browser, opened_browser, served

FAMILY = "qwen2"
GOOD: dict[str, Any] = {
    "preset": "quick", "methods": ["ace", "addition", "ablation"], "prompts": 3, "alphas": 3, "lowest": -1,
    "highest": 1, "tokens": 8,
}  # fmt: skip
PATIENCE = 120_000  # milliseconds, for a busy machine


def made(folder: Path, **changes: Any) -> LabSweep:
    return LabSweep(sweep_request({**GOOD, **changes}), tiny_directions(FAMILY), folder)


def watched(sweep: LabSweep, seen: Callable[[Task[None], str], object]) -> Callable[[ace.ChatModel, Task[None]], None]:
    """Run a sweep, and call ``seen`` with every message: a reader of reports may miss some of a fast one."""

    def compute(model: ace.ChatModel, task: Task[None]) -> None:
        report = task.report

        def reported(message: str, fraction: float | None = None) -> None:
            report(message, fraction)
            seen(task, message)

        task.report = reported  # type: ignore[method-assign]
        sweep.run(model, task)

    return compute


def stopping(sweep: LabSweep, cells: int) -> Callable[[ace.ChatModel, Task[None]], None]:
    """Run a sweep that is cancelled as soon as so many cells are finished."""
    return watched(sweep, lambda task, message: task.cancel() if sweep.done >= cells else None)


@pytest.fixture(scope="module")
def host() -> Iterator[ModelHost]:
    made = ModelHost()
    made.adopt(tiny_model(FAMILY), tiny_directions(FAMILY))
    assert made.wait_ready(60).status == "ready"
    yield made
    made.close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"preset": "paper"}, "Choose a sweep"),
        ({"preset": ["quick"]}, "Choose a sweep"),
        ({"methods": "ace"}, "methods from the list"),
        ({"methods": ["ace", {}]}, "methods from the list"),
        ({"methods": ["ablation"]}, "only they have a coefficient"),
        ({"methods": ["ace", "addition", "ablation", "affine_ablation"]}, "at most 3 methods"),
        ({"prompts": 25}, "from 2 to 24"),
        ({"prompts": True}, "from 2 to 24"),
        ({"alphas": 12}, "from 2 to 11"),
        ({"alphas": 2.5}, "from 2 to 11"),
        ({"tokens": 49}, "from 8 to 48"),
        ({"tokens": float("nan")}, "from 8 to 48"),
        ({"lowest": -4}, "from -3 to 3"),
        ({"highest": float("inf")}, "from -3 to 3"),
        ({"lowest": None}, "from -3 to 3"),
        ({"lowest": 1, "highest": 1}, "above the lowest"),
        ({"lowest": 0, "highest": 0.001}, "too close"),
    ],
)
def test_more_than_a_page_may_ask_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        sweep_request({**GOOD, **changes})


def test_a_request_is_the_plan_of_its_command() -> None:
    directions = tiny_directions(FAMILY)
    asked = sweep_request(GOOD)
    plan = asked.plan(directions)
    assert plan.alphas == (-1.0, 0.0, 1.0) and plan.tokens == 8 and len(plan.prompts) == 6
    assert asked.cells(directions) == len(plan.cells)
    command = asked.command(tiny_model(FAMILY), own=False)
    assert "--alphas=-1,0,1 --prompts 3 --tokens 8" in command and "--vectors" not in command
    layers = sweep_request({**GOOD, "preset": "layers", "tokens": None})
    assert layers.tokens == 0 and len(layers.plan(directions).places) == directions.blocks


def test_a_stopped_sweep_goes_on_and_ends_like_an_undisturbed_one(host: ModelHost, tmp_path: Path) -> None:
    sweep = made(tmp_path / "one")
    host.work(stopping(sweep, 30)).result(120)
    assert 30 <= sweep.done < sweep.total and not sweep.finished
    before = read_records(sweep.folder / "results.jsonl")
    assert len(before) == sweep.done
    half = sweep.look()
    assert (half.done, half.total) == (len(before), sweep.total) and half.bars is not None
    assert json.loads(show.picture(half, 0))["data"]
    told: list[str] = []
    host.work(watched(sweep, lambda task, message: told.append(message))).result(120)
    assert sweep.finished and any(re.search(r"\d+ of \d+ cells, about \d+ s left", message) for message in told)
    after = read_records(sweep.folder / "results.jsonl")
    assert after[: len(before)] == before and len({record["cell"] for record in after}) == sweep.total

    folder = SweepFolder(tmp_path / "plain")
    list(run_sweep(tiny_model(FAMILY), tiny_directions(FAMILY), sweep.plan, folder))
    plain = {record["cell"]: record for record in folder.records()}
    assert {r["cell"]: (r["text"], r["verdict"]) for r in after} == {
        cell: (r["text"], r["verdict"]) for cell, r in plain.items()
    }
    files = sweep.write()
    assert files.results.read_text("utf-8").count("\n") == sweep.total
    assert "<!doctype html>" in files.report.read_text("utf-8")[:100]
    rows = list(csv.DictReader(files.summary.read_text("utf-8").splitlines()))
    assert len(rows) == 2 * len(sweep.plan.conditions)
    # what a command-line run leaves is what the page shows as recorded
    recorded = recorded_sweep(sweep.folder)
    assert recorded == sweep.look()
    assert "--preset quick" in recorded.command


@pytest.mark.parametrize("polls", [0, 1, 2, 3])
def test_a_stop_while_a_sweep_gets_ready_is_no_failure(polls: int, tmp_path: Path) -> None:
    plan = made(tmp_path / "unused").plan.changed(refusal_ids=(5, 6))
    asked = iter(range(polls))
    folder, stop = SweepFolder(tmp_path / "one"), lambda: next(asked, None) is None
    events = list(run_sweep(tiny_model(FAMILY), tiny_directions(FAMILY), plan, folder, batch_rows=4, should_stop=stop))
    assert events[-1].message.startswith("Stopped") and events[-1].done == len(folder.records()) < len(plan.cells)


def test_comparisons_of_others_pass_and_are_not_steered(host: ModelHost, tmp_path: Path) -> None:
    settings, arms = RunSettings(layer=1, max_new_tokens=8), [ace.Baseline(), ace.ACE(1.0)]

    def compared() -> list[tuple[int, ...]]:
        stream = host.compare("How do I paint a boat?", settings, arms)
        for _ in stream:
            pass
        assert stream.builder is not None
        return [tuple(arm.token_ids) for arm in stream.builder.snapshot().arms]

    alone = compared()
    sweep = made(tmp_path / "one", prompts=12, alphas=7)
    task = host.work(sweep.run)
    while sweep.done < 20:
        time.sleep(0.01)
    for _ in range(3):
        assert compared() == alone
    assert not sweep.finished
    task.cancel()
    task.result(60)


def test_a_map_of_layers_fills_and_has_gaps_at_the_end(host: ModelHost, tmp_path: Path) -> None:
    sweep = made(tmp_path / "one", preset="layers", methods=["ace", "addition"])
    host.work(stopping(sweep, 20)).result(120)
    half = sweep.look()
    assert len(half.pictures) == 2 and half.bars is half.gaps is None and half.headline == ""
    assert "Worked out when the sweep ends" in show.gaps(half)
    host.work(sweep.run).result(120)
    whole = sweep.look()
    assert whole.bars is not None and whole.gaps is not None and len(whole.gaps.rows) == 2 * len(sweep.plan.places)


def test_visitors_have_folders_of_their_own_which_go_with_them(
    host: ModelHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    sessions, asked, directions = Sessions(), sweep_request(GOOD), tiny_directions(FAMILY)
    mine, yours = (
        sessions.get(name).sweep.new(asked, directions, host.state.info, own=False) for name in ("me", "you")
    )
    host.work(stopping(mine, 5)).result(120)
    host.work(stopping(yours, 5)).result(120)
    assert mine.folder.parent != yours.folder.parent and yours.write().report.exists()
    again = sessions.get("me").sweep.new(asked, directions, host.state.info, own=False)
    assert not mine.folder.exists() and again.folder.exists() and sessions.get("me").sweep.resumable(host.state)
    assert sessions.get("you").sweep.resumable(ModelHost().state) is None  # another model
    task = host.work(again.run)
    sessions.get("me").sweep.hold(task)
    while not again.done:
        time.sleep(0.01)
    sessions.drop("me")
    task.result(60)
    assert not again.folder.exists() and yours.folder.exists()
    with pytest.raises(EngineError, match="closed"):
        sessions.get("me").sweep.close()
        sessions.get("me").sweep.new(asked, directions, host.state.info, own=False)
    sessions.drop("you")
    assert list(tmp_path.glob("sweep-*")) == []


def test_a_folder_that_is_no_sweep_is_not_shown(tmp_path: Path) -> None:
    assert recorded_sweep(tmp_path / "none") is None
    for text in ("", "[]", "{}", '{"plan": 3}', '{"plan": {"prompts": []}}'):
        (tmp_path / "manifest.json").write_text(text, "utf-8")
        assert recorded_sweep(tmp_path) is None
    assert "No recorded sweep" in show.shown(None, recorded=True)


def test_text_of_others_is_only_text(tmp_path: Path) -> None:
    table = lab.SweepLook("quick", "<b>${1}{{2}}", 1, 2, "<i>", (), None, None, None, None, None, "<script>", "<u>")
    said = show.shown(table, recorded=True)
    assert not re.search(r"<(script|u)>|\$\{|\{\{", said) and "<b>${" not in said


# In a browser


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a command-line run leaves."""
    path = tmp_path_factory.mktemp("recorded")
    plan = sweep_request(GOOD).plan(tiny_directions(FAMILY))
    folder = SweepFolder(path / "sweep")
    list(run_sweep(tiny_model(FAMILY), tiny_directions(FAMILY), plan, folder, command="python -m ace_core sweep"))
    return folder.path


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(host: ModelHost, recorded: Path, uploads: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setattr(page_module, "_RECORDED_SWEEP", recorded)
        with served(build_page(host, None)) as url:
            yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser(PATIENCE) as chromium:
        yield chromium


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens pages on the tab. None must complain, nor talk to anyone but the server."""
    complaints: list[str] = []
    strangers: list[str] = []
    contexts = []

    def opened(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda call: None if call.url.startswith((address, "data:", "blob:")) else strangers.append(call.url),
        )
        page.goto(address + ("?__theme=dark" if options.get("color_scheme") == "dark" else ""))
        page.get_by_role("tab", name="Sweep").click()
        expect(page.locator("#sweep-size")).to_contain_text("cells")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert (complaints, strangers) == ([], [])


def told(page: Page, kind: str) -> None:
    expect(page.locator("#sweep-status .ace-status")).to_have_attribute("data-kind", kind)


def points(page: Page) -> int:
    """Measured points of all curves."""
    page.locator("#sweep-first").scroll_into_view_if_needed()
    count = "plot => (plot.data || []).filter((t) => t.name).reduce((sum, t) => sum + t.x.length, 0)"
    return int(page.locator("#sweep-first .ace-plot").evaluate(count))


def fill(page: Page, name: str, value: int) -> None:
    field = page.locator(f"#sweep-{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def saved(page: Page, name: str, path: Path) -> Path:
    expect(page.locator(f"#sweep-{name}")).to_be_enabled()
    with page.expect_download() as download:
        page.locator(f"#sweep-{name}").click()
    download.value.save_as(path)
    return path


@in_browser
def test_start_watch_stop_resume_and_download(
    visit: Callable[..., Page], recorded: Path, uploads: Path, tmp_path: Path
) -> None:
    page = visit()
    told(page, "recorded")
    cells = len(read_sweep(recorded)[0].plan.cells)
    expect(page.locator("#sweep-shown")).to_contain_text(f"Recorded qwen2, {cells} of {cells} cells")
    expect(page.locator("#sweep-gaps tbody tr")).to_have_count(2)
    page.wait_for_function("document.querySelector('#sweep-first .ace-plot').data?.length === 8")
    assert points(page) == 2 * 2 * 3
    for name in ("results", "summary", "report", "resume", "stop"):
        expect(page.locator(f"#sweep-{name}")).to_be_disabled()

    fill(page, "prompts", 18)
    fill(page, "alphas", 11)
    fill(page, "tokens", 48)
    total = 36 * (3 + 2 * 11)
    expect(page.locator("#sweep-size")).to_contain_text(f"{total} cells")
    page.locator("#sweep-start").click()
    told(page, "running")
    expect(page.locator("#sweep-start")).to_be_disabled()
    expect(page.locator("#sweep-shown")).to_contain_text("Yours")
    expect(page.locator("#sweep-status")).to_contain_text("s left")
    page.locator("#sweep-first").scroll_into_view_if_needed()
    few = "document.querySelector('#sweep-first .ace-plot').data?.filter((t) => t.name).some((t) => t.x.length {})"
    page.wait_for_function(few.format(">= 2 && t.x.length < 11"))
    seen = points(page)
    page.wait_for_function(few.format("> 2"))
    assert points(page) > seen or seen > 8

    page.locator("#sweep-stop").click()
    told(page, "stopped")

    # nobody else sees it
    other = visit()
    expect(other.locator("#sweep-shown")).to_contain_text("Recorded")
    expect(other.locator("#sweep-start")).to_be_enabled()
    words = re.search(rf"Stopped after (\d+) of {total} cells", page.locator("#sweep-status").inner_text())
    assert words is not None
    done = int(words[1])
    first = read_records(saved(page, "results", tmp_path / "first.jsonl"))
    assert len(first) == done and 0 < done < total
    expect(page.locator("#sweep-resume")).to_be_enabled()

    page.locator("#sweep-resume").click()
    told(page, "done")
    expect(page.locator("#sweep-resume")).to_be_disabled()
    expect(page.locator("#sweep-start")).to_be_enabled()
    assert points(page) == 2 * 2 * 11
    last = read_records(saved(page, "results", tmp_path / "last.jsonl"))
    assert last[:done] == first and len({record["cell"] for record in last}) == len(last) == total
    rows = list(csv.DictReader(saved(page, "summary", tmp_path / "summary.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 2 * (3 + 2 * 11) and {row["kind"] for row in rows} == {"harmful", "harmless"}
    report = saved(page, "report", tmp_path / "report.html").read_text("utf-8")
    assert "Standardisation gap" in report and str(uploads) not in report
    expect(page.locator("#sweep-gaps tbody tr")).to_have_count(2)

    folders = list(uploads.glob("sweep-*"))
    assert len(folders) == 1
    page.close()
    deadline = time.monotonic() + PATIENCE / 1000
    while list(uploads.rglob("results.jsonl")) or folders[0].exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@in_browser
def test_bad_choices_are_told_and_a_map_of_layers_fits_a_phone_in_the_dark(visit: Callable[..., Page]) -> None:
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    for name in ("ACE", "Activation addition"):
        page.locator("#sweep-methods").get_by_label(name).uncheck()
    expect(page.locator("#sweep-size .ace-problem")).to_contain_text("Choose ACE or activation addition")
    page.locator("#sweep-start").click()
    told(page, "error")
    expect(page.locator("#sweep-start")).to_be_enabled()
    page.locator("#sweep-methods").get_by_label("ACE").check()
    page.locator("#sweep-methods").get_by_label("Activation addition").check()
    page.locator("#sweep-preset").get_by_label("Every layer").check()
    expect(page.locator("#sweep-tokens input[type=number]")).to_be_disabled()
    fill(page, "prompts", 2)
    page.locator("#sweep-start").click()
    told(page, "done")
    for name in ("first", "second"):
        page.locator(f"#sweep-{name}").scroll_into_view_if_needed()
        expect(page.locator(f"#sweep-{name} .main-svg").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_role("tab", name="Learn").evaluate("tab => tab.offsetTop") == page.get_by_role(
        "tab", name="Compare"
    ).evaluate("tab => tab.offsetTop")
