"""One class of prompts in the directions tab: built in, a file, or from the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.errors import EngineError
from ace_core.host import Policy
from ace_core.ui.directions import views as show
from ace_core.ui.directions.bench import Bench
from ace_core.ui.sessions import Sessions

__all__ = ["PromptSets", "SetField", "set_field"]

_OWN = [("A file of mine", "file"), ("From the hub", "hub")]
_KINDS = [("Built in", "builtin"), ("Other languages", "language"), *_OWN]
_THIRD = [("None", "none"), ("Built in", "builtin"), *_OWN]
_TITLES = {"harmful": "Harmful prompts", "harmless": "Harmless prompts", lab.REFERENCE: "A third set"}
_INFO = {
    "harmful": "Requests the model should refuse.",
    "harmless": "Requests the model should answer.",
    lab.REFERENCE: "Its mean becomes a point that ACE may start from.",
}
_NO_THIRD = "Without one, ACE starts from a mean of the two classes or from the origin."
_REVEAL = "(kind) => ['language', 'file', 'hub'].map((one) => ({__type__: 'update', visible: kind === one}))"
_HUB_READS_AT_ONCE = 4


@dataclass(frozen=True)
class SetField:
    """Components that choose one class's prompts."""

    kind: gr.Radio
    language: gr.Dropdown
    file: gr.File
    hub: gr.Row
    name: gr.Dropdown
    load: gr.Button
    note: gr.HTML


def set_field(name: str) -> SetField:
    """Build the components of the class ``name``."""
    optional = name == lab.REFERENCE
    with gr.Column(min_width=280, elem_id=f"lab-{name}"):
        kind = gr.Radio(
            _THIRD if optional else _KINDS, value="none" if optional else "builtin",
            label=_TITLES[name], info=_INFO[name], elem_id=f"lab-{name}-kind",
        )  # fmt: skip
        language = gr.Dropdown(
            lab.language_choices(), value="all", label="Language", visible=False, min_width=160,
            info="A dozen prompts each: to compare one language's direction with another's.",
            elem_id=f"lab-{name}-language",
        )  # fmt: skip
        file = gr.File(
            label=".txt, .csv, .json or .jsonl, up to 20 MB", height=150, visible=False, elem_id=f"lab-{name}-file"
        )
        with gr.Row(visible=False, elem_id=f"lab-{name}-hub") as hub:
            names = lab.hub_names(name)
            wanted = gr.Dropdown(
                names, value=names[0], label="Data set", allow_custom_value=True, min_width=160,
                info="A known short name, or owner/name of any public one.", elem_id=f"lab-{name}-name",
            )  # fmt: skip
            load = gr.Button("Load", size="sm", scale=0, min_width=80, elem_id=f"lab-{name}-load")
        told = _NO_THIRD if optional else lab.builtin_set(name).summary
        note = gr.HTML(show.note(told), elem_id=f"lab-{name}-note", apply_default_css=False)
    return SetField(kind, language, file, hub, wanted, load, note)


class PromptSets:
    """Event handlers of both classes' fields.

    Args:
        sessions: of the page.
        fields: by class.
        policy: whether files and sets of the hub may be used.
    """

    def __init__(self, sessions: Sessions, fields: Mapping[str, SetField], policy: Policy) -> None:
        self._sessions, self._fields, self._policy = sessions, fields, policy

    def chosen(self, bench: Bench, name: str, kind: object) -> lab.LabSet:
        """The prompts of a class, read again.

        Raises:
            EngineError: one sentence if there are none yet.
        """
        if kind == "file":
            if name not in bench.files:
                raise EngineError(f"There is no file of {name} prompts yet: drop one, or choose the built-in set.")
            return lab.file_set(bench.files[name])
        if kind == "hub":
            if name not in bench.hub:
                raise EngineError(f"No {name} set of the hub is loaded yet: press Load, or choose the built-in set.")
            return bench.hub[name]
        if kind == "language":
            return lab.language_set(name, bench.languages.get(name, "all"))
        return lab.builtin_set(name)

    def choose_kind(self, request: gr.Request, kind: str, name: str) -> str:
        """What the newly chosen source holds."""
        bench = self._bench(request)
        if kind == "none":
            return show.note(_NO_THIRD)
        if kind in ("builtin", "language"):
            return show.note(self.chosen(bench, name, kind).summary)
        if kind == "hub":
            loaded = bench.hub.get(name)
            return show.note("Choose a set and press Load." if loaded is None else loaded.summary)
        if name in bench.files:
            return self.read_file(request, str(bench.files[name]), name)
        return show.note("Drop a file above, or click there to choose one: one prompt a line or row.")

    def choose_language(self, request: gr.Request, language: str, name: str) -> str:
        """What there is in a language."""
        try:
            found = lab.language_set(name, str(language))
        except EngineError as error:
            return show.note(str(error), bad=True)
        self._bench(request).languages[name] = str(language)
        return show.note(found.summary)

    def read_file(self, request: gr.Request, path: str | None, name: str) -> str:
        """Check a file as soon as it is here; it is read again for a fit."""
        bench = self._bench(request)
        bench.files.pop(name, None)
        if path is None:
            return show.note("Drop a file above, or click there to choose one: one prompt a line or row.")
        try:
            self._policy.check_files()
            found = lab.file_set(Path(path))
        except EngineError as error:
            return show.note(str(error), bad=True)
        bench.files[name] = Path(path)
        return show.note(found.summary)

    def load_hub(self, request: gr.Request, wanted: object, name: str) -> Iterator[tuple[str, Any]]:
        """Read a set of the hub: note, button."""
        yield show.note("Asking the hub…"), gr.Button(interactive=False)
        try:
            self._policy.check_work()
            found = self._bench(request).hub[name] = lab.hub_set(wanted)
            said = show.note(found.summary)
        except EngineError as error:
            said = show.note(str(error), bad=True)
        yield said, gr.Button(interactive=True)

    def connect(self) -> None:
        """Connect the events."""
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for name, field in self._fields.items():
            here = gr.State(name)
            sources = [field.language, field.file, field.hub]
            field.kind.change(None, field.kind, sources, js=_REVEAL, api_visibility="private")
            field.kind.change(self.choose_kind, [field.kind, here], field.note, queue=False, **hidden)
            field.language.input(self.choose_language, [field.language, here], field.note, queue=False, **hidden)
            events = [field.file.upload, field.file.clear]
            gr.on(events, self.read_file, [field.file, here], field.note, queue=False, **hidden)
            field.load.click(
                self.load_hub,
                [field.name, here],
                [field.note, field.load],
                concurrency_id="hub",
                concurrency_limit=_HUB_READS_AT_ONCE,
                **hidden,
            )

    def _bench(self, request: gr.Request) -> Bench:
        return self._sessions.get(request.session_hash).bench
