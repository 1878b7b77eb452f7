"""Controls at the side: model card, what to edit, what to show, how to sample."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ace_core.host import HostState
from ace_core.methods import METHODS, REFERENCES
from ace_core.runs import RunSettings
from ace_core.ui import controls
from ace_core.ui.compare import views
from ace_core.ui.model_card import card, model_card
from ace_core.ui.plotly_component import plotly_plot
from ace_core.ui.theme import GLYPHS

__all__ = ["DEFAULT_ARMS", "Sidebar", "build"]

DEFAULT_ARMS = ["baseline", "addition", "ablation", "ace"]


@dataclass(frozen=True)
class Sidebar:
    """Components of the sidebar."""

    card: gr.HTML
    timer: gr.Timer
    layer: gr.Slider
    spark: gr.HTML
    coefficient: gr.Slider
    reference: gr.Dropdown
    addition: gr.Slider
    scope: gr.Dropdown
    last: gr.Slider
    token_scope: gr.Dropdown
    arms: gr.CheckboxGroup
    max_new_tokens: gr.Slider
    temperature: gr.Slider
    top_p: gr.Slider
    top_k: gr.Slider
    seed: gr.Number
    reset: gr.Button


def build(state: HostState, settings: RunSettings, blocks: int) -> Sidebar:
    """Build the sidebar.

    Args:
        state: of the host when the page was built.
        settings: what the controls show at first.
        blocks: how many blocks the layer slider offers until a model is loaded.
    """
    with gr.Sidebar(open=True, width=340, elem_id="sidebar"):
        model = model_card(card(state), elem_id="model-card")
        timer = gr.Timer(0.5)
        with gr.Group():
            layer = gr.Slider(
                0,
                blocks - 1,
                value=settings.layer,
                step=1,
                label="Layer",
                info="The block whose output is edited and shown, counted from 0.",
                elem_id="layer",
                buttons=[],
            )
            spark = plotly_plot(
                views.sparkline(views.separation(state.directions), settings.layer),
                height=views.SPARKLINE_HEIGHT,
                compact=True,
                elem_id="separation",
            )
            gr.HTML(
                '<p class="ace-hint">How well each layer tells held-out harmful from harmless prompts (AUROC): '
                "1 is perfect, the dashed line is chance.</p>",
                padding=False,
            )
        with gr.Group():
            coefficient = gr.Slider(
                *controls.COEFFICIENT_RANGE,
                value=settings.coefficient,
                step=0.05,
                label="ACE coefficient α",
                info="Where ACE puts every token, in class gaps from the point below; from the harmless mean, 1 is the "
                "harmful mean.",
                elem_id="coefficient",
                buttons=[],
            )
            reference = gr.Dropdown(
                [(name.capitalize(), key) for key, name in REFERENCES.items()],
                value=settings.reference,
                label="ACE starts from",
                info="Every token is brought here before α class gaps are added; the paper takes the harmless mean. "
                "A third set's mean needs directions fitted with one.",
                elem_id="reference",
            )
            addition = gr.Slider(
                *controls.COEFFICIENT_RANGE,
                value=settings.addition,
                step=0.05,
                label="Addition coefficient α",
                info="How far activation addition moves every token, in class gaps.",
                elem_id="addition",
                buttons=[],
            )
        with gr.Group():
            scope = gr.Dropdown(
                [(name.capitalize(), key) for key, name in controls.SCOPE_NAMES.items()],
                value=settings.scope,
                label="Edited blocks",
                info="One block is the paper's choice; editing more is stronger and less tidy.",
                elem_id="scope",
            )
            last = gr.Slider(
                0,
                blocks - 1,
                value=settings.layer if settings.last is None else settings.last,
                step=1,
                label="Window end",
                info="The last edited block; the layer above is the first.",
                visible=settings.scope == "window",
                elem_id="last",
                buttons=[],
            )
            token_scope = gr.Dropdown(
                [(name.capitalize(), key) for key, name in controls.TOKEN_SCOPE_NAMES.items()],
                value=settings.token_scope,
                label="Edited tokens",
                info="Which positions are edited; the paper edits all of them.",
                elem_id="token-scope",
            )
        arms = gr.CheckboxGroup(
            [(f"{GLYPHS[name]} {cls.title}", name) for name, cls in METHODS.items()],
            value=DEFAULT_ARMS,
            label="Arms to show",
            info="Each arm is one column; all are generated side by side in one batch.",
            elem_id="arms",
        )
        with gr.Accordion("Sampling", open=False, elem_id="sampling"):
            max_new_tokens = gr.Slider(
                *controls.NEW_TOKENS_RANGE,
                value=settings.max_new_tokens,
                step=8,
                label="Answer length",
                info="Most tokens an answer may have.",
                elem_id="max-new-tokens",
                buttons=[],
            )
            temperature = gr.Slider(
                0,
                controls.TEMPERATURE_LIMIT,
                value=settings.temperature,
                step=0.05,
                label="Temperature",
                info="0 always takes the likeliest token; higher is more random.",
                elem_id="temperature",
                buttons=[],
            )
            top_p = gr.Slider(
                0.05,
                1,
                value=settings.top_p,
                step=0.05,
                label="Top-p",
                info="Draws only from the likeliest tokens that together reach this probability.",
                elem_id="top-p",
                buttons=[],
            )
            top_k = gr.Slider(
                0,
                controls.TOP_K_LIMIT,
                value=settings.top_k,
                step=1,
                label="Top-k",
                info="Draws only from this many likeliest tokens; 0 is no limit.",
                elem_id="top-k",
                buttons=[],
            )
            seed = gr.Number(
                settings.seed,
                precision=0,
                label="Seed",
                info="The same seed repeats the same draw, for every arm alike.",
                elem_id="seed",
            )
        reset = gr.Button("Reset settings", size="sm", variant="secondary", elem_id="reset")
    return Sidebar(
        card=model,
        timer=timer,
        layer=layer,
        spark=spark,
        coefficient=coefficient,
        reference=reference,
        addition=addition,
        scope=scope,
        last=last,
        token_scope=token_scope,
        arms=arms,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        reset=reset,
    )
