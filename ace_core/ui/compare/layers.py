"""Layers view: where every token of the visitor's prompt lies at every layer, without writing an answer."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ace_core import lab, plots
from ace_core.errors import EngineError
from ace_core.lab import PromptLayers
from ace_core.runs import Run
from ace_core.ui.compare.views import nothing_yet
from ace_core.ui.handlers import Handlers
from ace_core.ui.packing import pack
from ace_core.ui.plotly_component import plotly_plot
from ace_core.ui.reading import PromptReading
from ace_core.ui.sessions import Session
from ace_core.ui.status import status, status_line
from ace_core.ui.waiting import loading

__all__ = ["HEIGHT", "LayersReader", "LayersView", "build", "drawn", "wire", "words"]

HEIGHT = 460
_POLL_SECONDS = 0.25
_READINGS_AT_ONCE = 16
_EMPTY = "Type a prompt at the top and press “Read the prompt”: every token appears here, at every layer."
_RECORDED = "Recorded reading; press the button to read your own prompt. Shown: "
_HEADING = """
<div class="ace-heading"><h2>Your prompt at every layer</h2>
<p>One pass over the prompt and its chat template, without any edit and without an answer. Left: how well each layer
tells held-out prompts apart; the bar marks layers with an AUROC of at least {least:g}, the frame the recommended
one.</p></div>
"""


@dataclass(frozen=True)
class LayersView:
    """Components of the view."""

    read: gr.Button
    status: gr.HTML
    plot: gr.HTML


def build(recorded: Run | None = None) -> LayersView:
    """Build the view.

    Args:
        recorded: run of the default model, whose prompt is shown, labelled, until the visitor reads another.
    """
    found = lab.recorded_layers(recorded)
    told = status("idle", "") if found is None or recorded is None else status("recorded", _RECORDED + recorded.prompt)
    gr.HTML(_HEADING.format(least=lab.SEPARATES), apply_default_css=False)
    with gr.Row(elem_id="layers-row"):
        read = gr.Button("Read the prompt", size="sm", elem_id="layers-read", scale=0, min_width=150)
        line = status_line(told, elem_id="layers-status")
    shown = nothing_yet(HEIGHT, _EMPTY) if found is None else drawn(found)
    plot = plotly_plot(shown, height=HEIGHT, elem_id="layers-plot")
    return LayersView(read, line, plot)


class LayersReader:
    """Event handlers of the view.

    Args:
        handlers: of the page.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._page = handlers

    def read(self, request: gr.Request, prompt: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Read a prompt: button, status, plot."""
        yield gr.Button(interactive=False), status("waiting", "Waiting for the model…"), gr.skip()
        session = self._page.sessions.get(request.session_hash)
        try:
            yield from self._read(session, str(prompt or ""), request.session_hash)
        except EngineError as error:
            yield gr.skip(), status("error", str(error)), gr.skip()
        yield gr.Button(interactive=True), gr.skip(), gr.skip()

    def _read(self, session: Session, prompt: str, visitor: str | None) -> Iterator[tuple[Any, Any, Any]]:
        host = self._page.host
        while (state := host.wait_ready(_POLL_SECONDS)).status == "loading":
            yield gr.skip(), status("waiting", loading(state)), gr.skip()
        directions = session.directions(state)
        reading = PromptReading(host, prompt, directions, visitor)
        for words_of_waiting in reading:
            yield gr.skip(), status("waiting", words_of_waiting), gr.skip()
        if directions is None:
            raise EngineError("The prompt was not read to its end: read it again.")
        found = lab.prompt_layers(reading.run(), directions)
        yield gr.skip(), status("done", words(found)), drawn(found)


def wire(view: LayersView, prompt: gr.Textbox, handlers: Handlers) -> None:
    """Connect the button."""
    view.read.click(
        LayersReader(handlers).read,
        prompt,
        [view.read, view.status, view.plot],
        concurrency_id="layers",
        concurrency_limit=_READINGS_AT_ONCE,
        preprocess=False,
        show_progress="hidden",
        api_visibility="private",
    )


def drawn(found: PromptLayers) -> str:
    """The plot's value; a new key each time, since zoom on one prompt means nothing on another."""
    key = f"layers {uuid.uuid4().hex}"
    return pack(
        plots.prompt_layers(
            found.coordinates, found.tokens, found.auroc, found.separating, found.recommended, key, HEIGHT
        )
    )


def words(found: PromptLayers) -> str:
    """What a visitor should see in the plot."""
    c = found.last
    side = "harmful" if c > 0.5 else "harmless"
    number = f"{c:.2f}".replace("-", "−")
    here = (
        f"At block {found.recommended}, the recommended one, the last token lies at {number}, on the {side} side; the "
        "model answers from there."
    )
    if not found.separating:
        return f"No layer tells the held-out classes apart well. {here}"
    return f"The classes separate well at {_blocks(found.separating)}. {here}"


def _blocks(stretches: Sequence[tuple[int, int]]) -> str:
    """``((3, 5), (8, 8))`` as ``blocks 3 to 5 and 8``."""
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in stretches]
    together = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{'block' if together.isdigit() else 'blocks'} {together}"
