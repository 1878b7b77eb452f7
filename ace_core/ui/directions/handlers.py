"""Fitting directions in the directions tab, choosing their layer, and bringing others along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.errors import EngineError
from ace_core.lab import LabFit, LabOptions, LabParts, LabRequest
from ace_core.ui.directions import views as show
from ace_core.ui.directions.looking import Looking
from ace_core.ui.directions.measuring import Measuring
from ace_core.ui.directions.prompt_sets import PromptSets
from ace_core.ui.directions.working import Working
from ace_core.ui.sessions import Session
from ace_core.ui.status import status

__all__ = ["DirectionsHandlers"]

Update = dict[Any, Any]


class DirectionsHandlers:
    """Event handlers of the tab; an update maps components to their new values.

    Args:
        looking: what the tab shows.
    """

    def __init__(self, looking: Looking) -> None:
        self.page, self._host, self.tab, self.looking = looking.page, looking.page.host, looking.tab, looking
        self.working = Working(looking)
        self.measuring = Measuring(looking, self.working)
        self.sets = PromptSets(self.page.sessions, self.tab.sets, self._host.policy)

    def explain_variant(self, name: object) -> Any:
        """The variant's sentence."""
        known = lab.VARIANT_CHOICES.get(str(name))
        return gr.Dropdown(info="Choose a variant from the list." if known is None else known[1])

    def fit(self, request: gr.Request, **values: Any) -> Iterator[Update]:
        """Fit, then choose a layer; what is done is kept when somebody stops."""

        def start(session: Session) -> Iterator[Update]:
            options = lab.lab_options(values)
            parts, third = self._parts(session, options, values), self._third(session, values)
            yield {self.tab.split: show.note(f"{parts.counts} How they were split: {parts.rule}.")}
            yield from self._fitted(session, LabRequest(parts, options, reference=third), values)

        yield from self.working.through(self.looking.session(request), start)

    def receive(self, request: gr.Request, path: str | None) -> Update:
        """Keep where a file of vectors lies; apart from :meth:`bring`, since only here the path is checked."""
        try:
            self._host.policy.check_files()
        except EngineError as error:
            return {self.tab.upload_note: show.note(str(error), bad=True)}
        self.looking.session(request).bench.upload = None if path is None else Path(path)
        return {self.tab.upload_note: show.note("Reading the file…")}

    def bring(self, request: gr.Request, **values: Any) -> Iterator[Update]:
        """Use vectors from the file that came last."""

        def start(session: Session) -> Iterator[Update]:
            file = session.bench.upload
            try:
                if file is None:
                    raise EngineError("There is no file yet: drop one above.")
                if lab.is_foreign(file):
                    foreign = lab.read_foreign(file, values.get("upload_layer"))
                    options = lab.lab_options(values)
                    parts = self._parts(session, options, values)
                    said = f"{foreign.format} vectors: measuring class means on the prompts chosen above."
                    yield {self.tab.upload_note: show.note(said)}
                    asked = LabRequest(parts, options, foreign, reference=self._third(session, values))
                    yield from self._fitted(session, asked, values)
                else:
                    directions = lab.read_own(file)
                    task = self._host.work(
                        lambda model, task: lab.accept_directions(model, task, directions, file.name),
                        visitor=session.visitor,
                    )
                    yield from self.working.reports(session.bench, task)
                    yield self._kept(session, task.result(0))
                    yield {self.tab.status: status("done", "Loaded: look at it below, or use it in Compare.")}
            except EngineError as error:
                yield {self.tab.upload_note: show.note(str(error), bad=True)}
                raise
            yield {self.tab.upload_note: show.note(f"{file.name[:80]} is in place of the fit.")}

        yield from self.working.through(self.looking.session(request), start)

    def choose_method(self, request: gr.Request, method: object) -> Iterator[Update]:
        """Choose the layer of a fit again, for another method; what was measured before is shown at once."""
        session = self.looking.session(request)
        bench = session.bench
        if not bench.current(self._host.state) or bench.fit is None or not bench.fit.steers or bench.fit.parts is None:
            yield {self.tab.status: gr.skip()}
        elif str(method) in bench.choices:
            bench.method = str(method)
            yield self._chosen(session)
        else:
            yield from self.working.through(session, lambda session: self._choosing(session, str(method)))

    def _parts(self, session: Session, options: LabOptions, values: dict[str, Any]) -> LabParts:
        return lab.split_sets(
            *(self.sets.chosen(session.bench, name, values.get(f"{name}_kind")) for name in lab.KINDS),
            seed=options.seed,
            limit=options.limit,
        )

    def _third(self, session: Session, values: dict[str, Any]) -> lab.LabSet | None:
        kind = values.get(f"{lab.REFERENCE}_kind")
        return None if kind in (None, "none") else self.sets.chosen(session.bench, lab.REFERENCE, kind)

    def _fitted(self, session: Session, request: LabRequest, values: dict[str, Any]) -> Iterator[Update]:
        tab, bench, method = self.tab, session.bench, str(values.get("method"))
        task = self._host.work(lambda model, task: lab.fit_lab(model, task, request), visitor=bench.visitor)
        yield from self.working.reports(bench, task)
        fit = task.result(0)
        yield self._kept(session, fit)
        if fit.stopped or bench.stopped.is_set():
            told = "Stopped: what was read is kept, and the layer is chosen by separation alone."
            yield {tab.status: status("stopped", told)}
            return
        if not fit.steers:
            yield {tab.status: status("done", "Done: directions of block inputs, to look at.")}
            return
        yield from self._choosing(session, method)

    def _choosing(self, session: Session, method: str) -> Iterator[Update]:
        tab, bench = self.tab, session.bench
        fit, known = bench.fit, [choice.selection.tokens for choice in bench.choices.values()]
        if fit is None:
            return
        task = self._host.work(
            lambda model, task: lab.choose_block(model, task, fit, method, known[0] if known else None),
            visitor=bench.visitor,
        )
        yield from self.working.reports(bench, task)
        try:
            bench.choose(method, task.result(0))
        except EngineError as error:
            told = f"{error} The fit is kept, and the layer is chosen by separation alone."
            yield {tab.status: status("stopped" if bench.stopped.is_set() else "error", told)}
            return
        yield self._chosen(session)
        block = bench.choices[method].selection.recommended
        yield {tab.status: status("done", f"Done: block {block} is recommended. Look below, or use it in Compare.")}

    def _kept(self, session: Session, fit: LabFit) -> Update:
        """A new fit, drawn."""
        session.bench.keep(fit, lab.look_at(fit.directions), self._host.state.info)
        return self._chosen(session)

    def _chosen(self, session: Session) -> Update:
        """Everything that depends on the recommended block."""
        tab, bench = self.tab, session.bench
        directions = bench.directions
        if directions is None or bench.fit is None:
            return {tab.status: gr.skip()}
        bench.look = lab.look_at(directions)
        block = bench.look.recommended
        files = lab.write_files(directions, bench.folder())
        return {
            **self.looking.drawn(session, block),
            tab.use: gr.Button(interactive=bench.fit.steers),
            tab.vectors: gr.DownloadButton(value=str(files.vectors), interactive=True),
            tab.card: gr.DownloadButton(value=str(files.card), interactive=True),
            tab.gguf: gr.DownloadButton(
                value=None if files.gguf is None else str(files.gguf), interactive=files.gguf is not None
            ),
            tab.files_note: show.note(files.note),
        }
