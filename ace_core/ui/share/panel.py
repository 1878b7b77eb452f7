"""Share and reproduce: a link with settings, the same run as Python or as a command, the run as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ace_core.ui.compare.tab import Compare
from ace_core.ui.controls import FIELDS, TITLES, Asked, ask, problems
from ace_core.ui.handlers import Handlers
from ace_core.ui.share.links import as_command, as_python, query, read_link
from ace_core.ui.sidebar import Sidebar

__all__ = ["SharePanel", "Sharing", "build", "link_note", "wire"]

_MOST_BLOCKS = 1_000
_DEFAULT_MODEL = "embedded"


@dataclass(frozen=True)
class SharePanel:
    """Components of the panel."""

    with_prompt: gr.Checkbox
    link: gr.Button
    python: gr.Button
    command: gr.Button
    download: gr.Button
    shared: gr.Textbox
    file: gr.Textbox


def link_note() -> gr.HTML:
    """What was taken from the page's address, if anything; above everything else."""
    return gr.HTML("", visible=False, elem_id="link-note", apply_default_css=False)


def build() -> SharePanel:
    """Build the panel, closed."""
    with gr.Accordion("Share and reproduce", open=False, elem_id="share"):
        gr.HTML(
            '<p class="ace-hint">A link carries the settings and never the prompt, unless you tick the box. The '
            "program and the command hold the prompt too and give the answers that Run gives with these settings. To "
            "save a plot, hover over it and choose PNG or SVG in the bar at its corner.</p>",
            padding=False,
        )
        with_prompt = gr.Checkbox(False, label="Put the prompt into the link as well", elem_id="share-prompt")
        with gr.Row(elem_id="share-row"):
            link, python, command, download = (
                gr.Button(label, size="sm", elem_id=f"share-{name}", min_width=150)
                for name, label in (
                    ("link", "Copy link"),
                    ("python", "Copy as Python"),
                    ("command", "Copy as command"),
                    ("download", "Download the run (JSON)"),
                )
            )
        shared = gr.Textbox(
            label="Copied",
            show_label=False,
            container=False,
            placeholder="What you copy appears here as well.",
            interactive=False,
            lines=3,
            max_lines=16,
            elem_id="shared",
            buttons=["copy"],
        )
        file = gr.Textbox(visible="hidden", elem_id="share-file", label="Run as JSON")
    return SharePanel(with_prompt, link, python, command, download, shared, file)


class Sharing:
    """Event handlers of the panel and of a link that is opened."""

    def __init__(self, handlers: Handlers) -> None:
        self._page = handlers

    def link(self, with_prompt: Any, **values: Any) -> str:
        """The query string of a link to the present settings."""
        # A link without the prompt is fine without one.
        asked = self._asked(values if with_prompt is True else {**values, "prompt": "-"})
        return query(asked, with_prompt is True)

    def python(self, request: gr.Request, **values: Any) -> str:
        """A program that does what Run would do."""
        return as_python(self._asked(values), *self._model(request))

    def command(self, request: gr.Request, **values: Any) -> str:
        """A command that does what Run would do."""
        return as_command(self._asked(values), *self._model(request))

    def file(self, request: gr.Request) -> str:
        """The shown run as JSON."""
        session = self._page.sessions.get(request.session_hash)
        run = session.run or self._page.recorded
        if run is None or session.running:
            raise gr.Error("There is no finished run yet: press Run first.", print_exception=False)
        return json.dumps(run.to_json(), ensure_ascii=False, allow_nan=False)

    def open(self, request: gr.Request) -> list[Any]:
        """Set what the page's address asks for: the note, then the fields."""
        loaded = self._page.host.state.info is not None
        blocks = self._page.blocks
        # Until the model is there nobody knows how many blocks it has.
        found = read_link(dict(request.query_params or {}), blocks if loaded else _MOST_BLOCKS)
        if not found.values and not found.notes:
            return [gr.skip() for _ in range(1 + len(FIELDS))]
        session = self._page.sessions.get(request.session_hash)
        linked = {name: found.values[name] for name in ("layer", "last") if name in found.values}
        session.linked = dict(linked)
        if "layer" in linked:
            session.block = min(linked["layer"], blocks - 1)
        later = {name: block for name, block in linked.items() if block >= blocks}
        shown = {name: value for name, value in found.values.items() if name not in later}
        told = [*found.notes, *(f"{TITLES[name]}: {block} once the model is ready" for name, block in later.items())]
        note = gr.HTML(_note(len(found.values), told), visible=True)
        return [note, *(shown.get(name, gr.skip()) for name in FIELDS)]

    def _asked(self, values: dict[str, Any]) -> Asked:
        found = problems(values, self._page.blocks)
        if found:
            raise gr.Error(" ".join(found.values()), print_exception=False)
        return ask(values)

    def _model(self, request: gr.Request) -> tuple[str, str, bool]:
        state = self._page.host.state
        own = self._page.sessions.get(request.session_hash).own(state) is not None
        if state.info is None:
            return _DEFAULT_MODEL, "auto", own
        return state.info.name, state.info.precision, own


def wire(panel: SharePanel, note: gr.HTML, page: gr.Blocks, main: Compare, side: Sidebar, handlers: Handlers) -> Any:
    """Connect the events; returns the one that reads the page's address."""
    sharing = Sharing(handlers)
    fields: dict[str, Any] = {name: main.prompt if name == "prompt" else getattr(side, name) for name in FIELDS}
    quick: dict[str, Any] = {
        "queue": False,
        "preprocess": False,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    for button, text, inputs, copy in (
        (panel.link, sharing.link, panel.with_prompt, "aceCopyLink"),
        (panel.python, sharing.python, None, "aceCopy"),
        (panel.command, sharing.command, None, "aceCopy"),
    ):
        made = button.click(text, inputs, panel.shared, inputs_kwargs=fields, **quick)
        made.success(None, panel.shared, panel.shared, js=f"(text) => window.{copy}(text)", api_visibility="private")
    panel.download.click(sharing.file, None, panel.file, **quick).success(
        None, panel.file, None, js="(text) => window.aceDownload(text)", api_visibility="private"
    )
    # What was taken from a link is old news once something runs.
    gr.on(
        [main.run.click, main.gallery.play.click, side.reset.click],
        None,
        None,
        note,
        js="() => ({__type__: 'update', visible: false})",
        api_visibility="private",
    )
    return page.load(sharing.open, None, [note, *fields.values()], **quick)


def _note(count: int, told: list[str]) -> str:
    taken = f"{count} setting{'' if count == 1 else 's'} taken from the link; press Run to use them."
    problems = f" Not as the link says: {escape('; '.join(told))}." if told else ""
    return f'<p class="ace-link-note" role="status">{taken}{problems}</p>'
