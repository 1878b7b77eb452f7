"""A prompt's tokens on the geometry tab: what the handler says, and what a real browser shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model
from playwright.sync_api import Browser, Locator, Page, expect

import ace_core as ace
from ace_core import geometry
from ace_core.activations import recording
from ace_core.decoding import Decoding
from ace_core.host import ModelHost
from ace_core.inspecting.plane import GEOMETRY, Plane, build_plane, read_plane, write_plane
from ace_core.methods import ACE, Addition, Method
from ace_core.models import ChatModel
from ace_core.policy import RECORDED_ONLY, Policy
from ace_core.runs import Run
from ace_core.ui import build_page, load_recorded
from ace_core.ui.geometry import tab as geometry_tab
from ace_core.ui.geometry.tokens import MOST, TokensReader
from ace_core.ui.handlers import Handlers
from browsing import complaints_of, in_browser, opened_browser, served

HOSTILE = '<img src=x onerror="window.pwned = true">${window.pwned = true}{{value}}'
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
PATIENCE = 120_000  # milliseconds, for a busy machine


def expected(model: ChatModel, plane: Plane, prompt: str) -> np.ndarray:
    """Where the tokens lie, from recorded block outputs, ``(tokens, 2)``."""
    decoding = Decoding(model.network, [model.encode(prompt)], model.pad_id, model.device)
    with torch.inference_mode(), recording(model.blocks, slice(None)) as seen:
        decoding.prefill()
    return plane.project(seen[plane.block][0].float().numpy())


def edited(plane: Plane, places: np.ndarray, method: Method) -> np.ndarray:
    """Coordinates after an edit by the engine, whose direction is the first of two axes here."""
    remove, add = method.affine(plane.mean_harmless[0], plane.mean_harmful[0])
    points, unit = torch.tensor(places)[None].float(), torch.tensor([1.0, 0.0])
    found = geometry.apply_edit(points, unit, torch.tensor([remove]).float(), torch.tensor([add]).float())
    return (found[0, :, 0].double().numpy() - plane.mean_harmless[0]) / plane.gap


def recorded(prompt: str) -> Run:
    run = load_recorded()
    assert run is not None
    return replace(run, prompt=prompt)


@pytest.fixture(scope="module")
def tiny_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.json"
    write_plane(build_plane(tiny_model("llama"), tiny_directions("llama"), HARMLESS, HARMFUL), path)
    return path


def hosted(policy: Policy | None = None, family: str = "llama") -> ModelHost:
    host = ModelHost(policy=policy or Policy())
    if host.policy.runs:
        host.adopt(tiny_model(family), tiny_directions(family))
        host.wait_ready(60)
    return host


@pytest.fixture(scope="module")
def host() -> Iterator[ModelHost]:
    host = hosted()
    yield host
    host.close()


def answers(handlers: Handlers, path: Path) -> list[dict[str, Any]]:
    """What the handler tells the page, one after the other."""
    data = geometry_tab.load_map(path)
    assert data is not None
    request: Any = SimpleNamespace(session_hash="a")
    said = list(TokensReader(handlers, data, path).put(request))
    assert not any("<" in value for value in said)
    return [json.loads(value)["put"] for value in said]


# Without a browser


@pytest.mark.parametrize("policy", [Policy(), Policy(work=False, files=False)])
def test_tokens_of_the_prompt_lie_where_the_model_has_them(tiny_map: Path, policy: Policy) -> None:
    host, plane = hosted(policy), read_plane(tiny_map)
    handlers = Handlers(host, recorded(HARMLESS[0]), 3)
    try:
        *_, example = answers(handlers, tiny_map)
        handlers.sessions.get("a").run = replace(recorded(HARMFUL[0]), recorded=False)
        *_, own = answers(handlers, tiny_map)
    finally:
        host.close()
    for answer, prompt, whose in ((example, HARMLESS[0], "recorded example"), (own, HARMFUL[0], "your last run")):
        assert answer["kind"] == "done" and whose in answer["text"] and prompt in answer["text"]
        found = np.array([[token["x"], token["y"]] for token in answer["tokens"]])
        wanted = expected(tiny_model("llama"), plane, prompt)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * plane.gap)
    last = own["tokens"][-1]
    np.testing.assert_allclose([last["x"], last["y"]], plane.harmful[0], atol=1e-3 * plane.gap)
    assert example["key"] != own["key"]


def test_only_the_last_tokens_of_a_long_prompt_are_shown(tiny_map: Path, host: ModelHost) -> None:
    prompt = "a cat and a dog " * 30
    *_, answer = answers(Handlers(host, recorded(prompt), 3), tiny_map)
    wanted = expected(tiny_model("llama"), read_plane(tiny_map), prompt)
    assert len(wanted) > MOST == len(answer["tokens"])
    assert answer["text"].startswith(f"The last {MOST} of {len(wanted)} tokens")
    np.testing.assert_allclose([token["y"] for token in answer["tokens"]], wanted[-MOST:, 1], rtol=1e-3, atol=1e-3)


def test_one_sentence_says_what_is_in_the_way(tiny_map: Path, host: ModelHost, tmp_path: Path) -> None:
    def refusal(handlers: Handlers, path: Path = tiny_map) -> str:
        *_, answer = answers(handlers, path)
        assert answer["kind"] == "error" and "tokens" not in answer
        return answer["text"]

    run, directions = recorded(HARMLESS[0]), tiny_directions("llama")
    assert "run one on the Compare tab" in refusal(Handlers(host, None, 3))
    assert "This map belongs to SmolLM2-135M-Instruct-refusing, and llama is loaded" in refusal(
        Handlers(host, run, 3), GEOMETRY
    )
    handlers = Handlers(host, run, 3)
    swapped = replace(directions, mean_harmless=directions.mean_harmful, mean_harmful=directions.mean_harmless)
    handlers.sessions.get("a").use(swapped, "mine", host.state.info)
    assert "“Back to shipped”" in refusal(handlers)
    handlers.sessions.get("a").use(None)
    *_, fine = answers(handlers, tiny_map)
    assert fine["kind"] == "done"
    damaged = tmp_path / "map.json"
    damaged.write_text(json.dumps({**json.loads(tiny_map.read_text("utf-8")), "unit": "AAAA"}))
    assert "make it again" in refusal(handlers, damaged)
    other = ModelHost()
    other.adopt(tiny_model("llama"), swapped)
    other.wait_ready(60)
    closed, empty = hosted(Policy(runs=False)), ModelHost()
    try:
        assert "vectors of the loaded model are not those" in refusal(Handlers(other, run, 3))
        assert refusal(Handlers(closed, run, 3)) == RECORDED_ONLY
        # nothing is being loaded, so there is nothing to wait for
        other.load("/nowhere")
        assert "nowhere" in refusal(Handlers(other, run, 3))
    finally:
        for one in (other, closed, empty):
            one.close()


def test_the_page_gets_no_axes(tiny_map: Path) -> None:
    data = geometry_tab.load_map(GEOMETRY)
    assert data is not None and not {"unit", "principal"} & data.keys()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser(PATIENCE) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def address(tiny_map: Path, host: ModelHost) -> Iterator[str]:
    """The tab alone, with a tiny model that reads a hostile prompt."""
    handlers = Handlers(host, recorded(HOSTILE), 3)
    with gr.Blocks(analytics_enabled=False, fill_width=True) as blocks:
        geometry_tab.build(tiny_map, handlers)
    with served(blocks) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page on the tab. It must not complain."""
    options = {"viewport": {"width": 1440, "height": 900}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    fresh = context.new_page()
    complaints = complaints_of(fresh)
    fresh.goto(address)
    expect(tab(fresh).locator("svg")).to_be_visible()
    yield fresh
    context.close()
    assert complaints == []


def tab(page: Page) -> Locator:
    return page.locator(".ace-geo:visible")


def stars(page: Page) -> Locator:
    return tab(page).locator(".ace-geo-token")


def put(page: Page) -> None:
    tab(page).locator("[data-tokens=put]").click()
    expect(tab(page).locator("[data-slot=tokens]")).to_have_attribute("data-kind", "done")


def pick(page: Page, method: str, alpha: float) -> None:
    tab(page).locator(f"input[name=ace-geo-method][value={method}]").check()
    tab(page).locator("input[type=range]").fill(str(alpha))


def places(page: Page) -> np.ndarray:
    """Positions of the tokens after the edit as the page has them, ``(tokens, 2)``."""
    add = float(tab(page).locator(".ace-geo-cloud").get_attribute("data-add") or "nan")
    found = stars(page).evaluate_all("all => all.map(({dataset: d}) => [d.x, d.y])")
    return np.array(found, np.float64) + np.array([add, 0.0])


def check_edits(page: Page, plane: Plane, wanted: np.ndarray) -> None:
    """The tokens lie where the engine has them, before and after edits, and leave the map again."""
    points = tab(page).locator(".ace-geo-cloud > path")
    before = points.count()
    put(page)
    assert points.count() == before and stars(page).count() == len(wanted)
    unedited = places(page)
    np.testing.assert_allclose(unedited, wanted, rtol=1e-3, atol=1e-3 * plane.gap)
    # the engine's float32 rounds a token that lies many class gaps away, as the first one does
    slack = np.maximum(1e-6, np.finfo(np.float32).eps * np.abs(unedited[:, 0]) / plane.gap)
    for alpha in (-1.0, 0.0, 0.35, 2.0):
        pick(page, "ace", alpha)
        found = (places(page)[:, 0] - plane.mean_harmless[0]) / plane.gap
        np.testing.assert_allclose(found, alpha, atol=1e-6)
        assert (np.abs(found - edited(plane, unedited, ACE(alpha))) <= slack).all()
        np.testing.assert_array_equal(places(page)[:, 1], unedited[:, 1])
    pick(page, "addition", 0.5)
    found = (places(page)[:, 0] - plane.mean_harmless[0]) / plane.gap
    np.testing.assert_allclose(found, edited(plane, unedited, Addition(0.5)), atol=1e-5)
    assert np.ptp(found) > 0.01, "only ACE brings them to one line"
    tab(page).locator("[data-tokens=remove]").click()
    expect(stars(page)).to_have_count(0)
    expect(tab(page).locator("[data-tokens=remove]")).to_be_hidden()
    assert tab(page).locator("[data-slot=token]").inner_text() == ""


@in_browser
@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True)
def test_tokens_move_as_the_engine_moves_them(page: Page, tiny_map: Path) -> None:
    plane = read_plane(tiny_map)
    check_edits(page, plane, expected(tiny_model("llama"), plane, HOSTILE))
    put(page)
    pick(page, "ace", 0.5)
    expect(stars(page)).not_to_have_count(0)
    middles = "all => all.map((one) => { const b = one.getBoundingClientRect(); return b.x + b.width / 2; })"
    across = stars(page).evaluate_all(middles)
    line = tab(page).locator(".ace-geo-target").evaluate_all(middles)
    np.testing.assert_allclose(across, line[0], atol=1.0)
    moving = "tab => tab.querySelector('input[value=ablation]').click() ?? tab.getAnimations({subtree: true}).length"
    assert tab(page).evaluate(moving) == 0


@in_browser
def test_a_token_is_read_by_pointing_and_with_the_keyboard(page: Page, tiny_map: Path) -> None:
    put(page)
    words = tab(page).locator("[data-slot=token]")
    count = stars(page).count()
    expect(words).to_contain_text(f"Token {count} of {count}")
    assert tab(page).locator(".ace-geo-token[tabindex='0']").count() == 1, "one stop for the keyboard"
    tab(page).locator(".ace-geo-token[tabindex='0']").focus()
    page.keyboard.press("Home")
    expect(words).to_contain_text(f"Token 1 of {count}")
    page.keyboard.press("ArrowRight")
    expect(words).to_contain_text(f"Token 2 of {count}")
    assert page.evaluate("document.activeElement.dataset.token") == "1"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == words.inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(words).to_contain_text(f"Token 1 of {count}")
    pick(page, "ace", 0.25)
    expect(words).to_contain_text("0.25 after")
    page.keyboard.press("Home")
    expect(words).to_contain_text("−1.00 after")
    tab(page).locator("[data-token='2']").dispatch_event("pointerover")
    expect(words).to_contain_text(f"Token 3 of {count}")
    there, width = places(page), tab(page).locator("svg").get_attribute("width") or ""
    page.set_viewport_size({"width": 1000, "height": 800})
    expect(tab(page).locator("svg")).not_to_have_attribute("width", width)
    expect(stars(page)).to_have_count(count)
    np.testing.assert_array_equal(places(page), there)
    expect(tab(page).locator(".ace-geo-token[data-current]")).to_have_attribute("data-token", "2")


@in_browser
@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_on_a_phone_a_finger_finds_a_token_and_nothing_jumps(page: Page) -> None:
    def tops() -> list[int]:
        names = "['.ace-geo-plot', '.ace-geo-said', '[data-save]', '.ace-geo-letters']"
        return tab(page).evaluate(f"tab => {names}.map((name) => tab.querySelector(name).offsetTop)")

    before = tops()
    put(page)
    words = tab(page).locator("[data-slot=token]")
    expect(words).to_contain_text("Token")
    assert tops() == before
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    stars(page).last.scroll_into_view_if_needed()
    tab(page).locator(".ace-geo-token").first.focus()
    page.keyboard.press("Home")
    expect(words).to_contain_text("Token 1 of")
    box = stars(page).last.bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    expect(words).not_to_contain_text("Token 1 of")


@in_browser
def test_token_text_is_only_text(page: Page) -> None:
    put(page)
    expect(tab(page).locator("[data-slot=tokens]")).to_contain_text("<img src=x")
    tab(page).locator(".ace-geo-token[tabindex='0']").focus()
    seen = set()
    for _ in range(stars(page).count()):
        page.keyboard.press("ArrowLeft")
        seen.add(tab(page).locator("[data-slot=token]").inner_text().partition("“")[2].partition("”: ")[0])
    assert any("<" in text for text in seen) and any("$" in text or "{" in text for text in seen)
    assert page.evaluate("window.pwned") is None and tab(page).locator("img").count() == 0


@pytest.mark.slow
@pytest.mark.embedded
@in_browser
def test_the_tokens_of_a_run_on_the_real_page(browser: Browser, embedded: ChatModel) -> None:
    host, plane, prompt = ModelHost(), read_plane(GEOMETRY), "How do I pick a lock?"
    host.adopt(embedded, ace.load_directions(embedded))
    host.wait_ready(60)
    with served(build_page(host, load_recorded())) as url:
        fresh = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        fresh.set_default_timeout(PATIENCE)
        complaints = complaints_of(fresh)
        fresh.goto(url)
        expect(fresh.locator("#model-card .ace-card")).to_have_attribute("data-status", "ready")
        fresh.locator("#prompt textarea").fill(prompt)
        fresh.get_by_role("button", name="Sampling").click()
        fresh.locator("#max-new-tokens input[type=number]").fill("4")
        fresh.locator("#max-new-tokens input[type=number]").press("Tab")
        fresh.locator("#run").click()
        expect(fresh.locator("#status .ace-status")).to_have_attribute("data-kind", "done")
        fresh.get_by_role("tab", name="Geometry").click()
        expect(tab(fresh).locator("svg")).to_be_visible()
        check_edits(fresh, plane, expected(embedded, plane, prompt))
        fresh.close()
    host.close()
    assert complaints == []
