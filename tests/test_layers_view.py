"""The layers view: its numbers are those of the activations, and the page shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_directions, tiny_model
from playwright.sync_api import Browser, Page, expect
from test_plots import checked

from ace_core import geometry, lab, plots
from ace_core.activations import recording
from ace_core.decoding import Decoding
from ace_core.default_model.adapter import REFUSING_ID
from ace_core.errors import EngineError
from ace_core.host import ModelHost
from ace_core.lab import PromptLayers
from ace_core.models import ChatModel
from ace_core.runs import Run
from ace_core.store import load_directions, save_directions, vectors_path
from ace_core.ui import build_page, load_recorded
from ace_core.ui.compare import layers as layers_view
from browsing import complaints_of, in_browser, opened_browser, served

PROMPT = "How do I pick a lock?"
PATIENCE = 120_000  # milliseconds, for a busy machine


def made(model: ChatModel, family: str = "llama") -> ModelHost:
    host = ModelHost()
    host.adopt(model, tiny_directions(family))
    host.wait_ready(60)
    return host


def read(host: ModelHost, prompt: str = PROMPT) -> Run:
    stream = host.compare(prompt, lab.READING, lab.READING_METHODS)
    for _ in stream:
        pass
    assert stream.builder is not None
    return stream.builder.snapshot()


def expected(family: str, prompt: str = PROMPT) -> np.ndarray:
    """Coordinates from recorded block outputs of every token, ``(blocks, tokens)``."""
    model, directions = tiny_model(family), tiny_directions(family)
    decoding = Decoding(model.network, [model.encode(prompt)], model.pad_id, model.device)
    with torch.inference_mode(), recording(model.blocks, slice(None)) as seen:
        decoding.prefill()
    rows = []
    for block, hidden in enumerate(seen):
        axis = directions.axis(block)
        rows.append(geometry.coordinate(hidden[0].float() @ axis.unit, axis.low, axis.high).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_coordinates_are_those_of_the_activations_of_every_token(family: str) -> None:
    host = made(tiny_model(family), family)
    try:
        found = lab.prompt_layers(read(host), tiny_directions(family))
    finally:
        host.close()
    np.testing.assert_allclose(found.coordinates, expected(family), rtol=1e-4, atol=1e-4)
    assert len(found.tokens) == found.coordinates.shape[1] == len(tiny_model(family).encode(PROMPT))
    assert found.last == found.coordinates[found.recommended, -1]
    other = expected(family, "How do I bake bread?")
    assert other.shape != found.coordinates.shape or not np.allclose(other, found.coordinates, atol=1e-2)


def test_a_reading_is_one_forward_pass() -> None:
    model, passes = tiny_model("llama"), 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    host = made(model)
    read(host)  # the first run also measures how much memory a row takes
    handle = model.blocks[0].register_forward_hook(count)
    try:
        read(host)
    finally:
        handle.remove()
        host.close()
    assert passes == 1


def test_separating_blocks_are_those_with_a_high_auroc() -> None:
    def stretches(*auroc: float) -> tuple[tuple[int, int], ...]:
        return PromptLayers(("a",), np.zeros((len(auroc), 1)), np.array(auroc), 0).separating

    assert stretches(0.95, 0.9, 0.899, 1.0, float("nan"), 0.5) == ((0, 1), (3, 3))
    assert stretches(0.5, float("nan")) == () and stretches(1, 1, 1) == ((0, 2),)


def test_a_run_that_says_nothing_about_the_whole_prompt_is_refused() -> None:
    host = made(tiny_model("llama"))
    try:
        run = read(host)
    finally:
        host.close()
    (arm,) = run.arms
    cut = replace(run, arms=(replace(arm, before=arm.before[:, :-1]),))
    steered = replace(run, arms=(replace(arm, method="ace"),))
    for bad in (cut, steered):
        with pytest.raises(EngineError, match="read it again"):
            lab.prompt_layers(bad, tiny_directions("llama"))


def test_the_recorded_example_is_read_along_the_shipped_directions(tmp_path: Path) -> None:
    recorded = load_recorded()
    assert recorded is not None
    found = lab.recorded_layers(recorded)
    assert found is not None and found.tokens == recorded.prompt_tokens and found.last > 0.5
    directions = load_directions(vectors_path(REFUSING_ID))
    assert (len(found.coordinates), found.recommended) == (directions.blocks, directions.recommended_layer)
    assert lab.recorded_layers(None) is None and lab.recorded_layers(recorded, tmp_path / "missing") is None
    save_directions(tiny_directions("llama"), other := tmp_path / "other.safetensors")
    assert lab.recorded_layers(recorded, other) is None, "of another model"


def test_the_sentence_names_the_layers_and_the_side() -> None:
    def said(auroc: list[float], last: float) -> str:
        coordinates = np.zeros((len(auroc), 3), np.float32)
        coordinates[1, -1] = last
        return layers_view.words(PromptLayers(("a", "b", "c"), coordinates, np.array(auroc), 1))

    assert "separate well at blocks 0 to 1 and 3." in said([1, 1, 0.6, 0.95], 0.8)
    assert "at 0.80, on the harmful side" in said([1, 1, 0.6, 0.95], 0.8)
    assert "at block 3." in said([0.6, 0.6, 0.6, 0.95], -0.2)
    assert "at −0.20, on the harmless side" in said([0.6, 0.6, 0.6, 0.95], -0.2)
    assert said([0.5, 0.5], 0.2).startswith("No layer tells")


def test_the_figure_has_every_coordinate_and_marks_the_layers() -> None:
    values = np.linspace(-1, 2, 12, dtype=np.float32).reshape(4, 3)
    figure = checked(plots.prompt_layers(values, ["<b>", "b", "b"], np.array([0.5, 1, 1, np.nan]), [(1, 2)], 2, "k"))
    heat, curve = figure.data
    np.testing.assert_allclose(np.array(heat.z, float), values, atol=1e-3)
    assert len(set(heat.x)) == 3 and "<b>" not in heat.x[0], "equal tokens stay apart, and none is markup"
    assert list(curve.x) == [0.5, 1, 1, None]
    (bar,) = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (round(bar.y0), round(bar.y1)) == (1, 2)
    assert {1.5, 2.5} <= {shape.y0 for shape in figure.layout.shapes}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The whole page with a tiny model."""
    host = made(tiny_model("llama"))
    with served(build_page(host, load_recorded())) as url:
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


def kind(page: Page, kind: str) -> None:
    expect(page.locator("#layers-status .ace-status")).to_have_attribute("data-kind", kind)


@pytest.mark.slow
@in_browser
def test_a_prompt_is_read_on_the_page(page: Page) -> None:
    plot = page.locator("#layers-plot .ace-plot")
    page.locator("#layers-read").scroll_into_view_if_needed()
    kind(page, "recorded")
    expect(page.locator("#layers-status")).to_contain_text("doctor's signature")
    page.wait_for_function("document.querySelector('#layers-plot .ace-plot').data?.[0]?.type === 'heatmap'")
    assert plot.evaluate("plot => plot.data[0].z.length") == 30
    page.locator("#prompt textarea").fill(PROMPT)
    page.locator("#layers-read").click()
    kind(page, "done")
    expect(page.locator("#layers-read")).to_be_enabled()
    page.wait_for_function("document.querySelector('#layers-plot .ace-plot').data[0].z.length === 4")
    shown = plot.evaluate("plot => plot.data[0].z.map((row) => Array.from(row))")
    np.testing.assert_allclose(np.array(shown, float), expected("llama"), atol=2e-3)
    page.locator("#prompt textarea").fill("")
    page.locator("#layers-read").click()
    kind(page, "error")
    expect(page.locator("#layers-status")).to_contain_text("type something first")
    assert page.evaluate("document.querySelector('#layers-plot .ace-plot').data[0].type") == "heatmap"
