"""Every tab, light and dark, by axe-core; method colours by arithmetic.

axe-core (MPL-2.0) is not kept here: npm fetches it once, and without npm or its registry these tests are skipped.
"""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_directions, tiny_model
from playwright.sync_api import Browser, Page, expect
from test_plots import contrast

from ace_core.host import ModelHost
from ace_core.plots import CLASS_SCALE, METHOD_COLOURS
from ace_core.ui import build_page, load_recorded
from browsing import in_browser, opened_browser, served

AXE = "4.14.1"
PATIENCE = 240_000  # milliseconds, for a busy machine
THEMES = ("light", "dark")
GRADIOS_OWN = {
    # "Drop File Here - or - Click to Upload" is read as "Click to upload or drop files"
    ("label-content-name-mismatch", ".upload-container"),
}
"""Rule and element of faults in Gradio's components that a page can't mend."""

FIND = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations.map((one) => ({
    rule: one.id, impact: one.impact, places: one.nodes.map(({ target, html, failureSummary }) => [
        target.flat().join(' '), html.slice(0, 200), failureSummary]) }))"""


@pytest.fixture(scope="module")
def axe(pytestconfig: pytest.Config) -> str:
    """The checker's source."""
    cache = pytestconfig.cache
    folder = Path(str(cache.mkdir("axe-core"))) if cache is not None else Path("axe-core")
    file = folder / f"axe-core-{AXE}.tgz"
    if not file.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm on this machine: install it to fetch axe-core")
        asked = [npm, "pack", f"axe-core@{AXE}", "--silent", "--pack-destination", str(folder)]
        try:
            subprocess.run(asked, check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"axe-core could not be fetched from the npm registry ({type(error).__name__})")
    with tarfile.open(file) as packed:
        source = packed.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode("utf-8")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The whole page with a tiny model."""
    host = ModelHost()
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    host.wait_ready(60)
    with served(build_page(host, load_recorded())) as url:
        yield url
    host.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser(PATIENCE) as chromium:
        yield chromium


@pytest.fixture(scope="module", params=THEMES)
def page(browser: Browser, address: str, axe: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=request.param)
    context.set_default_timeout(PATIENCE)
    fresh = context.new_page()
    fresh.goto(f"{address}?__theme={request.param}")
    expect(fresh.locator("#model-card .ace-card")).to_have_attribute("data-status", "ready")
    fresh.evaluate(axe)
    yield fresh
    context.close()


def faults(page: Page) -> list[str]:
    """Serious and critical ones on what is visible, those of Gradio's own left out."""
    found = []
    for one in page.evaluate(FIND):
        for target, html, summary in one["places"]:
            if one["impact"] in ("serious", "critical") and (one["rule"], target) not in GRADIOS_OWN:
                found.append(f"{one['rule']} at {target}: {summary}\n    {html}")
    return found


def opened(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.wait_for_timeout(1000)  # plots are drawn a little later than shown


@pytest.mark.slow
@in_browser
def test_compare_has_no_serious_fault_even_with_everything_open(page: Page) -> None:
    opened(page, "Compare")
    page.locator("#pin").click()
    expect(page.locator("#pinned .ace-column").first).to_be_visible()
    for name in ("Sampling", "Share and reproduce"):
        page.get_by_role("button", name=name).click()
    page.locator("#layers-read").click()
    expect(page.locator("#layers-status .ace-status")).to_have_attribute("data-kind", "done")
    page.locator("#layers-plot").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#layers-plot .ace-plot').data?.[0]?.type === 'heatmap'")
    assert faults(page) == []


@pytest.mark.slow
@in_browser
@pytest.mark.parametrize("tab", ["Directions", "Sweep", "Geometry"])
def test_a_tab_has_no_serious_fault(page: Page, tab: str) -> None:
    opened(page, tab)
    assert faults(page) == []


@pytest.mark.slow
@in_browser
def test_no_lesson_has_a_serious_fault(page: Page) -> None:
    opened(page, "Learn")
    steps = page.locator(".ace-learn-steps button")
    for step in range(steps.count()):
        steps.nth(step).click()
        lesson = page.locator(f"#lesson-{step + 1}")
        lesson.locator(".ace-question input").first.check()
        page.wait_for_timeout(300)
        assert faults(page) == [], f"lesson {step + 1}"


@pytest.mark.slow
@in_browser
def test_planted_faults_are_found(page: Page) -> None:
    page.evaluate("""() => {
        const box = document.createElement('div');
        box.id = 'planted';
        box.innerHTML = '<p style="color:#888;background:#999">faint</p><button></button>';
        document.body.append(box);
    }""")
    found = faults(page)
    page.evaluate("document.querySelector('#planted').remove()")
    assert sorted(one.partition(" ")[0] for one in found) == ["button-name", "color-contrast"]


@pytest.mark.parametrize("background", ["#ffffff", "#f9fafb", "#0b0f19", "#14171d", "#1b1f27"])
def test_method_and_class_colours_stand_out_from_every_background(background: str) -> None:
    for name, colour in METHOD_COLOURS.items():
        assert contrast(colour, background) >= 3, name
    assert contrast("#9ca3af", "#ffffff") < 3, "a faint grey would not"
    assert len(set(CLASS_SCALE)) == 2


DEUTERANOPE = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
PROTANOPE = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
"""Linear RGB as seen without green or without red cones (Machado et al. 2009, severity 1)."""


def lab(colour: str, seen: tuple[tuple[float, ...], ...]) -> tuple[float, float, float]:
    """CIE Lab of a colour as somebody sees it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    red, green, blue = (min(1, max(0, sum(m * c for m, c in zip(row, linear, strict=True)))) for row in seen)
    white = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in white)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("seen", [DEUTERANOPE, PROTANOPE], ids=["deuteranope", "protanope"])
def test_methods_stay_apart_for_the_colour_blind(seen: tuple[tuple[float, ...], ...]) -> None:
    def apart(one: str, other: str) -> float:
        return math.dist(lab(one, seen), lab(other, seen))

    pairs = {pair: apart(*pair) for pair in itertools.combinations(METHOD_COLOURS.values(), 2)}
    assert min(pairs.values()) > 14, min(pairs, key=lambda pair: pairs[pair])
    assert apart("#6B7280", "#B5518B") < 14, "a grey and a rose that look alike"


@pytest.mark.slow
@in_browser
def test_every_button_of_the_page_explains_itself(page: Page) -> None:
    opened(page, "Compare")
    for tab in ("Compare", "Directions", "Sweep"):
        opened(page, tab)
        buttons = page.locator("button[id]:not(.ace-chip):visible").all()
        assert len(buttons) > 3
        for button in buttons:
            button.dispatch_event("pointerover")
            name = button.get_attribute("id") or ""
            assert button.get_attribute("title") or name.startswith("component-"), name
