"""The directions tab: choose prompts, fit, look, choose a layer, use it, take it away."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ace_core import lab
from ace_core.ui.directions import views as show
from ace_core.ui.directions.prompt_sets import SetField, set_field
from ace_core.ui.parts import downloads, heading
from ace_core.ui.plotly_component import plotly_plot
from ace_core.ui.status import status, status_line

__all__ = ["INPUTS", "DirectionsTab", "build", "in_use_line"]

INPUTS = (
    "harmful_kind", "harmless_kind", "reference_kind", "seed", "limit", "variant", "position", "site", "behaving",
    "method",
)  # fmt: skip
"""Names of the fields that a fit is asked for with."""


@dataclass(frozen=True)
class DirectionsTab:
    """Components of the tab, and those of Compare that tell and choose the directions in use."""

    sets: dict[str, SetField]
    seed: gr.Number
    limit: gr.Slider
    variant: gr.Dropdown
    position: gr.Dropdown
    site: gr.Radio
    behaving: gr.Checkbox
    method: gr.Radio
    split: gr.HTML
    fit: gr.Button
    stop: gr.Button
    status: gr.HTML
    bar: gr.HTML
    recommendation: gr.HTML
    use: gr.Button
    candidates: gr.HTML
    shown: gr.HTML
    block: gr.Slider
    layers: gr.HTML
    cosines: gr.HTML
    beside: gr.HTML
    beside_words: gr.HTML
    beside_which: gr.Radio
    keep: gr.Button
    classes: gr.HTML
    plane: gr.HTML
    measure: gr.Button
    measure_stop: gr.Button
    achieved: gr.HTML
    vectors: gr.DownloadButton
    gguf: gr.DownloadButton
    card: gr.DownloadButton
    files_note: gr.HTML
    upload: gr.File
    upload_layer: gr.Textbox
    upload_note: gr.HTML


def in_use_line() -> tuple[gr.HTML, gr.Button]:
    """For Compare: which directions it steers with, and the way back to the model's own."""
    with gr.Row(elem_id="in-use-row"):
        line = gr.HTML(show.in_use(None, None), elem_id="in-use", apply_default_css=False)
        back = gr.Button("Back to shipped", size="sm", scale=0, min_width=140, visible=False, elem_id="back-to-shipped")
    return line, back


def build(blocks: int) -> DirectionsTab:
    """Build the tab.

    Args:
        blocks: how many blocks to offer until a model is loaded.
    """
    heading(
        "Fit directions of your own",
        "A direction leads from the average harmless prompt to the average harmful one, at every layer.",
    )
    with gr.Row(elem_id="lab-sets"):
        sets = {kind: set_field(kind) for kind in (*lab.KINDS, lab.REFERENCE)}
    with gr.Row(elem_id="lab-options"):
        limit = gr.Slider(
            *lab.LIMIT_RANGE, value=100, step=10, label="Prompts of each class",
            info="At most so many are used: three fifths to fit, a fifth to choose the layer, a fifth to test.",
            elem_id="lab-limit", buttons=[], min_width=220,
        )  # fmt: skip
        seed = gr.Number(
            0, precision=0, label="Split seed", min_width=140, elem_id="lab-seed",
            info="The same seed gives the same three parts again.",
        )  # fmt: skip
        behaving = gr.Checkbox(
            False, label="Keep only prompts that behave", elem_id="lab-behaving", min_width=220,
            info="Harmful ones the model refuses, harmless ones it answers; asks every prompt, which takes longer.",
        )  # fmt: skip
    with gr.Row(elem_id="lab-how"):
        variant = gr.Dropdown(
            [(title, name) for name, (title, _) in lab.VARIANT_CHOICES.items()],
            value=next(iter(lab.VARIANT_CHOICES)), label="Variant", min_width=220, elem_id="lab-variant",
            info=next(iter(lab.VARIANT_CHOICES.values()))[1],
        )  # fmt: skip
        position = gr.Dropdown(
            [(words.capitalize(), name) for name, words in lab.POSITION_CHOICES.items()],
            value="last", label="Position", min_width=220, allow_custom_value=True, elem_id="lab-position",
            info="Where in the prompt it is read; -2 is the last token but one.",
        )  # fmt: skip
        site = gr.Radio(
            [(words.capitalize(), name) for name, words in lab.SITE_CHOICES.items()],
            value="output", label="Site", min_width=220, elem_id="lab-site",
            info="Edits happen at outputs; directions of inputs are for looking only.",
        )  # fmt: skip
    method = gr.Radio(
        [(words, name) for name, words in lab.METHOD_CHOICES.items()],
        value="ace", label="Choose the layer for", elem_id="lab-method",
        info="The method whose effect decides; another one is measured when you switch.",
    )  # fmt: skip
    with gr.Row(elem_id="lab-run-row"):
        fit = gr.Button("Fit", variant="primary", scale=0, min_width=140, elem_id="lab-fit")
        stop = gr.Button("Stop", interactive=False, scale=0, min_width=100, elem_id="lab-stop")
        line = status_line(
            status("idle", "Press Fit to begin; it takes a few minutes, and others go first."), elem_id="lab-status"
        )
    bar = gr.HTML(show.bar(0, active=False), elem_id="lab-bar", apply_default_css=False)
    split = gr.HTML(show.note(""), elem_id="lab-split", apply_default_css=False)

    heading("Recommended layer", "Every layer is steered alone on validation prompts; limits that give way are told.")
    with gr.Row(elem_id="lab-recommended"):
        recommendation = gr.HTML(
            show.recommendation(None, None, None), elem_id="lab-recommendation", apply_default_css=False
        )
        use = gr.Button(
            "Use in Compare", variant="primary", interactive=False, scale=0, min_width=160, elem_id="lab-use"
        )
    candidates = gr.HTML(show.candidates(None), elem_id="lab-candidates", apply_default_css=False)

    heading("Inspect", "0 is the harmless mean and 1 the harmful mean, at every layer.")
    shown = gr.HTML(show.shown(None, None), elem_id="lab-shown", apply_default_css=False)
    with gr.Row():
        layers = _plot(
            "Separation by layer", "Held-out prompts; AUROC 0.5 is chance.", show.LAYERS_HEIGHT, "lab-layers",
            show.layers(None),
        )  # fmt: skip
        cosines = _plot(
            "Cosines between layers", "1: two layers share a direction; 0: they have nothing in common.",
            show.LAYERS_HEIGHT, "lab-cosines",
            show.cosines(None),
        )  # fmt: skip
    block = gr.Slider(
        0, blocks - 1, value=(2 * blocks) // 3, step=1, label="Layer to look at",
        info="The block that the next two plots and the table under them show.", elem_id="lab-block", buttons=[],
    )  # fmt: skip
    with gr.Row():
        classes = _plot(
            "The two classes", "Refusal coordinate of held-out prompts.", show.MAP_HEIGHT, "lab-classes",
            show.classes(None, 0),
        )  # fmt: skip
        plane = _plot(
            "Every prompt", "Hover over a mark to read it.", show.MAP_HEIGHT, "lab-plane", show.plane(None, 0)
        )
    heading(
        "What ACE reaches", "Coordinates asked for and reached on test prompts, when the layer looked at is edited."
    )
    with gr.Row(elem_id="lab-measure-row"):
        measure = gr.Button(
            "Measure this block", size="sm", interactive=False, scale=0, min_width=180, elem_id="lab-measure"
        )
        measure_stop = gr.Button(
            "Stop", size="sm", interactive=False, scale=0, min_width=100, elem_id="lab-measure-stop"
        )
    achieved = gr.HTML(show.never_achieved(), elem_id="lab-achieved", apply_default_css=False)
    heading("Two directions side by side", "Cosine by layer: 1 is the same direction, 0 has nothing in common.")
    with gr.Row(elem_id="lab-beside-row"):
        beside_which = gr.Radio(
            [("The model's own", "shipped"), ("The one I kept", "kept")], value="shipped", label="Compare with",
            info="For example the end of the instruction against the end of the template, or two languages.",
            elem_id="lab-beside-which", min_width=280,
        )  # fmt: skip
        keep = gr.Button("Keep this one", size="sm", scale=0, min_width=140, elem_id="lab-keep")
    beside_words = gr.HTML(show.beside_words(None, ""), elem_id="lab-beside-words", apply_default_css=False)
    beside = plotly_plot(show.beside(None), height=show.BESIDE_HEIGHT, elem_id="lab-beside")

    heading("Take away and bring along", "Files stay on this machine until you close the page.")
    vectors, gguf, card = downloads(
        "lab-downloads",
        {
            "lab-vectors": "Vectors (.safetensors)",
            "lab-gguf": "Control vector (.gguf)",
            "lab-card": "Vector card (.md)",
        },
    )
    files_note = gr.HTML(
        show.note("Fit first, or bring a file along. A GGUF control vector can carry activation addition only."),
        elem_id="lab-files-note", apply_default_css=False,
    )  # fmt: skip
    with gr.Row():
        upload = gr.File(
            label="A vectors file: .safetensors, .gguf or .pt",
            height=150, elem_id="lab-upload", min_width=280,
        )  # fmt: skip
        with gr.Column(min_width=280):
            upload_layer = gr.Textbox(
                "", label="Layer of a direction.pt", elem_id="lab-upload-layer", max_lines=1, placeholder="none",
                info="Only for that format, as its tool counts; leave empty otherwise.", buttons=[],
            )  # fmt: skip
            upload_note = gr.HTML(
                show.note("Another tool's vectors are completed with class means of the prompts chosen above."),
                elem_id="lab-upload-note", apply_default_css=False,
            )  # fmt: skip
    return DirectionsTab(
        sets, seed, limit, variant, position, site, behaving, method, split, fit, stop, line, bar, recommendation, use,
        candidates, shown, block, layers, cosines, beside, beside_words, beside_which, keep, classes, plane, measure,
        measure_stop, achieved, vectors, gguf, card, files_note, upload, upload_layer, upload_note,
    )  # fmt: skip


def _plot(title: str, explanation: str, height: int, name: str, value: str) -> gr.HTML:
    with gr.Column(min_width=320):
        heading(title, explanation)
        return plotly_plot(value, height=height, elem_id=name)
