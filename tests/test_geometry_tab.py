"""The geometry tab in a real browser, served without any model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect

from ace_core import geometry
from ace_core.inspecting.plane import Plane, read_plane
from ace_core.methods import ACE, REFERENCES, Method, parse_method
from ace_core.ui.geometry import tab as geometry_tab
from browsing import complaints_of, in_browser, opened_browser, served

ASSET = Path(__file__).resolve().parent.parent / "assets" / "geometry.json"
HOSTILE = '<img src=x onerror="window.pwned = true">${window.pwned = true}{{value}}'
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
METHODS = ("baseline", "addition", "ablation", "affine_ablation", "ace")
POINTS = ("harmless", "origin", "pooled", "harmful")
MOVING = """tab => {
    tab.querySelector('input[value=ablation]').click();
    return tab.getAnimations({ subtree: true }).filter((one) => one.transitionProperty === 'transform').length;
}"""


@pytest.fixture(scope="module")
def plane() -> Plane:
    return read_plane(ASSET)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tab between others; at the end one with a hostile file and one without any."""
    folder = tmp_path_factory.mktemp("maps")
    hostile = folder / "hostile.json"
    hostile.write_text(json.dumps({**json.loads(ASSET.read_text("utf-8")), "model": HOSTILE}), "utf-8")
    with gr.Blocks(analytics_enabled=False, fill_width=True) as blocks:
        for name, path in (("Other", None), ("Geometry", ASSET), ("Hostile", hostile), ("Missing", folder / "none")):
            with gr.Tab(name, id=name.lower()):
                gr.HTML("<p>another tab</p>") if path is None else geometry_tab.build(path)
    with served(blocks) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page on the tab. It must not complain, talk to anyone but the server, or ask the server to compute."""
    options = {"viewport": {"width": 1440, "height": 900}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    fresh = context.new_page()
    complaints = complaints_of(fresh)
    calls: list[str] = []
    fresh.on("request", lambda call: calls.append(call.url))
    fresh.goto(address + ("?__theme=dark" if options.get("color_scheme") == "dark" else ""))
    open_tab(fresh, "Geometry")
    yield fresh
    context.close()
    foreign = [url for url in calls if not url.startswith((address, "data:", "blob:"))]
    assert (complaints, foreign, [url for url in calls if "queue/join" in url or "/run/" in url]) == ([], [], [])


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    expect(tab(page).locator("svg")).to_be_visible()


def tab(page: Page) -> Locator:
    return page.locator(".ace-geo:visible")


def pick(page: Page, method: str, reference: str = "harmless", alpha: float | None = None) -> None:
    tab(page).locator(f"input[name=ace-geo-method][value={method}]").check()
    if method == "ace":
        tab(page).locator(f"input[name=ace-geo-reference][value={reference}]").check()
    if alpha is not None:
        tab(page).locator("input[type=range]").fill(str(alpha))


def said(page: Page) -> Locator:
    return tab(page).locator(".ace-geo-said")


def shown(page: Page) -> np.ndarray:
    """Positions of all prompts after the edit as the page has them, ``(n, 2)``, harmless ones first."""
    cloud = tab(page).locator(".ace-geo-cloud")
    found = cloud.locator("path").evaluate_all("all => all.map(({dataset: d}) => [d.x, d.y])")
    add = float(cloud.get_attribute("data-add") or "nan")
    return np.array(found, np.float64) + np.array([add, 0.0])


def engine(plane: Plane, method: Method) -> np.ndarray:
    """The same by the engine, whose edit is along the first of two axes here."""
    remove, add = method.affine(plane.mean_harmless[0], plane.mean_harmful[0])
    points = torch.tensor(np.concatenate([plane.harmless, plane.harmful]))[None].float()
    unit = torch.tensor([1.0, 0.0])
    return geometry.apply_edit(points, unit, torch.tensor([remove]).float(), torch.tensor([add]).float())[0].numpy()


def named(method: str, alpha: float, reference: str) -> Method:
    if method == "ace":
        return parse_method(f"ace:{alpha}@{reference}")
    return parse_method(f"addition:{alpha}" if method == "addition" else method)


CASES = [
    ("baseline", 0.0, "harmless"),
    ("addition", -1.0, "harmless"),
    ("addition", 0.35, "harmless"),
    ("ablation", 0.0, "harmless"),
    ("affine_ablation", 0.0, "harmless"),
    *(
        ("ace", alpha, point)
        for alpha in (-1.0, 0.0, 0.5, 2.0)
        for point in ("harmless", "origin", "pooled", "harmful")
    ),
]


def test_numbers_of_every_edit_are_the_engines() -> None:
    low, high = -3.0, 5.0
    for edit in geometry_tab.edits(low, high):
        for alpha in (-1.0, 0.0, 0.3, 2.0) if edit["scaled"] else (0.0,):
            method = named(edit["method"], alpha, edit["reference"])
            assert (edit["remove"], edit["base"] + edit["slope"] * alpha) == pytest.approx(method.affine(low, high))
    points = [edit["reference"] for edit in geometry_tab.edits(low, high) if edit["method"] == ACE.name]
    assert sorted(points) == sorted(set(REFERENCES) - {"third"})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"mean_harmless": [0, 0]}'])
def test_a_damaged_map_is_no_map(tmp_path: Path, text: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    assert geometry_tab.load_map(path) is None
    good = json.loads(ASSET.read_text("utf-8"))
    path.write_text(json.dumps({**good, "harmful": [["<b>", 1.0]]}))
    assert geometry_tab.load_map(path) is None
    path.write_text(json.dumps({**good, "mean_harmful": good["mean_harmless"]}))
    assert geometry_tab.load_map(path) is None


@in_browser
def test_it_shows_what_the_engine_computes(page: Page, plane: Plane) -> None:
    seen: list[np.ndarray] = []
    for method, alpha, reference in CASES:
        pick(page, method, reference, alpha if method in ("addition", "ace") else None)
        found, wanted = shown(page), engine(plane, named(method, alpha, reference))
        np.testing.assert_allclose(found, wanted, atol=1e-3, err_msg=f"{method} {alpha} {reference}")
        seen.append(wanted)
    # the comparison can fail: all cases differ, but for ACE at 0, which is an ablation, and at equal coordinates
    different = sum(not np.allclose(a, b, atol=1e-3) for a, b in itertools.combinations(seen, 2))
    assert different > 0.9 * len(CASES) * (len(CASES) - 1) / 2
    wrong = [("ace", 0.5, "pooled"), ("ace", 0.55, "harmless"), ("addition", 0.5, "harmless")]
    pick(page, "ace", "harmless", 0.5)
    for method, alpha, reference in wrong:
        assert not np.allclose(shown(page), engine(plane, named(method, alpha, reference)), atol=1e-3)


@in_browser
@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True)
def test_marks_are_drawn_where_the_numbers_say(page: Page, plane: Plane) -> None:
    pick(page, "addition", alpha=0.5)
    middles = """all => all.map((mark) => {
        const box = mark.getBoundingClientRect();
        const add = Number(mark.closest('.ace-geo-cloud')?.dataset.add ?? 0);
        return [box.x + box.width / 2, Number(mark.dataset.x) + add];
    })"""
    means = tab(page).locator(".ace-geo-mean").evaluate_all(middles)
    (left, low), (right, high) = means
    assert (low, high) == pytest.approx((plane.mean_harmless[0], plane.mean_harmful[0])) and right - left > 50
    for kind in ("harmless", "harmful"):
        marks = tab(page).locator(f".ace-geo-cloud [data-class={kind}]").evaluate_all(middles)
        pixels, numbers = np.array(marks).T
        np.testing.assert_allclose(pixels, left + (numbers - low) / (high - low) * (right - left), atol=1.0)


@in_browser
def test_words_say_what_happened(page: Page, plane: Plane) -> None:
    expect(said(page)).to_contain_text("Nothing has moved")
    zero = -plane.mean_harmless[0] / plane.gap
    for method, reference, alpha, words in [
        ("affine_ablation", "", None, "Every prompt now sits at coordinate 0.00, the harmless mean."),
        ("ace", "harmless", 1, "Every prompt now sits at coordinate 1.00, the harmful mean."),
        ("ace", "pooled", 0, "coordinate 0.50, right on the decision line"),
        ("ace", "harmful", -1, "coordinate 0.00, the harmless mean"),
        ("ablation", "", None, f"coordinate {zero:.2f}".replace("-", "−") + ", level with the origin"),
        ("addition", "", -1, "Both clouds slid 1.00 class gaps to the harmless side: "),
    ]:
        pick(page, method, reference, alpha)
        expect(said(page)).to_contain_text(words)
    over = int((plane.harmful[:, 0] - plane.mean_harmless[0] > 1.5 * plane.gap).sum())
    expect(said(page)).to_contain_text(f"{over} of {len(plane.harmful)} harmful")
    assert said(page).get_attribute("aria-live") == "polite"


@in_browser
def test_ablation_public_code_and_ace_are_one_family(page: Page) -> None:
    pick(page, "ace", "pooled", 0.25)
    cells = tab(page).locator("[data-family]")
    assert cells.nth(0).inner_text() == "0.75" and cells.nth(2).inner_text() == "0.25"
    pick(page, "ablation")
    expect(tab(page).locator("[data-family=origin]")).to_have_text("0.00")
    ablated = shown(page)
    pick(page, "ace", "origin", 0)
    np.testing.assert_allclose(shown(page), ablated, atol=1e-9)
    expect(tab(page).locator("[data-slot=family]")).to_contain_text("exactly directional ablation")
    pick(page, "addition", alpha=1)
    assert set(cells.all_inner_texts()) == {"–"}


@in_browser
def test_the_formula_shows_the_numbers(page: Page, plane: Plane) -> None:
    pick(page, "ace", "harmless", 0.5)
    formula = tab(page).locator(".ace-geo-formula")
    low, gap = plane.mean_harmless[0], plane.gap
    number = {name: f"{value:.1f}".replace("-", "−") for name, value in (("low", low), ("g", gap))}
    expect(formula).to_contain_text(f"s = μ⁻·u + α·g = {number['low']} + 0.50·{number['g']}")
    add = f"{low + 0.5 * gap:.1f}".replace("-", "−")
    assert formula.locator("[data-number=add]").inner_text() == add
    assert formula.locator("[data-number=remove]").inner_text() == "1"
    colour = "node => getComputedStyle(node).borderBottomColor"
    marked = formula.locator("[data-number=add]").evaluate(colour)
    mark = tab(page).locator(".ace-geo-target").evaluate("node => getComputedStyle(node).stroke")
    assert marked == mark == "rgb(0, 158, 115)"
    pick(page, "addition")
    assert formula.locator("[data-number=add]").evaluate(colour) == "rgb(213, 94, 0)"


@in_browser
def test_your_point_moves_with_the_keyboard(page: Page) -> None:
    pick(page, "ace", "harmless", 0.25)
    handle, line = tab(page).locator(".ace-geo-handle"), tab(page).locator(".ace-geo-probe")
    handle.focus()
    page.keyboard.press("Home")
    expect(line).to_contain_text("coordinate 0.00 before, 0.25 after")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    expect(line).to_contain_text("coordinate −0.10 before, 0.25 after")
    assert handle.get_attribute("aria-valuenow") == "-0.10"
    assert "0.25 after" in (handle.get_attribute("aria-valuetext") or "")
    before = float(handle.get_attribute("data-y") or "nan")
    page.keyboard.press("ArrowUp")
    assert float(handle.get_attribute("data-y") or "nan") > before
    after = tab(page).locator(".ace-geo-after")
    assert after.get_attribute("data-y") == handle.get_attribute("data-y")
    for _ in range(200):
        page.keyboard.press("Shift+ArrowLeft")
    assert handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemin"), "never leaves the map"
    # the coefficient and the methods answer to the keyboard as well
    tab(page).locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(said(page)).to_contain_text("coordinate 0.30")
    tab(page).locator("input[value=affine_ablation]").focus()
    page.keyboard.press("ArrowUp")
    assert tab(page).get_attribute("data-method") == "ablation"


@in_browser
def test_your_point_is_dragged_with_the_mouse(page: Page) -> None:
    pick(page, "addition", alpha=-0.5)
    start, end = drag_ends(page)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=3)
    page.mouse.up()
    expect(tab(page).locator(".ace-geo-probe")).to_contain_text("coordinate 0.00 before, −0.50 after")
    page.mouse.move(end[0] + 80, end[1])
    expect(tab(page).locator(".ace-geo-probe")).to_contain_text("coordinate 0.00 before")


_SCROLL_SETTLES = """() => new Promise((done) => {
    let last = -1, still = 0;
    (function look() {
        still = window.scrollY === last ? still + 1 : 0;
        last = window.scrollY;
        if (still > 20) done(); else requestAnimationFrame(look);
    })();
})"""


@in_browser
@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_your_point_is_dragged_with_a_finger(page: Page) -> None:
    pick(page, "ace", "harmless", 0.5)
    tab(page).locator(".ace-geo-plot").scroll_into_view_if_needed()
    page.evaluate(_SCROLL_SETTLES)
    start, end = drag_ends(page)
    scrolled = page.evaluate("window.scrollY")
    finger = page.context.new_cdp_session(page)
    for kind, points in [("touchStart", [start]), ("touchMove", [end]), ("touchEnd", [])]:
        touches = [{"x": x, "y": y} for x, y in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    expect(tab(page).locator(".ace-geo-probe")).to_contain_text("coordinate 0.00 before, 0.50 after")
    assert page.evaluate("window.scrollY") == scrolled


@in_browser
@pytest.mark.parametrize("page", [{}, PHONE, {"viewport": {"width": 1100, "height": 800}}], indirect=True)
def test_it_fits_and_nothing_jumps(page: Page) -> None:
    width = page.viewport_size["width"] if page.viewport_size else 0
    boxes = set()
    for method, alpha in itertools.product(METHODS, (-0.95, 0.5, 2)):
        for reference in ("harmless", "pooled") if method == "ace" else ("harmless",):
            pick(page, method, reference)
            if method in ("addition", "ace"):
                pick(page, method, reference, alpha)
            page.wait_for_timeout(150)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            places = "tab => ['.ace-geo-plot', '.ace-geo-said', '.ace-geo-family'].map(n => tab.querySelector(n))"
            box = tab(page).evaluate(f"tab => ({places})(tab).map((n) => n.offsetTop).concat(tab.offsetHeight)")
            boxes.add(tuple(box))
    assert len(boxes) == 1
    assert tab(page).locator("svg text").evaluate_all(
        """all => all.filter((text) => {
            const [box, frame] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
            return box.width && (box.left < frame.left || box.right > frame.right);
        }).map((text) => text.textContent)"""
    ) == []  # fmt: skip


@in_browser
@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_it_is_dark_when_asked(page: Page) -> None:
    fill = tab(page).locator("svg text").first.evaluate("text => getComputedStyle(text).fill")
    ground = tab(page).locator(".ace-geo-plot").evaluate("plot => getComputedStyle(plot).backgroundColor")
    assert (fill, ground) == ("rgb(209, 213, 219)", "rgb(20, 23, 29)")


@in_browser
def test_a_change_of_method_glides(page: Page, plane: Plane) -> None:
    assert tab(page).evaluate(MOVING) >= len(plane.harmful)


@in_browser
@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True)
def test_nothing_glides_where_motion_is_unwelcome(page: Page) -> None:
    assert tab(page).evaluate(MOVING) == 0


@in_browser
def test_it_is_as_it_was_after_a_look_at_another_tab(page: Page) -> None:
    pick(page, "ace", "pooled", 0.5)
    there = shown(page)
    page.get_by_role("tab", name="Other").click()
    expect(page.get_by_text("another tab")).to_be_visible()
    page.set_viewport_size({"width": 1000, "height": 800})
    open_tab(page, "Geometry")
    np.testing.assert_array_equal(shown(page), there)
    expect(said(page)).to_contain_text("coordinate 1.00")


@in_browser
def test_a_models_name_is_only_text(page: Page) -> None:
    open_tab(page, "Hostile")
    expect(tab(page)).to_contain_text(HOSTILE)
    assert page.evaluate("window.pwned") is None and tab(page).locator("img").count() == 0


@in_browser
def test_without_a_map_the_tab_says_so(page: Page) -> None:
    page.get_by_role("tab", name="Missing").click()
    expect(page.locator(".ace-geo-missing")).to_contain_text("missing or damaged")


def drag_ends(page: Page) -> tuple[tuple[float, float], tuple[float, float]]:
    """From the middle of the handle to the harmless mean."""
    boxes = [tab(page).locator(name).bounding_box() for name in (".ace-geo-ring", ".ace-geo-mean[data-class=harmless]")]
    middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes if box]
    return middles[0], middles[1]


@in_browser
@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_the_picture_is_saved_as_it_looks(page: Page, kind: str, start: bytes) -> None:
    pick(page, "ace", "harmless", 0.5)
    at_rest = (
        "node => Promise.all(node.getAnimations({subtree: true}).map(animation => animation.finished)).then(() => 0)"
    )
    tab(page).evaluate(at_rest)
    with page.expect_download() as download:
        tab(page).locator(f"[data-save={kind}]").click()
    assert download.value.suggested_filename == f"geometry.{kind}"
    saved = download.value.path().read_bytes()
    assert saved.startswith(start)
    if kind == "svg":
        text = saved.decode()
        assert "var(" not in text and "ace-geo-" in text, "colours are in the file, not in the page's style sheet"
        where = tab(page).locator(".ace-geo-cloud path").first.evaluate("node => getComputedStyle(node).transform")
        assert f'transform="{where}"' in text
