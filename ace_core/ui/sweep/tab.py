"""The sweep tab: the paper's experiment in small, filling in while it runs, and a recorded one before that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.lab import SweepLook
from ace_core.ui.handlers import Handlers
from ace_core.ui.parts import downloads, heading
from ace_core.ui.plotly_component import plotly_plot
from ace_core.ui.status import status, status_line
from ace_core.ui.sweep import views as show
from ace_core.ui.sweep.handlers import SweepHandlers
from ace_core.ui.theme import GLYPHS

__all__ = ["INPUTS", "SweepTab", "build", "wire"]

INPUTS = ("preset", "methods", "prompts", "alphas", "lowest", "highest", "tokens")
"""Names of the fields that a sweep is asked for with."""

_SWEEPS_AT_ONCE = 4


@dataclass(frozen=True)
class SweepTab:
    """Components of the tab."""

    preset: gr.Radio
    methods: gr.CheckboxGroup
    prompts: gr.Slider
    alphas: gr.Slider
    lowest: gr.Number
    highest: gr.Number
    tokens: gr.Slider
    size: gr.HTML
    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    status: gr.HTML
    bar: gr.HTML
    shown: gr.HTML
    first_title: gr.HTML
    first: gr.HTML
    more: gr.Column
    second_title: gr.HTML
    second: gr.HTML
    bars: gr.HTML
    gaps: gr.HTML
    costs: gr.HTML
    wrong_way: gr.HTML
    conditions: gr.HTML
    results: gr.DownloadButton
    summary: gr.DownloadButton
    report: gr.DownloadButton


def build(recorded: SweepLook | None) -> SweepTab:
    """Build the tab.

    Args:
        recorded: shown, labelled, until the visitor runs a sweep.
    """
    heading(
        "Sweep the coefficient",
        "Does a method treat harmful and harmless prompts alike? Every prompt is run under every method and every "
        "coefficient, on prompts never used in fitting.",
    )
    with gr.Row(elem_id="sweep-what"):
        preset = gr.Radio(
            [(words, name) for name, words in lab.SWEEP_PRESETS.items()], value="quick", label="Sweep",
            info="Answers show what steering does; the map of layers reads first answer tokens only.",
            elem_id="sweep-preset", min_width=280,
        )  # fmt: skip
        methods = gr.CheckboxGroup(
            [(f"{GLYPHS[name]} {title}", name) for name, title in lab.SWEEP_METHODS.items()],
            value=["ace", "addition"], label="Methods", elem_id="sweep-methods", min_width=320,
            info=f"At most {lab.MOST_METHODS}; ACE and addition have a coefficient, and so a curve.",
        )  # fmt: skip
    with gr.Row(elem_id="sweep-how"):
        prompts = gr.Slider(
            *lab.PROMPT_COUNTS, value=8, step=1, label="Prompts of each class", buttons=[], min_width=220,
            info="More prompts, narrower intervals, more time.", elem_id="sweep-prompts",
        )  # fmt: skip
        alphas = gr.Slider(
            *lab.ALPHA_COUNTS, value=7, step=1, label="Coefficients", buttons=[], min_width=220,
            info="At equal distances, both ends included.", elem_id="sweep-alphas",
        )  # fmt: skip
        lowest, highest = (
            gr.Number(
                value, label=f"{name} α", step=0.5, min_width=110, elem_id=f"sweep-{name.lower()}", info=info,
            )
            for name, value, info in (("Lowest", -1, "In class gaps."), ("Highest", 2, "1 is the harmful mean."))
        )  # fmt: skip
        tokens = gr.Slider(
            *lab.TOKEN_COUNTS, value=16, step=1, label="Length of answers", buttons=[], min_width=220,
            info="Most tokens an answer; the map of layers has none.", elem_id="sweep-tokens",
        )  # fmt: skip
    size = gr.HTML(show.size(None, None), elem_id="sweep-size", apply_default_css=False)
    with gr.Row(elem_id="sweep-run-row"):
        start = gr.Button("Start", variant="primary", scale=0, min_width=120, elem_id="sweep-start")
        stop = gr.Button("Stop", interactive=False, scale=0, min_width=90, elem_id="sweep-stop")
        resume = gr.Button("Resume", interactive=False, scale=0, min_width=90, elem_id="sweep-resume")
        first_words = "Press Start to run a sweep of your own; comparisons of others go first."
        if recorded is None:
            line = status_line(status("idle", first_words), elem_id="sweep-status")
        else:
            line = status_line(status("recorded", f"Shown is a recorded sweep. {first_words}"), elem_id="sweep-status")
    bar = gr.HTML(show.bar(0, active=False), elem_id="sweep-bar", apply_default_css=False)
    shown = gr.HTML(show.shown(recorded, recorded=True), elem_id="sweep-shown", apply_default_css=False)
    first_title = gr.HTML(show.heading(recorded, 0), apply_default_css=False, elem_id="sweep-first-title")
    first = plotly_plot(show.picture(recorded, 0), height=show.HEIGHT, elem_id="sweep-first")
    several = recorded is not None and len(recorded.pictures) > 1
    with gr.Column(visible=several, elem_id="sweep-more") as more:
        second_title = gr.HTML(show.heading(recorded, 1), apply_default_css=False)
        second = plotly_plot(show.picture(recorded, 1), height=show.HEIGHT, elem_id="sweep-second")
    heading(
        "Standardisation gap",
        "The area between both classes' curves, ∫ |harmful − harmless| dα in class gaps: 0 is control that does not "
        "depend on the prompt. Whiskers are 95 % intervals.",
    )
    bars = plotly_plot(show.bars(recorded), height=show.BARS_HEIGHT, elem_id="sweep-bars")
    gaps = gr.HTML(show.gaps(recorded), elem_id="sweep-gaps", apply_default_css=False)
    heading(
        "Methods at equal side effects",
        "The most each method does at any coefficient that changes the model's predictions on harmless prompts by at "
        "most so much KL: the same α is not the same price.",
    )
    costs = plotly_plot(show.costs(recorded), height=show.COSTS_HEIGHT, elem_id="sweep-costs")
    with gr.Accordion("Prompts steered the wrong way", open=False, elem_id="sweep-wrong"):
        wrong_way = gr.HTML(show.wrong_way(recorded), elem_id="sweep-wrong-way", apply_default_css=False)
    with gr.Accordion("All conditions in numbers", open=False, elem_id="sweep-all"):
        conditions = gr.HTML(show.conditions(recorded), elem_id="sweep-conditions", apply_default_css=False)
    heading("Take away", "Files of your own sweep stay on this machine until you close the page.")
    results, summary, report = downloads(
        "sweep-downloads",
        {"sweep-results": "Every cell (.jsonl)", "sweep-summary": "Summary (.csv)", "sweep-report": "Report (.html)"},
    )
    return SweepTab(
        preset, methods, prompts, alphas, lowest, highest, tokens, size, start, stop, resume, line, bar, shown,
        first_title, first, more, second_title, second, bars, gaps, costs, wrong_way, conditions,
        results, summary, report,
    )  # fmt: skip


def wire(tab: SweepTab, page: gr.Blocks, place: gr.Tab, handlers: Handlers) -> None:
    """Connect the events."""
    h = SweepHandlers(handlers, tab)
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
    work: dict[str, Any] = {**hidden, "concurrency_id": "sweep", "concurrency_limit": _SWEEPS_AT_ONCE}
    quick: dict[str, Any] = {**hidden, "queue": False}
    chosen: dict[str, Any] = {name: getattr(tab, name) for name in INPUTS}
    made = [tab.start, tab.stop, tab.resume, tab.status, tab.bar, tab.shown, tab.first_title, tab.first, tab.more]
    made += [tab.second_title, tab.second, tab.bars, tab.gaps, tab.costs, tab.wrong_way, tab.conditions]
    made += [tab.results, tab.summary, tab.report]
    tab.start.click(h.start, None, made, inputs_kwargs=chosen, **work)
    tab.resume.click(h.resume, None, made, **work)
    tab.stop.click(h.stop, None, [tab.stop], **quick)
    changes = [getattr(tab, name).change for name in INPUTS]
    gr.on(
        [place.select, *changes], h.size, None, [tab.size, tab.tokens], inputs_kwargs=chosen,
        trigger_mode="always_last", **quick,
    )  # fmt: skip
