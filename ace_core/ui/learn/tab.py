"""The learn tab: a walk in eight steps, from recorded numbers, each with an experiment to set up on Compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ace_core.errors import EngineError
from ace_core.gallery import RECIPES, Classes, Recipe, Recording, read_classes
from ace_core.ui.compare.tab import Compare
from ace_core.ui.controls import FIELDS, values_of
from ace_core.ui.geometry import tab as geometry_tab
from ace_core.ui.handlers import Handlers
from ace_core.ui.learn import pictures as learn_pictures
from ace_core.ui.learn.lesson import Lesson
from ace_core.ui.learn.lessons import LESSONS
from ace_core.ui.learn.pictures import Sources
from ace_core.ui.packing import pack
from ace_core.ui.sidebar import Sidebar
from ace_core.ui.theme import script

__all__ = ["Experiments", "Learn", "build", "wire"]

_MATHS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "$", "right": "$", "display": False},
]
_RECIPES = {recipe.name: recipe for recipe in RECIPES}


@dataclass(frozen=True)
class Learn:
    """The buttons that set up the experiments, one a lesson, and the recordings of them."""

    experiments: tuple[gr.Button, ...]
    recordings: tuple[Recording, ...]


def build(recordings: tuple[Recording, ...]) -> Learn:
    """Build the tab; it answers in the browser, and only an experiment asks the server."""
    sources = Sources(geometry_tab.load_map(), _classes(), recordings)
    with gr.Column(elem_id="learn"):
        gr.HTML(_steps(), js_on_load=script("learn_steps.js"), elem_id="learn-steps", apply_default_css=False)
        buttons = tuple(_lesson(number, lesson, sources) for number, lesson in enumerate(LESSONS, 1))
        gr.HTML(_WALK, js_on_load=script("learn_walk.js"), elem_id="learn-walk", apply_default_css=False)
    return Learn(buttons, recordings)


def wire(tab: Learn, tabs: gr.Tabs, main: Compare, side: Sidebar, handlers: Handlers) -> None:
    """Connect the buttons."""
    fields: dict[str, Any] = {name: main.prompt if name == "prompt" else getattr(side, name) for name in FIELDS}
    quick: dict[str, Any] = {"queue": False, "preprocess": False, "show_progress": "hidden"}
    experiments = Experiments(handlers, tab.recordings)
    for button, lesson in zip(tab.experiments, LESSONS, strict=True):
        set_up = button.click(
            experiments.of(_RECIPES[lesson.recipe]),
            None,
            [*fields.values(), main.gallery.choice, tabs],
            api_visibility="private",
            **quick,
        )
        set_up.then(None, None, None, js="() => window.scrollTo(0, 0)", api_visibility="private")


class Experiments:
    """Sets Compare to what a lesson speaks of."""

    def __init__(self, handlers: Handlers, recordings: tuple[Recording, ...]) -> None:
        self._page = handlers
        self._recorded = {one.name.partition("-")[2]: one.name for one in recordings}

    def of(self, recipe: Recipe) -> Callable[[gr.Request], tuple[Any, ...]]:
        """The handler that gives every control, the recording of it, and the tab to look at."""

        def set_up(request: gr.Request) -> tuple[Any, ...]:
            self._page.sessions.get(request.session_hash).linked.clear()
            settings = recipe.settings(self._page.usual_layer(), self._page.blocks)
            values = values_of(recipe.prompt, settings, [method.name for method in recipe.methods()])
            recording = self._recorded.get(recipe.name, gr.skip())
            return *values, recording, gr.Tabs(selected="compare")

        return set_up


def _classes() -> Classes | None:
    try:
        return read_classes()
    except EngineError:
        return None


def _steps() -> str:
    steps = "".join(
        f'<li><button type="button" data-step="{number}"><span class="ace-step-number">{number}</span>'
        f'<span class="ace-step-title">{escape(lesson.title)}</span></button></li>'
        for number, lesson in enumerate(LESSONS, 1)
    )
    return f"""
<nav class="ace-learn-steps" data-step="1" aria-label="Lessons">
  <p>From nothing to “why is the origin no neutral point, and what does <i>α</i> = 1 mean?” in {len(LESSONS)} steps.
  Everything here is recorded, so it works before a model is loaded.</p>
  <ol>{steps}</ol>
</nav>
"""


_WALK = """
<div class="ace-learn-walk">
  <button type="button" data-go="-1">← Back</button>
  <span data-slot="place"></span>
  <button type="button" data-go="1">Next →</button>
</div>
"""


def _question(number: int, lesson: Lesson) -> str:
    choices = "".join(
        f'<label><input type="radio" name="ace-question-{number}" value="{index}">'
        f"<span>{escape(choice.text)}</span></label>"
        for index, choice in enumerate(lesson.choices)
    )
    return f"""
<form class="ace-question" onsubmit="return false">
  <fieldset><legend>{escape(lesson.question)}</legend>{choices}</fieldset>
  <p class="ace-question-why" role="status" data-slot="why">Predict first: pick an answer.</p>
</form>
"""


def _lesson(number: int, lesson: Lesson, sources: Sources) -> gr.Button:
    data = learn_pictures.value(lesson.picture, sources)
    with gr.Column(elem_id=f"lesson-{number}", elem_classes="ace-lesson"):
        with gr.Row(elem_classes="ace-lesson-row"):
            with gr.Column(min_width=300, scale=5):
                gr.Markdown(
                    f"## {number}. {lesson.title}\n{lesson.text}",
                    latex_delimiters=_MATHS,
                    elem_classes="ace-lesson-text",
                )
                gr.HTML(
                    pack({"step": number, "choices": [vars(choice) for choice in lesson.choices]}),
                    html_template=_question(number, lesson),
                    js_on_load=script("learn_question.js"),
                    apply_default_css=False,
                )
            with gr.Column(min_width=300, scale=6):
                gr.HTML(
                    None if data is None else pack(data),
                    html_template=learn_pictures.markup(lesson.picture, data, lesson.caption, number),
                    js_on_load=None if data is None else script("learn_picture.js"),
                    apply_default_css=False,
                )
        recipe = _RECIPES[lesson.recipe]
        with gr.Row(elem_classes="ace-lesson-try"):
            button = gr.Button("Set up on Compare", variant="primary", elem_id=f"try-{number}", scale=0, min_width=180)
            gr.HTML(
                f'<p class="ace-lab-words"><b>Try it: {escape(recipe.title)}.</b> {escape(recipe.note)} '
                "Then press Run, or Replay if no model is loaded.</p>",
                apply_default_css=False,
            )
    return button
