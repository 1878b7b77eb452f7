"""What happens when something on the page is clicked, typed or dragged."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.host import HostState, ModelHost
from ace_core.runs import Run, RunSettings
from ace_core.ui.compare import views
from ace_core.ui.compare.outcome import arms_of, buttons, summary
from ace_core.ui.controls import ask, changes, problems, values_of
from ace_core.ui.model_card import card
from ace_core.ui.problems import marks
from ace_core.ui.sessions import Session, Sessions
from ace_core.ui.sidebar import DEFAULT_ARMS
from ace_core.ui.status import status
from ace_core.ui.waiting import in_line, loading

__all__ = ["RECORDED_KEY", "Handlers"]

RECORDED_KEY = "recorded"
_LIVE_SECONDS = 1 / 15
_POLL_SECONDS = 0.25


class Handlers:
    """Event handlers of one page; every one of them is called from several threads.

    Args:
        host: owner of the model.
        recorded: the run that a fresh page shows, or None.
        blocks: how many blocks to assume until a model is loaded.
    """

    def __init__(self, host: ModelHost, recorded: Run | None, blocks: int) -> None:
        self.host = host
        self.recorded = recorded
        self.sessions = Sessions()
        self._blocks = blocks
        self.separation: tuple[RefusalDirections | None, np.ndarray | None] = (None, None)

    # Running a comparison

    def begin(self, request: gr.Request, **values: Any) -> tuple[Any, ...]:
        """Show at once that a run was asked for: status, marks, answers, heatmap, distribution, Run, Stop.

        Raises:
            gr.Error: without a message to show, if a value is bad; see :meth:`refuse`.
        """
        if problems(values, self.blocks):
            raise gr.Error("Some settings can't be used.", visible=False, print_exception=False)
        session = self.sessions.get(request.session_hash)
        asked = ask(values)
        session.announce(uuid.uuid4().hex)
        return (
            status("waiting", "Waiting for the model…"),
            marks({}),
            views.promised_answers(asked.settings, asked.methods, session.coming),
            views.nothing_yet(views.HEATMAP_HEIGHT),
            views.nothing_yet(views.DISTRIBUTION_HEIGHT),
            *buttons(running=True),
        )

    def refuse(self, **values: Any) -> tuple[str, str]:
        """Why a run did not begin: status, marks under the fields."""
        found = problems(values, self.blocks)
        return status("error", " ".join(found.values())), marks(found, focus=True)

    def generate(self, request: gr.Request, **values: Any) -> Iterator[tuple[Any, ...]]:
        """Stream a comparison: status, answers, projection."""
        session = self.sessions.get(request.session_hash)
        if not session.running:
            session.announce(uuid.uuid4().hex)
        try:
            yield from self._generate(session, values, request.session_hash)
        except EngineError as error:
            session.failed = True
            yield status("error", str(error)), gr.skip(), gr.skip()
        finally:
            session.release()

    def _generate(self, session: Session, values: dict[str, Any], visitor: str | None) -> Iterator[tuple[Any, ...]]:
        message = ""
        state = self.host.state
        while state.status == "loading" and not session.stopped.is_set():
            if message != (message := loading(state)):
                yield status("waiting", message), gr.skip(), gr.skip()
            state = self.host.wait_ready(_POLL_SECONDS)
        if session.stopped.is_set():
            yield status("stopped", "Stopped before the model was ready."), gr.skip(), gr.skip()
            return
        found = problems(values, self.blocks)
        if found:
            raise EngineError(" ".join(found.values()))
        asked = ask(values)
        own = session.own(state)
        stream = self.host.compare(asked.prompt, asked.settings, asked.methods, own and own[0], visitor=visitor)
        session.hold(stream, state.directions if own is None else own[0])
        while (place := stream.wait(_POLL_SECONDS)) is not None:
            if message != (message := in_line(place)):
                yield status("waiting", message), gr.skip(), gr.skip()
        due = 0.0
        for _ in stream:
            now = time.monotonic()
            if now < due or stream.builder is None:
                continue
            run = stream.builder.snapshot()
            session.adopt(run)
            longest = max(len(arm.token_ids) for arm in run.arms)
            text = f"Writing token {longest} of at most {run.settings.max_new_tokens} in {arms_of(run)}…"
            yield status("running", text), *self._live(session, run)
            # Never spend most of the time drawing: the model runs in the same process.
            due = now + max(_LIVE_SECONDS, 3 * (time.monotonic() - now))
        if stream.builder is None:
            yield status("stopped", "Stopped before the first token."), gr.skip(), gr.skip()
            return
        run = stream.builder.snapshot()
        session.adopt(run)
        session.release()
        yield summary(run), *self._live(session, run)

    def finish(self, request: gr.Request, **values: Any) -> tuple[Any, ...]:
        """After a run of any outcome: status, answers, projection, heatmap, distribution, heatmap's arm, Run, Stop."""
        session = self.sessions.get(request.session_hash)
        session.release()
        run = session.run or self.recorded
        if run is None:
            return gr.skip(), views.no_answers(), *_nothing(4), *buttons(running=False)
        # Settings may have moved while the run went on.
        told = gr.skip() if session.failed or session.key != session.coming else self._compared(session, values)
        method = session.method if session.method in {arm.method for arm in run.arms} else run.arms[-1].method
        choice = gr.Radio(choices=views.arm_choices(run), value=method)
        return told, *self._live(session, run), *self._still(session, run, method), choice, *buttons(running=False)

    def stop(self, request: gr.Request) -> Any:
        """Ask the run to end."""
        self.sessions.get(request.session_hash).stop()
        return gr.Button(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.drop(request.session_hash)

    # Looking at a run

    def show(self, request: gr.Request, method: str | None, **values: Any) -> tuple[Any, ...]:
        """Redraw from the record at the chosen block.

        Status, marks, answers, projection, heatmap, distribution, sparkline.
        """
        session = self.sessions.get(request.session_hash)
        if "layer" in problems(values, self.blocks):
            return gr.skip(), self._marks(values), *_nothing(5)
        session.block = int(values["layer"])
        session.linked.clear()
        spark = self.sparkline(session, session.block)
        run = session.run or self.recorded
        if run is None or session.waiting:
            return gr.skip(), self._marks(values), *_nothing(4), spark
        still = _nothing(2) if session.running else self._still(session, run, method)
        return self._compared(session, values), self._marks(values), *self._live(session, run), *still, spark

    def show_arm(self, request: gr.Request, method: str | None) -> Any:
        """The heatmap of another arm."""
        session = self.sessions.get(request.session_hash)
        session.method = method
        run = session.run or self.recorded
        return gr.skip() if run is None or session.running else self._still(session, run, method)[0]

    def compare(self, request: gr.Request, **values: Any) -> tuple[Any, str]:
        """Which settings have moved since the run, and which can't be used: status, marks."""
        return self._compared(self.sessions.get(request.session_hash), values), self._marks(values)

    # The model

    def poll(self, request: gr.Request, layer: Any) -> tuple[Any, ...]:
        """While loading: card, timer, layer, window end, sparkline, distribution."""
        state = self.host.state
        settled = state.status not in ("empty", "loading")
        timer = gr.Timer(active=not settled)
        if state.directions is None:
            return card(state), timer, *_nothing(4)
        session = self.sessions.get(request.session_hash)
        last = state.directions.blocks - 1
        linked = {name: min(value, last) for name, value in session.linked.items()}
        kept = isinstance(layer, int) and (session.block is not None or session.running or session.run is not None)
        session.block = block = linked.get("layer", min(layer if kept else self._first_layer(state), last))
        run = session.run or self.recorded
        shown = gr.skip()
        if run is not None and not session.running:
            shown = views.distribution(run, block, self._steered_with(session), self._key(session))
        spark = self.sparkline(session, block)
        slider = gr.Slider(maximum=last, value=block)
        end = gr.Slider(maximum=last, value=linked["last"]) if "last" in linked else gr.Slider(maximum=last)
        return card(state), timer, slider, end, spark, shown

    def sparkline(self, session: Session, block: int) -> str:
        """Separation by layer of the directions in use, computed once a model and once a fit."""
        state = self.host.state
        keeper = self if session.own(state) is None else session
        directions = session.directions(state)
        if keeper.separation[0] is not directions:
            keeper.separation = (directions, views.separation(directions))
        return views.sparkline(keeper.separation[1], block)

    def reset(self) -> tuple[Any, ...]:
        """First values of every control but the prompt."""
        return self.first_values()[1:]

    def first_values(self) -> tuple[Any, ...]:
        """Values of :data:`FIELDS` on a fresh page."""
        state = self.host.state
        run = self.recorded
        layer = self._first_layer(state)
        if run is None:
            return values_of("", RunSettings(layer), DEFAULT_ARMS)
        return values_of(run.prompt, replace(run.settings, layer=layer), [arm.method for arm in run.arms])

    @property
    def blocks(self) -> int:
        """Blocks of the loaded model, or of the record."""
        info = self.host.state.info
        return self._blocks if info is None else info.blocks

    def usual_layer(self) -> int:
        """The block that the loaded model's directions recommend; until there are any, the record's."""
        directions = self.host.state.directions
        return self._first_layer(self.host.state) if directions is None else directions.recommended_layer

    def _first_layer(self, state: HostState) -> int:
        if self.recorded is not None and self.recorded.settings.layer < self.blocks:
            return self.recorded.settings.layer
        return state.directions.recommended_layer if state.directions else (2 * self._blocks) // 3

    def _key(self, session: Session) -> str:
        return session.key if session.run is not None else RECORDED_KEY

    def _steered_with(self, session: Session) -> RefusalDirections | None:
        """Directions that the shown run's coordinates were read along."""
        run, state = session.run or self.recorded, self.host.state
        if run is None or not run.recorded:
            return session.used
        return state.directions if state.info is not None and state.info.name == run.model else None

    def _live(self, session: Session, run: Run) -> tuple[str, str]:
        key = self._key(session)
        return views.answers(run, session.block, key, session.running), views.projection(run, session.block, key)

    def _still(self, session: Session, run: Run, method: str | None) -> tuple[str, str]:
        key = self._key(session)
        shown = views.distribution(run, session.block, self._steered_with(session), key)
        return views.heatmap(run, session.block, method, key), shown

    def _marks(self, values: dict[str, Any]) -> str:
        found = problems(values, self.blocks)
        # Nobody needs to be told while they have yet to type.
        return marks({name: text for name, text in found.items() if name != "prompt" or values["prompt"]})

    def _compared(self, session: Session, values: dict[str, Any]) -> Any:
        run = session.run or self.recorded
        if run is None or session.running:
            return gr.skip()
        moved = changes(run, values, self.blocks)
        state = self.host.state
        used = state.directions if run.recorded else session.used
        if session.directions(state) is not used:
            moved.append("directions")
        if moved:
            return status("stale", f"Settings changed since this run: {', '.join(moved)}. Press Run to apply them.")
        return summary(run)

    def first_status(self) -> str:
        """Status of a fresh page."""
        run = self.recorded
        if run is None:
            return status("idle", "Type a prompt or pick an example, then press Run (Ctrl+Enter).")
        return summary(run)


def _nothing(count: int) -> tuple[Any, ...]:
    return tuple(gr.skip() for _ in range(count))
