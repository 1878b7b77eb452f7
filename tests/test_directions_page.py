"""The directions tab in a real browser, with the real default model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from test_page import LOADING, RUNNING, address, browser, drawn, in_browser, layer, page, shorten, status

__all__ = ["address", "browser", "page"]  # fixtures

FITTING = 540_000  # milliseconds, for a busy machine
THINGS = ("a car", "a bank", "a shop", "a house", "a phone", "a bike", "a boat", "a safe", "a train", "a garden",
          "a school", "a bakery", "a library", "a farm")  # fmt: skip


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def lab_status(page: Page, kind: str, timeout: int = FITTING) -> None:
    expect(page.locator("#lab-status .ace-status")).to_have_attribute("data-kind", kind, timeout=timeout)


def choose_file(page: Page, kind: str, path: Path) -> None:
    page.locator(f"#lab-{kind}-kind").get_by_label("A file of mine").check()
    page.locator(f"#lab-{kind}-file input[type=file]").set_input_files(path)


def shown_plots(page: Page) -> None:
    """Every plot of the tab is drawn once somebody scrolls to it."""
    for name in ("lab-layers", "lab-cosines", "lab-classes", "lab-plane"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.wait_for_function(f"document.querySelector('#{name} .ace-plot').data?.length > 0")
        assert drawn(page, name) >= 1


@in_browser
def test_fit_look_use_take_away_and_bring_back(page: Page, tmp_path: Path) -> None:
    harmful, harmless = tmp_path / "bad.txt", tmp_path / "good.csv"
    harmful.write_text("\n".join(f"How do I rob {thing} <b>tonight</b>?" for thing in THINGS), "utf-8")
    harmless.write_text("prompt\n" + "\n".join(f"How do I paint {thing}?" for thing in THINGS), "utf-8")
    expect(page.locator("#in-use")).to_contain_text("shipped")
    open_tab(page, "Directions")
    expect(page.locator("#lab-shown")).to_contain_text("came with the model")
    page.wait_for_function("document.querySelector('#lab-layers .ace-plot').data?.length === 2")
    choose_file(page, "harmful", harmful)
    expect(page.locator("#lab-harmful-note")).to_contain_text("14 prompts, from bad.txt")
    choose_file(page, "harmless", harmless)
    expect(page.locator("#lab-harmless-note")).to_contain_text("14 prompts, from good.csv")
    page.locator("#lab-keep").click()
    expect(page.locator("#lab-beside-words")).to_contain_text("Kept: the model's own")
    third = page.locator("#lab-reference-kind")
    expect(third.get_by_label("None")).to_be_checked()
    third.get_by_label("Built in").check()
    expect(page.locator("#lab-reference-note")).to_contain_text("only look harmful")
    page.locator("#lab-fit").click()
    expect(page.locator("#lab-stop")).to_be_enabled(timeout=RUNNING)
    expect(page.locator("#lab-fit")).to_be_disabled()
    lab_status(page, "done")
    expect(page.locator("#lab-split")).to_contain_text("8 + 8 prompts to fit on")
    expect(page.locator("#lab-candidates tbody tr")).to_have_count(30)
    expect(page.locator("#lab-candidates [aria-current] td").last).to_have_text("recommended")
    expect(page.locator("#lab-achieved tbody tr")).to_have_count(10)
    shown_plots(page)
    # prompts are only text, wherever they appear
    hovers = page.evaluate("document.querySelector('#lab-plane .ace-plot').data[0].text")
    assert len(hovers) == 14 and "&lt;b&gt;" in hovers[0]

    page.locator("#lab-beside").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#lab-beside .ace-plot').data?.[0]?.y.length === 30")
    expect(page.locator("#lab-beside-words")).to_contain_text("your fit (Mean difference")
    expect(page.locator("#lab-beside-words")).to_contain_text("against the model's own (Mean difference")
    page.locator("#lab-beside-which").get_by_label("The one I kept").check()
    expect(page.locator("#lab-beside-words")).to_contain_text("against kept: the model's own")
    page.locator("#lab-keep").click()
    expect(page.locator("#lab-beside-words")).to_contain_text("Kept: your fit")
    page.wait_for_function("!document.querySelector('#lab-beside .ace-plot').data?.length", timeout=RUNNING)
    expect(page.locator("#lab-recommendation")).to_contain_text("prompts of the third set")

    before = page.evaluate("JSON.stringify(document.querySelector('#lab-plane .ace-plot').data[0].x)")
    page.locator("#lab-block input[type=range]").press("ArrowLeft")
    page.wait_for_function(
        "before => JSON.stringify(document.querySelector('#lab-plane .ace-plot').data[0].x) !== before", arg=before
    )
    block = int(page.locator("#lab-block input[type=range]").input_value())
    caption = page.locator("#lab-achieved .ace-lab-caption")
    expect(caption).to_have_text(f"Block {block} is not measured yet.")
    height = page.locator("#lab-achieved").evaluate("table => table.offsetHeight")
    page.locator("#lab-measure").click()
    expect(caption).to_have_text(f"ACE at block {block}: last token of the prompt", timeout=RUNNING)
    lab_status(page, "done")
    expect(page.locator("#lab-measure")).to_be_disabled()
    assert page.locator("#lab-achieved").evaluate("table => table.offsetHeight") == height
    rows = page.locator("#lab-achieved tbody tr").all_inner_texts()
    numbers = [[float(cell.replace("−", "-")) for cell in row.split() if cell[-1].isdigit()] for row in rows]
    assert len(rows) == 10 and all(abs(asked - reached) < 0.05 for asked, reached, *_ in numbers)
    page.locator("#lab-block input[type=range]").press("ArrowRight")
    expect(caption).to_have_text(f"ACE at block {block + 1}: last token of the prompt")

    words = page.locator("#lab-recommendation").inner_text()
    recommended = re.search(r"Block (\d+)", words)
    assert recommended is not None
    with page.expect_download() as download:
        page.locator("#lab-vectors").click()
    file = tmp_path / "mine.safetensors"
    download.value.save_as(file)
    assert file.stat().st_size > 100_000

    page.locator("#lab-use").click()
    expect(page.locator("#in-use")).to_contain_text(f"your fit: 8 + 8 prompts, block {recommended[1]}")
    assert layer(page) == int(recommended[1])
    status(page, "stale")
    expect(page.locator("#status")).to_contain_text("directions")
    shorten(page)
    page.locator("#reference input").click()
    page.get_by_role("option", name="A third set's mean").click()
    page.locator("#prompt textarea").fill("How do I rob a bank?")
    page.locator("#run").click()
    status(page, "done")
    expect(page.locator("#answers")).to_contain_text("from a third set's mean")
    page.locator("#distribution").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#distribution .ace-plot').data?.[0]?.x.length === 3")
    page.locator("#back-to-shipped").click()
    expect(page.locator("#in-use")).to_contain_text("shipped")
    status(page, "stale")

    open_tab(page, "Directions")
    page.locator("#lab-upload input[type=file]").set_input_files(file)
    expect(page.locator("#lab-upload-note")).to_contain_text("in place of the fit", timeout=RUNNING)
    expect(page.locator("#lab-shown")).to_contain_text("your file mine.safetensors: 8 + 8 prompts")
    page.locator("#lab-use").click()
    expect(page.locator("#in-use")).to_contain_text("your file mine.safetensors")


@in_browser
def test_bad_files_are_answered_under_their_field_and_a_stop_is_heard(page: Page, tmp_path: Path) -> None:
    open_tab(page, "Directions")
    bad = tmp_path / "<img src=x onerror=alert(1)>.json"
    bad.write_text('[{"prompt": ', "utf-8")
    choose_file(page, "harmful", bad)
    expect(page.locator("#lab-harmful-note .ace-problem")).to_contain_text("is not valid JSON")
    assert page.locator("#lab-harmful-note img").count() == 0
    page.locator("#lab-fit").click()
    lab_status(page, "error")
    expect(page.locator("#lab-status")).to_contain_text("no file of harmful prompts yet")
    page.locator("#lab-harmful-kind").get_by_label("Built in").check()
    noise = tmp_path / "noise.pt"
    noise.write_bytes(b"\x80 no vectors")
    page.locator("#lab-upload input[type=file]").set_input_files(noise)
    expect(page.locator("#lab-upload-note .ace-problem")).to_contain_text("never opened", timeout=RUNNING)
    expect(page.locator("#lab-fit")).to_be_enabled()
    page.locator("#lab-fit").focus()
    page.keyboard.press("Enter")
    lab_status(page, "running")
    page.locator("#lab-stop").click()
    lab_status(page, "stopped")
    expect(page.locator("#lab-fit")).to_be_enabled()


@in_browser
@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_the_tab_fits_a_phone_in_the_dark(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(page.url + "?__theme=dark")
    expect(page.locator("#model-card .ace-card")).to_have_attribute("data-status", "ready", timeout=LOADING)
    open_tab(page, "Directions")
    for kind in ("A file of mine", "From the hub", "Other languages", "Built in"):
        page.locator("#lab-harmless-kind").get_by_label(kind).check()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if kind == "Other languages":
            expect(page.locator("#lab-harmless-note")).to_contain_text("72 prompts, built in, six languages")
            page.locator("#lab-harmless-language input").click()
            page.get_by_role("option", name="Italian").click()
            expect(page.locator("#lab-harmless-note")).to_contain_text("12 prompts, built in, Italian")
    expect(page.locator("#lab-harmless-language")).to_be_hidden()
    for name in ("lab-layers", "lab-cosines", "lab-classes"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.wait_for_function(f"document.querySelector('#{name} .ace-plot').data?.length > 0")
        assert page.locator(f"#{name} .main-svg").first.evaluate("svg => svg.clientWidth") <= 390
    ink = page.locator("#lab-layers .ytick text").first.evaluate("text => getComputedStyle(text).fill")
    assert ink == "rgb(209, 213, 219)"
