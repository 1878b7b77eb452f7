"""A run kept beside the next ones: its answers under theirs, arm by arm, and in words what differs."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import gradio as gr

from ace_core.directions import RefusalDirections
from ace_core.methods import METHODS, REFERENCES
from ace_core.runs import Run
from ace_core.ui import controls
from ace_core.ui.compare import views
from ace_core.ui.compare.answers import answers_view
from ace_core.ui.handlers import Handlers
from ace_core.ui.sessions import Session
from ace_core.ui.status import status, status_line

__all__ = ["PinnedView", "Pins", "build", "differences", "wire"]

_EMPTY = "Pin these answers to keep them here, then change something and press Run to compare."
_PROMPT_CHARACTERS = 80


@dataclass(frozen=True)
class PinnedView:
    """Components: the buttons, what differs, the pinned answers."""

    pin: gr.Button
    unpin: gr.Button
    words: gr.HTML
    answers: gr.HTML


def build() -> PinnedView:
    """Build the view, with nothing pinned."""
    with gr.Row(elem_id="pin-row"):
        pin = gr.Button("Pin this run", size="sm", elem_id="pin", scale=0, min_width=120)
        unpin = gr.Button("Unpin", size="sm", elem_id="unpin", scale=0, min_width=80, visible=False)
        words = status_line(status("idle", _EMPTY), elem_id="pin-words")
    return PinnedView(pin, unpin, words, answers_view(None, elem_id="pinned", visible=False))


class Pins:
    """Event handlers of the view.

    Args:
        handlers: of the page.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._page = handlers

    def pin(self, request: gr.Request, layer: Any) -> tuple[Any, ...]:
        """Keep the shown run, in place of an earlier one: unpin button, words, answers."""
        session = self._page.sessions.get(request.session_hash)
        run = session.run or self._page.recorded
        if run is None or session.running:
            kind = status("error", "There is no finished run to pin yet: press Run, or wait until it ends.")
            return gr.skip(), kind, gr.skip()
        session.pinned = run, self._own(session, run)
        return self._shown(session, layer)

    def unpin(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the pinned run."""
        self._page.sessions.get(request.session_hash).pinned = None
        return gr.Button(visible=False), status("idle", _EMPTY), gr.HTML(visible=False)

    def show(self, request: gr.Request, layer: Any) -> tuple[Any, ...]:
        """Compare with the run above, at the chosen layer."""
        session = self._page.sessions.get(request.session_hash)
        return (gr.skip(), gr.skip(), gr.skip()) if session.pinned is None else self._shown(session, layer)

    def _shown(self, session: Session, layer: Any) -> tuple[Any, ...]:
        run = session.run or self._page.recorded
        if session.pinned is None or run is None:
            return gr.skip(), gr.skip(), gr.skip()
        pinned, own = session.pinned
        block = int(layer) if isinstance(layer, (int, float)) and 0 <= layer < self._page.blocks else None
        told = status("idle", _told(pinned, run, own is self._own(session, run)))
        return gr.Button(visible=True), told, gr.HTML(views.pinned_answers(pinned, run, block), visible=True)

    def _own(self, session: Session, run: Run) -> RefusalDirections | None:
        """What a run was steered with, if not with the model's own directions."""
        return None if run.recorded or session.used is self._page.host.state.directions else session.used


def wire(view: PinnedView, layer: gr.Slider, handlers: Handlers, *finished: Any) -> None:
    """Connect the events; ``finished`` are those after which another run may be shown."""
    pins = Pins(handlers)
    shown = [view.unpin, view.words, view.answers]
    quick: dict[str, Any] = {
        "queue": False,
        "preprocess": False,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    view.pin.click(pins.pin, layer, shown, **quick)
    view.unpin.click(pins.unpin, None, shown, **quick)
    layer.change(pins.show, layer, shown, trigger_mode="always_last", **quick)
    for event in finished:
        event.then(pins.show, layer, shown, **quick)


def differences(pinned: Run, run: Run) -> list[str]:
    """Settings that differ, ``layer 17 → 12``, those of the methods that both have; arms and the prompt by name."""
    found = [f"model {pinned.model} → {run.model}"] if pinned.model != run.model else []
    arms = [{arm.method for arm in one.arms} for one in (pinned, run)]
    for name in controls.FIELDS:
        before, now = (getattr(one.settings, name, None) for one in (pinned, run))
        needed = controls.USED_BY.get(name)
        if before != now and (needed is None or all(needed in methods for methods in arms)):
            found.append(f"{controls.TITLES[name]} {_value(name, before)} → {_value(name, now)}")
    for name in METHODS:
        if name in arms[0] ^ arms[1]:
            found.append(f"{METHODS[name].title} only {'pinned' if name in arms[0] else 'above'}")
    return found


def _told(pinned: Run, run: Run, same_directions: bool) -> str:
    prompt = shorten(pinned.prompt, _PROMPT_CHARACTERS, placeholder="…")
    if run is pinned:
        return f"Pinned: “{prompt}”. Change something and press Run: the new answers appear above these."
    found = differences(pinned, run)
    if not same_directions:
        found.append("other directions")
    settings = f"From the pinned run to the one above: {'; '.join(found) or 'the same settings'}."
    asked = f" Its prompt was “{prompt}”." if pinned.prompt != run.prompt else " Same prompt."
    before = {arm.method: arm.verdict for arm in pinned.arms}
    turned = [
        f"{METHODS[arm.method].title} {before[arm.method]} → {arm.verdict}"
        for arm in run.arms
        if arm.verdict and before.get(arm.method) and before[arm.method] != arm.verdict
    ]
    return settings + asked + (f" Answers: {'; '.join(turned)}." if turned else "")


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none"
    names = {
        "scope": controls.SCOPE_NAMES,
        "token_scope": controls.TOKEN_SCOPE_NAMES,
        "reference": REFERENCES,
    }.get(name)
    if names is not None:
        return names.get(value, str(value))
    return f"{value:g}".replace("-", "−")
