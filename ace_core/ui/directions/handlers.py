"""What happens in the directions tab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.lab import LabFit, LabOptions, LabParts, LabRequest, Look
from ace_core.tasks import Task
from ace_core.ui.directions import views as show
from ace_core.ui.directions.bench import Bench
from ace_core.ui.directions.in_use import DirectionsInUse
from ace_core.ui.directions.prompt_sets import PromptSets
from ace_core.ui.directions.tab import DirectionsTab
from ace_core.ui.handlers import Handlers
from ace_core.ui.sessions import Session
from ace_core.ui.status import status

__all__ = ["DirectionsHandlers"]

Update = dict[Any, Any]

_SHIPPED = "the model's own"


class DirectionsHandlers:
    """Event handlers of the tab; an update maps components to their new values.

    Args:
        handlers: of the page.
        tab: components of the tab.
        in_use: what Compare steers with.
    """

    def __init__(self, handlers: Handlers, tab: DirectionsTab, in_use: DirectionsInUse) -> None:
        self.page, self._host, self.tab, self.in_use = handlers, handlers.host, tab, in_use
        self.sets = PromptSets(handlers.sessions, tab.sets, handlers.host.policy)

    def explain_variant(self, name: object) -> Any:
        """The variant's sentence."""
        known = lab.VARIANT_CHOICES.get(str(name))
        return gr.Dropdown(info="Choose a variant from the list." if known is None else known[1])

    # Fitting

    def fit(self, request: gr.Request, **values: Any) -> Iterator[Update]:
        """Fit, then choose a layer; what is done is kept when somebody stops."""

        def start(session: Session) -> Iterator[Update]:
            options = lab.lab_options(values)
            parts, third = self._parts(session, options, values), self._third(session, values)
            yield {self.tab.split: show.note(f"{parts.counts} How they were split: {parts.rule}.")}
            yield from self._fitted(session, LabRequest(parts, options, reference=third), values)

        yield from self._working(request, start)

    def receive(self, request: gr.Request, path: str | None) -> Update:
        """Keep where a file of vectors lies; apart from :meth:`bring`, since only here the path is checked."""
        try:
            self._host.policy.check_files()
        except EngineError as error:
            return {self.tab.upload_note: show.note(str(error), bad=True)}
        self._session(request).bench.upload = None if path is None else Path(path)
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
                    yield from self._reports(session.bench, task)
                    yield self._kept(session, task.result(0))
                    yield {self.tab.status: status("done", "Loaded: look at it below, or use it in Compare.")}
            except EngineError as error:
                yield {self.tab.upload_note: show.note(str(error), bad=True)}
                raise
            yield {self.tab.upload_note: show.note(f"{file.name[:80]} is in place of the fit.")}

        yield from self._working(request, start)

    def stop(self, request: gr.Request) -> Update:
        """Ask the work to end."""
        self._session(request).bench.stop()
        return {self.tab.stop: gr.Button(interactive=False)}

    def _working(self, request: gr.Request, start: Callable[[Session], Iterator[Update]]) -> Iterator[Update]:
        tab, session = self.tab, self._session(request)
        bench = session.bench
        if not bench.begin():
            yield {tab.status: status("error", "Something is still running: wait for it, or stop it first.")}
            return
        try:
            self._host.policy.check_work()
            yield {
                tab.fit: gr.Button(interactive=False),
                tab.stop: gr.Button(interactive=True),
                tab.status: status("waiting", "Getting ready…"),
                tab.bar: show.bar(None),
            }
            yield from start(session)
        except EngineError as error:
            kind = "stopped" if bench.stopped.is_set() else "error"
            yield {tab.status: status(kind, str(error))}
        finally:
            bench.release()
        yield {
            tab.fit: gr.Button(interactive=True),
            tab.stop: gr.Button(interactive=False),
            tab.bar: show.bar(0, active=False),
        }

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
        yield from self._reports(bench, task)
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
        yield from self._reports(bench, task)
        try:
            bench.choices[method] = task.result(0)
        except EngineError as error:
            told = f"{error} The fit is kept, and the layer is chosen by separation alone."
            yield {tab.status: status("stopped" if bench.stopped.is_set() else "error", told)}
            return
        bench.method = method
        yield self._chosen(session)
        block = bench.choices[method].selection.recommended
        yield {tab.status: status("done", f"Done: block {block} is recommended. Look below, or use it in Compare.")}

    def _reports(self, bench: Bench, task: Task[Any]) -> Iterator[Update]:
        bench.hold(task)
        for report in task.reports():
            if not report.done:
                yield {
                    self.tab.status: status("running", report.message),
                    self.tab.bar: show.bar(report.fraction),
                }

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
            **self._drawn(session, block),
            tab.use: gr.Button(interactive=bench.fit.steers),
            tab.vectors: gr.DownloadButton(value=str(files.vectors), interactive=True),
            tab.card: gr.DownloadButton(value=str(files.card), interactive=True),
            tab.gguf: gr.DownloadButton(
                value=None if files.gguf is None else str(files.gguf), interactive=files.gguf is not None
            ),
            tab.files_note: show.note(files.note),
        }

    # Looking

    def open(self, request: gr.Request) -> Update:
        """Draw the model's own directions until there is a fit, and say which ones are in use."""
        session, state = self._session(request), self._host.state
        session.bench.opened = True
        told = self.in_use.told(session)
        if session.bench.current(state):
            return told
        shipped = self.in_use.shipped_look()
        drawn = {} if shipped is None else self._drawn(session, shipped.recommended)
        return {**told, **drawn, self.tab.use: gr.Button(interactive=False)}

    def look(self, request: gr.Request, block: Any) -> Update:
        """Both plots of another layer."""
        session = self._session(request)
        look, fit = self._seen(session)
        nothing = {self.tab.classes: gr.skip()}
        if look is None or isinstance(block, bool) or not isinstance(block, (int, float)):
            return nothing
        if not 0 <= block < look.blocks or block != int(block):
            return nothing
        return {
            self.tab.classes: show.classes(look, int(block)),
            self.tab.plane: show.plane(fit, int(block)),
        }

    def keep(self, request: gr.Request) -> Update:
        """Put the directions that are shown aside, to compare others with them."""
        session = self._session(request)
        shown = self._shown(session)
        if shown is None:
            return {self.tab.beside: gr.skip()}
        session.bench.kept = (*shown, self._host.state.info)
        return self._beside(session)

    def compare_with(self, request: gr.Request, which: object) -> Update:
        """The plot of two directions with another second one."""
        session = self._session(request)
        session.bench.beside = "kept" if which == "kept" else "shipped"
        return self._beside(session)

    def _shown(self, session: Session) -> tuple[RefusalDirections, str] | None:
        bench, own = session.bench, self._host.state.directions
        if bench.current(self._host.state) and bench.fit is not None and bench.directions is not None:
            return bench.directions, bench.fit.name
        return None if own is None else (own, _SHIPPED)

    def _beside(self, session: Session) -> Update:
        """The shown directions beside the model's own or the kept ones."""
        shown, own, kept = self._shown(session), self._host.state.directions, session.bench.kept
        other = None if own is None else (own, _SHIPPED)
        if session.bench.beside == "kept":
            other = None if kept is None else (kept[0], f"kept: {kept[1]}")
        found = None
        if shown is not None and other is not None and shown[0] is not other[0]:
            found = lab.beside(shown[0], other[0], (shown[1], other[1]))
        told = "" if kept is None else kept[1]
        return {self.tab.beside: show.beside(found), self.tab.beside_words: show.beside_words(found, told)}

    def choose_method(self, request: gr.Request, method: object) -> Iterator[Update]:
        """Choose the layer of a fit again, for another method; what was measured before is shown at once."""
        session = self._session(request)
        bench = session.bench
        if not bench.current(self._host.state) or bench.fit is None or not bench.fit.steers or bench.fit.parts is None:
            yield {self.tab.status: gr.skip()}
        elif str(method) in bench.choices:
            bench.method = str(method)
            yield self._chosen(session)
        else:
            yield from self._working(request, lambda session: self._choosing(session, str(method)))

    def _seen(self, session: Session) -> tuple[Look | None, LabFit | None]:
        bench = session.bench
        if bench.current(self._host.state):
            return bench.look, bench.fit
        return self.in_use.shipped_look(), None

    def _drawn(self, session: Session, block: int) -> Update:
        tab, (look, fit) = self.tab, self._seen(session)
        if look is None:
            return {}
        choice = session.bench.choice if fit is not None else None
        return {
            tab.shown: show.shown(fit, look),
            tab.recommendation: show.recommendation(look, fit, choice),
            tab.candidates: show.candidates(choice),
            tab.layers: show.layers(look),
            tab.cosines: show.cosines(look),
            **self._beside(session),
            tab.block: gr.Slider(maximum=look.blocks - 1, value=block),
            tab.classes: show.classes(look, block),
            tab.plane: show.plane(fit, block),
            tab.achieved: show.achieved(choice),
        }

    def tell(self, request: gr.Request) -> Update:
        """Which directions are in use; the tab is drawn only for those who look at it."""
        session = self._session(request)
        return self.open(request) if session.bench.opened else self.in_use.told(session)

    def _session(self, request: gr.Request) -> Session:
        return self.page.sessions.get(request.session_hash)
