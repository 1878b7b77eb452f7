"""The main part: prompt, columns of answers, plots."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ace_core.gallery import Recording
from ace_core.prompts import display_prompts
from ace_core.ui.compare import gallery, pinned, views
from ace_core.ui.compare.answers import answers_view
from ace_core.ui.compare.gallery import Gallery, Replays
from ace_core.ui.compare.pinned import PinnedView
from ace_core.ui.controls import FIELDS
from ace_core.ui.handlers import RECORDED_KEY, Handlers
from ace_core.ui.parts import heading
from ace_core.ui.plotly_component import plotly_plot
from ace_core.ui.problems import problems_view
from ace_core.ui.sidebar import Sidebar
from ace_core.ui.status import status_line

__all__ = ["Compare", "build", "wire"]

_KINDS = {"harmful": "Harmful-sounding", "harmless": "Harmless", "lookalike": "Only looks harmful"}
_WAITING = "Appears with a run."
_MODEL = "model"
_RUNS_AT_ONCE = 96
"""More than the host runs and lets wait at once, so that the line people stand in is the host's."""
_REPLAYS_AT_ONCE = 64
_LEGEND = """
<div class="ace-legend" id="legend">
  <span>Token shade, refusal coordinate at the chosen layer:</span>
  <span class="ace-legend-scale">
    <span>0 harmless mean</span><span class="ace-legend-bar" role="img"
    aria-label="Scale from 0, the harmless mean, over 0.5, unshaded, to 1, the harmful mean"></span>
    <span>harmful mean 1</span>
  </span>
</div>
"""


@dataclass(frozen=True)
class Compare:
    """Components of the main part."""

    prompt: gr.Textbox
    chips: dict[str, gr.Button]
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    problems: gr.HTML
    answers: gr.HTML
    projection: gr.HTML
    arm: gr.Radio
    heatmap: gr.HTML
    distribution: gr.HTML
    gallery: Gallery
    pins: PinnedView


def build(handlers: Handlers, recordings: tuple[Recording, ...] = ()) -> Compare:
    """Build the main part, showing the recorded run if there is one, with a choice of more."""
    run = handlers.recorded
    chips: dict[str, gr.Button] = {}
    prompt = gr.Textbox(
        handlers.first_values()[0],
        label="Prompt",
        placeholder="Ask something, or pick an example below",
        lines=2,
        max_lines=8,
        elem_id="prompt",
        buttons=[],
    )
    groups: dict[str, list[str]] = defaultdict(list)
    for example in display_prompts():
        groups[example.label].append(example.text)
    with gr.Row(elem_id="examples"):
        for kind, texts in groups.items():
            with gr.Column(elem_classes="ace-chips", min_width=240):
                gr.HTML(f'<h2 class="ace-chips-kind">{_KINDS.get(kind, kind)}</h2>', apply_default_css=False)
                for text in texts:
                    chips[text] = gr.Button(text, size="sm", elem_classes=["ace-chip", f"ace-chip-{kind}"])
    with gr.Row(elem_id="run-row"):
        run_button = gr.Button("Run", variant="primary", elem_id="run", scale=0, min_width=140)
        stop = gr.Button("Stop", variant="secondary", interactive=False, elem_id="stop", scale=0, min_width=100)
        line = status_line(handlers.first_status(), elem_id="status")
    problems = problems_view(elem_id="problems")
    more = gallery.build(recordings)
    answers = answers_view(
        None if run is None else views.answers(run, None, RECORDED_KEY),
        elem_id="answers",
    )
    gr.HTML(_LEGEND)
    pins = pinned.build()
    heading("Where every token lies", "Dotted before the edit, solid after it, at the chosen layer.")
    projection = plotly_plot(
        views.nothing_yet(views.PROJECTION_HEIGHT, _WAITING)
        if run is None
        else views.projection(run, None, RECORDED_KEY),
        height=views.PROJECTION_HEIGHT,
        elem_id="projection",
    )
    with gr.Row(elem_id="after-run"):
        with gr.Column(min_width=320):
            heading("Block by token", "One arm at every layer, after the edit; the frame marks the chosen layer.")
            arm = gr.Radio(
                [] if run is None else views.arm_choices(run),
                value=None if run is None else run.arms[-1].method,
                label="Arm",
                show_label=False,
                container=False,
                elem_id="heatmap-arm",
            )
            heatmap = plotly_plot(
                views.nothing_yet(views.HEATMAP_HEIGHT, _WAITING)
                if run is None
                else views.heatmap(run, None, run.arms[-1].method, RECORDED_KEY),
                height=views.HEATMAP_HEIGHT,
                elem_id="heatmap",
            )
        with gr.Column(min_width=320):
            heading("This prompt among the two classes", "Held-out prompts above; below, open before, filled after.")
            distribution = plotly_plot(
                views.nothing_yet(views.DISTRIBUTION_HEIGHT, _WAITING)
                if run is None
                else views.distribution(run, None, handlers.host.state.directions, RECORDED_KEY),
                height=views.DISTRIBUTION_HEIGHT,
                elem_id="distribution",
            )
    return Compare(
        prompt, chips, run_button, stop, line, problems, answers, projection, arm, heatmap, distribution, more, pins
    )


def wire(page: Compare, sidebar: Sidebar, handlers: Handlers, replays: Replays) -> None:
    """Connect the events."""
    fields: dict[str, Any] = {name: page.prompt if name == "prompt" else getattr(sidebar, name) for name in FIELDS}
    # Values arrive as the browser sent them: the handlers answer bad ones with a sentence under the field.
    shown = [page.answers, page.projection, page.heatmap, page.distribution]
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quick: dict[str, Any] = {**hidden, "queue": False, "preprocess": False}
    announced = page.run.click(
        handlers.begin,
        None,
        [page.status, page.problems, page.answers, page.heatmap, page.distribution, page.run, page.stop],
        inputs_kwargs=fields,
        concurrency_limit=None,
        preprocess=False,
        **hidden,
    )
    announced.failure(handlers.refuse, None, [page.status, page.problems], inputs_kwargs=fields, **quick)
    written = announced.success(
        handlers.generate,
        None,
        [page.status, page.answers, page.projection],
        inputs_kwargs=fields,
        concurrency_id=_MODEL,
        concurrency_limit=_RUNS_AT_ONCE,
        preprocess=False,
        **hidden,
    )
    finished = [page.status, *shown, page.arm, page.run, page.stop]
    ended = written.then(handlers.finish, None, finished, inputs_kwargs=fields, **quick)
    announced = page.gallery.play.click(
        replays.begin,
        page.gallery.choice,
        [
            *fields.values(),
            page.status,
            page.problems,
            page.answers,
            page.heatmap,
            page.distribution,
            page.run,
            page.stop,
        ],
        **quick,
    )
    replayed = announced.success(
        replays.play,
        page.gallery.choice,
        [page.status, page.answers, page.projection],
        concurrency_id="replay",
        concurrency_limit=_REPLAYS_AT_ONCE,
        preprocess=False,
        **hidden,
    )
    replay_ended = replayed.then(handlers.finish, None, finished, inputs_kwargs=fields, **quick)
    pinned.wire(page.pins, sidebar.layer, handlers, ended, replay_ended)
    page.gallery.choice.change(replays.describe, page.gallery.choice, page.gallery.note, **quick)
    page.stop.click(handlers.stop, None, page.stop, **quick)
    sidebar.layer.change(
        handlers.show,
        page.arm,
        [page.status, page.problems, *shown, sidebar.spark],
        inputs_kwargs=fields,
        trigger_mode="always_last",
        **quick,
    )
    page.arm.input(handlers.show_arm, page.arm, page.heatmap, trigger_mode="always_last", **quick)
    gr.on(
        [field.change for field in fields.values() if field is not sidebar.layer],
        handlers.compare,
        None,
        [page.status, page.problems],
        inputs_kwargs=fields,
        trigger_mode="always_last",
        **quick,
    )
    sidebar.scope.change(
        None, sidebar.scope, sidebar.last, js="(scope) => ({__type__: 'update', visible: scope === 'window'})"
    )
    sidebar.reset.click(handlers.reset, None, [fields[name] for name in FIELDS if name != "prompt"], **quick)
    polled = [sidebar.card, sidebar.timer, sidebar.layer, sidebar.last, sidebar.spark, page.distribution]
    sidebar.timer.tick(handlers.poll, sidebar.layer, polled, **quick)
    for text, chip in page.chips.items():
        chip.click(None, None, page.prompt, js=f"() => {json.dumps(text)}", api_visibility="private")
