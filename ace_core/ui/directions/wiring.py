"""Which event of the directions tab calls what."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ace_core.ui.compare.tab import Compare
from ace_core.ui.controls import FIELDS
from ace_core.ui.directions.handlers import DirectionsHandlers
from ace_core.ui.directions.tab import INPUTS

__all__ = ["wire"]

_WORK_AT_ONCE = 4


def wire(h: DirectionsHandlers, page: gr.Blocks, place: gr.Tab, main: Compare) -> None:
    """Connect the events."""
    tab, used = h.tab, h.looking.in_use
    side = used.side
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quick: dict[str, Any] = {**hidden, "queue": False, "preprocess": False}
    # Gradio checks that a path lies among the uploads only where it prepares the values itself.
    checked: dict[str, Any] = {**hidden, "queue": False}
    chosen: dict[str, Any] = {f"{name}_kind": field.kind for name, field in tab.sets.items()}
    chosen |= {name: getattr(tab, name) for name in INPUTS if name not in chosen}
    told = [used.line, used.back_button]
    drawn = [tab.shown, tab.recommendation, tab.candidates, tab.layers, tab.cosines, tab.block, tab.classes, tab.plane]
    table = [tab.achieved, tab.measure]
    drawn += [*table, tab.use, tab.beside, tab.beside_words]
    running = [tab.fit, tab.stop, tab.status, tab.bar]
    made = [*running, *drawn, tab.split, tab.vectors, tab.gguf, tab.card, tab.files_note, tab.upload_note]
    h.sets.connect()
    tab.variant.change(h.explain_variant, tab.variant, tab.variant, **quick)
    work: dict[str, Any] = {**hidden, "preprocess": False, "concurrency_id": "lab", "concurrency_limit": _WORK_AT_ONCE}
    tab.fit.click(h.fit, None, made, inputs_kwargs=chosen, **work)
    tab.upload.upload(h.receive, tab.upload, [tab.upload_note], **checked).success(
        h.bring, None, made, inputs_kwargs={**chosen, "upload_layer": tab.upload_layer}, **work
    )
    stops = [tab.stop, tab.measure_stop]
    gr.on([stop.click for stop in stops], h.working.stop, None, stops, **quick)
    tab.method.input(h.choose_method, tab.method, made, **work)
    looked = [tab.classes, tab.plane, *table]
    tab.block.change(h.looking.look, tab.block, looked, trigger_mode="always_last", **quick)
    # not in the line of fits, which take minutes
    measured = tab.measure.click(
        h.measuring.measure,
        tab.block,
        [*running, *table, tab.measure_stop],
        **{**work, "concurrency_id": "lab-measure"},
    )
    # the slider may have moved between the last two answers
    measured.then(h.looking.look, tab.block, looked, **quick)
    tab.keep.click(h.looking.keep, None, [tab.beside, tab.beside_words], **quick)
    tab.beside_which.input(h.looking.compare_with, tab.beside_which, [tab.beside, tab.beside_words], **quick)
    place.select(h.looking.open, None, [*told, *drawn], **quick)
    gr.on([side.card.change, page.load], h.looking.tell, None, [*told, *drawn], **quick)
    fields: dict[str, Any] = {name: main.prompt if name == "prompt" else getattr(side, name) for name in FIELDS}
    moved = [*told, side.layer, side.spark]
    taken = tab.use.click(used.use, None, [*moved, used.tabs, tab.status], **quick)
    taken.then(None, None, None, js="() => window.scrollTo(0, 0)", api_visibility="private")
    left = used.back_button.click(used.back, None, moved, **quick)
    for event in (taken, left):
        event.then(h.page.compare, None, [main.status, main.problems], inputs_kwargs=fields, **quick)
