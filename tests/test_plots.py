"""Figures: valid for plotly, streamable, and safe to show with any text."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from ace_core import plots
from ace_core.methods import METHODS
from ace_core.plots import Figure, Line

PROMPT, ANSWER = 6, 5


def line(method: str, shift: float = 0.0, positions: int = PROMPT + ANSWER, tokens: list[str] | None = None) -> Line:
    before = np.linspace(0.2, 0.9, positions, dtype=np.float32)
    return Line(f"{method}, α = {shift:g}", method, before, before + shift, tokens or ["tok"] * positions)


LINES = [line("baseline"), line("addition", 0.5), line("ablation", -1), line("affine_ablation", -0.5), line("ace", 0.1)]


def painted(node: Any) -> Any:
    """A figure as the page's script hands it to plotly.js in the light theme."""
    if isinstance(node, dict):
        return {key: painted(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [painted(value) for value in node]
    if isinstance(node, str):
        return re.sub(r"^var\(--[\w-]+, (.+)\)$", r"\1", node)
    return node


def checked(figure: Figure) -> go.Figure:
    """The figure after plotly's own validation and a trip over the wire."""
    wire = json.loads(json.dumps(figure, allow_nan=False))
    assert wire["layout"]["meta"]["summary"]
    return go.Figure(painted(wire))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_method_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(plots.METHOD_COLOURS) == set(plots.METHOD_SYMBOLS) == set(METHODS)
    assert len(set(plots.METHOD_COLOURS.values())) == len(set(plots.METHOD_SYMBOLS.values())) == len(METHODS)
    for colour in plots.METHOD_COLOURS.values():
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#0b0f19")) >= 3


def test_projection_has_every_number_and_both_class_means() -> None:
    figure = checked(plots.projection(LINES, PROMPT, 20, 3, "run"))
    by_name = {trace.name: trace for trace in figure.data if trace.mode == "lines" and trace.name}
    for each in LINES:
        np.testing.assert_allclose(by_name[each.label].y, each.after, atol=1e-3)
    dotted = [trace for trace in figure.data if trace.line.dash == "dot" and trace.y[0] is not None]
    assert len(dotted) == 4, "one before each edit, none for the baseline"
    np.testing.assert_allclose(dotted[0].y, LINES[1].before, atol=1e-3)
    horizontal = {shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1}
    vertical = {shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1}
    assert horizontal == {0.0, 1.0} and vertical == {PROMPT - 0.5}
    assert figure.layout.xaxis.range == (-0.5, 19.5)


def test_projection_only_grows_while_a_run_goes_on() -> None:
    """What is drawn stays where it is, and the frame does not move."""
    short = plots.projection([line("baseline"), line("ace", 0.1)], PROMPT, 40, 3, "run")
    grown = [Line(x.label, x.method, x.before[:8], x.after[:8], x.tokens) for x in (line("baseline"), line("ace", 0.1))]
    shorter = plots.projection(grown, PROMPT, 40, 3, "run")
    for early, late in zip(shorter["data"], short["data"], strict=True):
        assert late["y"][: len(early["y"])] == early["y"] and late["x"][: len(early["x"])] == early["x"]
    frame = ("xaxis", "yaxis", "shapes", "uirevision", "height", "margin")
    assert all(short["layout"][name] == shorter["layout"][name] for name in frame)


def test_projection_is_not_flattened_by_an_extreme_first_token() -> None:
    spiked = line("baseline")
    spiked.after[0] = spiked.before[0] = 900.0
    low, high = plots.projection([spiked], PROMPT, 20, 3, "run")["layout"]["yaxis"]["range"]
    assert low <= 0 and 1 < high < 3


def test_projection_without_tokens_yet() -> None:
    nothing = np.empty(0, np.float32)
    checked(plots.projection([Line("Baseline", "baseline", nothing, nothing)], PROMPT, 20, 0, "run"))
    checked(plots.projection([], 0, 0, 0, "run"))


def test_heatmap_is_centred_between_the_class_means() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
    figure = checked(plots.heatmap(values, ["a", "b", "a", "<b>"], 2, 1, "ACE", "run"))
    (trace,) = figure.data
    np.testing.assert_allclose(np.array(trace.z), values, atol=1e-3)
    assert (trace.zmin, trace.zmax, trace.colorscale[1][0]) == (0, 1, 0.5)
    assert (trace.colorscale[0][1], trace.colorscale[2][1]) == plots.CLASS_SCALE
    assert len(set(trace.x)) == 4, "equal tokens stay apart"
    assert trace.x[3] == "3 &lt;b&gt;"
    assert "first token" in checked(plots.heatmap(values[:, :0], [], 2, 1, "ACE", "run")).layout.annotations[0].text


def test_distribution_shows_both_classes_and_where_each_arm_went() -> None:
    harmless, harmful = np.array([0.0, 0.1, -0.1]), np.array([0.9, 1.1])
    figure = checked(plots.distribution(harmless, harmful, LINES, 3, "run"))
    bars = {trace.name: trace for trace in figure.data if trace.type == "histogram"}
    assert list(bars["harmless"].x) == [0.0, 0.1, -0.1] and list(bars["harmful"].x) == [0.9, 1.1]
    assert bars["harmless"].marker.color != bars["harmful"].marker.color
    arms = [trace for trace in figure.data if trace.type == "scatter"]
    for trace, each in zip(arms, LINES, strict=True):
        assert trace.x == pytest.approx((each.before[-1], each.after[-1]), abs=1e-3)
        assert trace.marker.symbol[0].endswith("-open")
    low, high = figure.layout.xaxis.range
    assert low < min(min(trace.x) for trace in figure.data) and high > max(max(trace.x) for trace in figure.data)


def test_distribution_without_held_out_prompts() -> None:
    nothing = np.empty(0)
    figure = checked(plots.distribution(nothing, nothing, LINES[:1], 3, "run"))
    assert [trace.type for trace in figure.data] == ["scatter"]


def test_sparkline_marks_the_chosen_block() -> None:
    figure = checked(plots.sparkline(np.array([0.5, 0.75, 1.0]), 2))
    assert list(figure.data[0].y) == [0.5, 0.75, 1.0] and figure.data[1].x[0] == 2 and figure.data[1].y[0] == 1.0
    assert figure.layout.annotations[0].text == "1.00"
    assert not checked(plots.sparkline(np.full(3, np.nan), 1)).data


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_becomes_a_gap(bad: float) -> None:
    broken = line("ace", 0.1)
    broken.after[3] = bad
    figure = plots.projection([broken], PROMPT, 20, 3, "run")
    checked(figure)
    assert next(trace for trace in figure["data"] if trace.get("text"))["y"][3] is None
    checked(plots.heatmap(np.array([[bad, 1.0]]), ["a", "b"], 1, 0, "ACE", "run"))


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "<a href='javascript:x'>y</a>", "a & b", "x" * 999])
def test_labels_and_tokens_are_text_and_not_markup(text: str) -> None:
    hostile = [line("ace", 0.1, tokens=[text] * (PROMPT + ANSWER))]
    hostile.append(Line(text, "baseline", hostile[0].before, hostile[0].after, hostile[0].tokens))
    figures = [
        plots.projection(hostile, PROMPT, 20, 3, "run"),
        plots.heatmap(np.zeros((2, 2)), [text, text], 1, 0, text, "run"),
        plots.distribution(np.zeros(2), np.ones(2), hostile, 3, "run"),
        plots.empty(text, 100),
    ]
    for figure in figures:
        checked(figure)
        drawn = json.dumps({**figure, "layout": {**figure["layout"], "meta": None}})
        for allowed in ("<extra>", "</extra>", "<br>"):
            drawn = drawn.replace(allowed, "")
        assert "<" not in drawn and len(drawn) < 20_000
