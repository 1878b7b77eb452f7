"""Recorded runs on the Compare page, replayed at reading speed without a model."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ace_core.errors import EngineError
from ace_core.gallery import GALLERY, Recording, read_gallery
from ace_core.runs import ArmRun, Run
from ace_core.ui.compare import views
from ace_core.ui.compare.outcome import buttons
from ace_core.ui.controls import FIELDS, values_of
from ace_core.ui.handlers import Handlers
from ace_core.ui.problems import marks
from ace_core.ui.status import status

__all__ = ["Gallery", "Replays", "build", "first", "load"]

_TOKENS_A_SECOND = 8
_PAUSE = 1 / _TOKENS_A_SECOND
_TITLE = '<p class="ace-recordings-title">Recorded runs</p>'


@dataclass(frozen=True)
class Gallery:
    """Components of the gallery."""

    choice: gr.Dropdown
    play: gr.Button
    note: gr.HTML


def load(folder: Path = GALLERY) -> tuple[Recording, ...]:
    """The recordings that ship; none if they are missing or damaged, since the page can do without."""
    try:
        return read_gallery(folder)
    except EngineError:
        return ()


def build(recordings: tuple[Recording, ...]) -> Gallery:
    """Build the choice of a recording."""
    with gr.Row(elem_id="recordings", visible=bool(recordings)):
        gr.HTML(_TITLE, elem_id="recordings-title", apply_default_css=False)
        choice = gr.Dropdown(
            [(one.title, one.name) for one in recordings],
            value=recordings[0].name if recordings else None,
            label="Recorded runs",
            show_label=False,
            container=False,
            elem_id="recording",
            scale=0,
            min_width=300,
        )
        play = gr.Button("Replay", elem_id="replay", scale=0, min_width=100)
        note = gr.HTML(_note(recordings[0]) if recordings else "", elem_id="recording-note", apply_default_css=False)
    return Gallery(choice, play, note)


class Replays:
    """Event handlers of the gallery.

    Args:
        handlers: of the page.
        recordings: to choose from.
        pause: seconds between two tokens.
    """

    def __init__(self, handlers: Handlers, recordings: tuple[Recording, ...], pause: float = _PAUSE) -> None:
        self._page, self._pause = handlers, pause
        self._recordings = {one.name: one for one in recordings}

    def describe(self, name: Any) -> str:
        """What to look at in a recording."""
        return _note(self._find(name))

    def begin(self, request: gr.Request, name: Any) -> tuple[Any, ...]:
        """Set every control as it was: fields, status, marks, answers, heatmap, distribution, Run, Stop.

        Raises:
            gr.Error: for a name that is not on the list, or while a run is going on.
        """
        recording = self._find(name)
        session = self._page.sessions.get(request.session_hash)
        if session.running:
            raise gr.Error("A run is going on: stop it first.", print_exception=False)
        session.announce(uuid.uuid4().hex)
        run = recording.run
        values = dict(zip(FIELDS, values_of(run.prompt, run.settings, [arm.method for arm in run.arms]), strict=True))
        for field in ("layer", "last"):
            values[field] = min(values[field], self._page.blocks - 1)
        session.block = values["layer"]
        session.linked.clear()
        return (
            *values.values(),
            status("recorded", f"Replaying “{recording.title}”, a recorded run…"),
            marks({}),
            views.answers(first(run, 0), session.block, session.coming, live=True),
            views.nothing_yet(views.HEATMAP_HEIGHT, "Appears when the replay ends."),
            views.nothing_yet(views.DISTRIBUTION_HEIGHT, "Appears when the replay ends."),
            *buttons(running=True),
        )

    async def play(self, request: gr.Request, name: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Stream a recording: status, answers, projection."""
        recording = self._find(name)
        session = self._page.sessions.get(request.session_hash)
        run, longest = recording.run, max(len(arm.token_ids) for arm in recording.run.arms)
        try:
            for count in range(1, longest + 1):
                shown = first(run, count)
                session.adopt(shown)
                text = f"Replaying “{recording.title}”, recorded: token {count} of {longest}."
                live = count < longest
                yield (
                    status("recorded", text),
                    views.answers(shown, session.block, session.key, live),
                    views.projection(shown, session.block, session.key),
                )
                if session.stopped.is_set() and live:
                    halted = (replace(arm, stop=arm.stop or "cancelled") for arm in shown.arms)
                    session.adopt(replace(shown, arms=tuple(halted)))
                    return
                await asyncio.sleep(self._pause)
        finally:
            session.release()

    def _find(self, name: Any) -> Recording:
        found = self._recordings.get(name) if isinstance(name, str) else None
        if found is None:
            raise gr.Error("Choose a recorded run from the list.", print_exception=False)
        return found


def first(run: Run, count: int) -> Run:
    """A run as it was when its longest arm had written ``count`` tokens."""
    return replace(run, arms=tuple(_first(arm, count, len(run.prompt_tokens)) for arm in run.arms))


def _first(arm: ArmRun, count: int, prompt: int) -> ArmRun:
    if count >= len(arm.token_ids):
        return arm
    read = max(0, prompt + count - 1) if count else 0
    return replace(
        arm,
        token_ids=arm.token_ids[:count],
        tokens=arm.tokens[:count],
        text="".join(arm.tokens[:count]),
        stop=None,
        verdict="",
        before=arm.before[:, :read],
        after=arm.after[:, :read],
    )


def _note(recording: Recording) -> str:
    return f'<p class="ace-hint"><span><b>Recorded.</b> {escape(recording.note)}</span></p>'
