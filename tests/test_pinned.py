"""A pinned run beside the next one: differences in words, columns by arm, on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr
import pytest
from conftest import tiny_directions, tiny_model
from playwright.sync_api import Browser, Page, expect

from ace_core.gallery import read_gallery
from ace_core.host import ModelHost
from ace_core.ui import build_page, load_recorded
from ace_core.ui.compare import views
from ace_core.ui.compare.pinned import Pins, differences
from ace_core.ui.handlers import Handlers
from browsing import complaints_of, in_browser, opened_browser, served

PATIENCE = 120_000  # milliseconds, for a busy machine
RUN = load_recorded()
assert RUN is not None


def test_differences_name_what_moved_and_nothing_else() -> None:
    assert differences(RUN, RUN) == []
    moved = replace(RUN, settings=replace(RUN.settings, layer=3, coefficient=-0.5, seed=7))
    before = RUN.settings
    assert differences(RUN, moved) == [
        f"layer {before.layer} → 3",
        f"ACE coefficient {before.coefficient:g} → −0.5",
        f"seed {before.seed} → 7",
    ]
    scoped = replace(RUN, settings=replace(before, scope="window", last=9))
    assert differences(RUN, scoped) == ["window end none → 9", "edited blocks one block → a window of blocks"]
    assert differences(RUN, replace(RUN, model="gpt2")) == [f"model {RUN.model} → gpt2"]


def test_a_coefficient_counts_only_where_both_runs_use_it() -> None:
    moved = replace(RUN, settings=replace(RUN.settings, coefficient=1.5))
    without = replace(moved, arms=tuple(arm for arm in moved.arms if arm.method != "ace"))
    assert differences(RUN, moved) == [f"ACE coefficient {RUN.settings.coefficient:g} → 1.5"]
    assert differences(RUN, without) == ["ACE only pinned"]
    assert differences(without, RUN) == ["ACE only above"]


def test_columns_of_one_method_stand_below_each_other() -> None:
    above = replace(RUN, arms=RUN.arms[::-1])
    fewer = replace(RUN, arms=RUN.arms[1:])

    def order(pinned: object, run: object) -> list[tuple[str, bool]]:
        columns = json.loads(views.pinned_answers(pinned, run, None))["columns"]  # type: ignore[arg-type]
        return [(column["method"], bool(column["tokens"])) for column in columns]

    methods = [arm.method for arm in RUN.arms]
    assert order(RUN, above) == [(method, True) for method in methods[::-1]]
    assert order(fewer, RUN) == [(methods[0], False), *((method, True) for method in methods[1:])]
    assert order(RUN, fewer) == [*((method, True) for method in methods[1:]), (methods[0], True)]


def test_a_run_in_progress_can_not_be_pinned_and_nothing_pinned_stays_quiet() -> None:
    host = ModelHost()
    pins, request = Pins(handlers := Handlers(host, RUN, 30)), gr.Request(session_hash="visitor")
    try:
        assert pins.show(request, 3) == (gr.skip(), gr.skip(), gr.skip())
        handlers.sessions.get("visitor").running = True
        assert "wait until it ends" in pins.pin(request, 3)[1]
        assert handlers.sessions.get("visitor").pinned is None
        handlers.sessions.get("visitor").running = False
        for layer in (3, None, "x", 10**9):
            assert "Change something" in pins.pin(request, layer)[1]
        assert handlers.sessions.get("other").pinned is None
    finally:
        host.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The whole page with a tiny model."""
    host = ModelHost()
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    host.wait_ready(60)
    with served(build_page(host, RUN)) as url:
        yield url
    host.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser(PATIENCE) as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page with the model ready. It must not complain."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE)
    fresh = context.new_page()
    complaints = complaints_of(fresh)
    fresh.goto(address)
    expect(fresh.locator("#model-card .ace-card")).to_have_attribute("data-status", "ready")
    yield fresh
    context.close()
    assert complaints == []


@pytest.mark.slow
@in_browser
def test_a_pinned_run_stays_beside_the_next_one(page: Page) -> None:
    recorded = page.locator("#answers .ace-text").all_text_contents()
    expect(page.locator("#pinned")).to_have_count(0)
    page.locator("#pin").click()
    pinned = page.locator("#pinned .ace-text")
    expect(pinned).to_have_count(len(recorded))
    assert pinned.all_text_contents() == recorded
    expect(page.locator("#pin-words")).to_contain_text("the new answers appear above")
    page.locator("#prompt textarea").fill("Hello there")
    page.locator("#run").click()
    expect(page.locator("#pin-words")).to_contain_text("From the pinned run to the one above")
    expect(page.locator("#pin-words")).to_contain_text(RUN.prompt)
    expect(page.locator("#pin-words")).to_contain_text("model")
    assert pinned.all_text_contents() == recorded
    assert page.locator("#answers .ace-text").all_text_contents() != recorded
    tops = [page.locator(f"#{part} .ace-column").evaluate_all("all => all.map((one) => one.getBoundingClientRect().x)")
            for part in ("answers", "pinned")]  # fmt: skip
    assert tops[0] == tops[1], "arm below arm"
    one = read_gallery()[2]
    page.locator("#recording input").click()
    page.get_by_role("option", name=one.title).click()
    page.locator("#replay").click()
    expect(page.locator("#pin-words")).not_to_contain_text("model")
    page.locator("#unpin").click()
    expect(page.locator("#pinned")).to_have_count(0)
    expect(page.locator("#unpin")).to_have_count(0)
