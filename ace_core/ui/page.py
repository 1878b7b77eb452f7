"""The whole page, and how it is served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ace_core import lab
from ace_core.errors import EngineError
from ace_core.host import ModelHost, Policy
from ace_core.runs import Run, RunSettings
from ace_core.ui import api, sidebar
from ace_core.ui.compare import gallery
from ace_core.ui.compare import layers as layers_view
from ace_core.ui.compare import tab as compare
from ace_core.ui.compare.gallery import Replays
from ace_core.ui.directions import tab as directions
from ace_core.ui.directions import wiring as directions_wiring
from ace_core.ui.directions.handlers import DirectionsHandlers
from ace_core.ui.directions.in_use import DirectionsInUse
from ace_core.ui.directions.looking import Looking
from ace_core.ui.geometry import tab as geometry_tab
from ace_core.ui.handlers import Handlers
from ace_core.ui.learn import tab as learn
from ace_core.ui.serving import app_arguments
from ace_core.ui.share import panel as share_panel
from ace_core.ui.sweep import tab as sweep_tab
from ace_core.ui.theme import css, script, theme

__all__ = ["build_page", "launch", "load_recorded"]

TITLE = "Refusal, steered"
_RECORDED = Path(__file__).resolve().parents[2] / "assets" / "recorded_run.json"
_RECORDED_SWEEP = Path(__file__).resolve().parents[2] / "assets" / "sweep"
_DEFAULT_BLOCKS = 30
_THREADS = 160
_KEEP_UPLOADS = (3600, 24 * 3600)
"""Every hour, uploads older than a day are deleted."""
_PAGES_KEPT = 500
"""Of callers that never say goodbye."""
_INTRODUCTION = """
<header class="ace-intro">
  <h1>Refusal, steered</h1>
  <p>One prompt, one language model, several ways to move its refusal direction, side by side:
  no edit, activation addition, directional ablation and affine concept editing (ACE).</p>
  <p class="ace-safety" id="safety">For research and teaching: answers are capped in length, and steered answers may be
  wrong or unpleasant. The default model's refusals were trained by this project on a 135M model for demonstration;
  bigger models from the hub bring their own.</p>
  {notice}
</header>
"""


def _notice(policy: Policy) -> str:
    return f'<p class="ace-safety" id="policy">{escape(policy.notice)}</p>' if policy.notice else ""


def load_recorded(path: Path = _RECORDED) -> Run | None:
    """The run that a fresh page shows; None if there is none or it can't be read."""
    try:
        return Run.from_json({**json.loads(path.read_text(encoding="utf-8")), "recorded": True})
    except (OSError, ValueError, EngineError):
        return None


def build_page(host: ModelHost, recorded: Run | None) -> gr.Blocks:
    """Build the page.

    Args:
        host: loading or holding a model.
        recorded: shown, labelled, until the visitor runs something.
    """
    blocks = max((arm.after.shape[0] for arm in recorded.arms), default=0) if recorded else 0
    handlers = Handlers(host, recorded, blocks or _DEFAULT_BLOCKS)
    _, layer, *_ = handlers.first_values()
    settings = recorded.settings if recorded else RunSettings(layer)
    recordings = gallery.load()
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=_KEEP_UPLOADS) as page:
        api.attach(page, host)  # first, so that no event of the page takes its names
        side = sidebar.build(host.state, settings, handlers.blocks)
        side.max_new_tokens.maximum = min(side.max_new_tokens.maximum, host.limits.tokens)
        side.max_new_tokens.value = min(settings.max_new_tokens, host.limits.tokens)
        gr.HTML(_INTRODUCTION.format(notice=_notice(host.policy)), apply_default_css=False)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("Compare", id="compare"):
                note = share_panel.link_note()
                in_use, back = directions.in_use_line()
                main = compare.build(handlers, recordings)
                layers = layers_view.build(recorded)
                panel = share_panel.build()
            with gr.Tab("Directions", id="directions") as lab_place:
                lab_tab = directions.build(handlers.blocks)
            with gr.Tab("Sweep", id="sweep") as sweep_place:
                sweep = sweep_tab.build(lab.recorded_sweep(_RECORDED_SWEEP))
            with gr.Tab("Geometry", id="geometry"):
                geometry_tab.build(handlers=handlers if host.policy.runs else None)
            with gr.Tab("Learn", id="learn"):
                lessons = learn.build(recordings)
        lab_place.visible = in_use.visible = host.policy.runs
        if not host.policy.work:  # the handlers refuse as well
            fields = lab_tab.sets.values()
            files = [lab_tab.upload, *(field.file for field in fields)]
            for part in (lab_tab.fit, sweep.start, *files, *(field.load for field in fields)):
                part.interactive = False
        compare.wire(main, side, handlers, Replays(handlers, recordings))
        layers_view.wire(layers, main.prompt, handlers)
        learn.wire(lessons, tabs, main, side, handlers)
        used = DirectionsInUse(handlers, in_use, back, lab_tab.status, tabs, side)
        directions_wiring.wire(DirectionsHandlers(Looking(handlers, lab_tab, used)), page, lab_place, main)
        sweep_tab.wire(sweep, page, sweep_place, handlers)
        opened = share_panel.wire(panel, note, page, main, side, handlers)
        opened.then(
            handlers.poll,
            side.layer,
            [side.card, side.timer, side.layer, side.last, side.spark, main.distribution],
            queue=False,
            preprocess=False,
            show_progress="hidden",
            api_visibility="private",
        )

        def leave(request: gr.Request) -> None:
            handlers.leave(request)
            # Gradio would keep half a megabyte of component settings a page for good
            page.state_holder.session_data.pop(request.session_hash, None)  # type: ignore[attr-defined]
            page.state_holder.time_last_used.pop(request.session_hash, None)  # type: ignore[attr-defined]

        page.unload(leave)
    return page


def launch(page: gr.Blocks, host: ModelHost | None = None, *, embedders: Sequence[str] = (), **arguments: Any) -> Any:
    """Serve a page built by :func:`build_page`, without telemetry, sharing or run history.

    Args:
        host: whose health is told at ``/healthz``, and whose policy holds for uploads.
        embedders: other sites that may show the page in a frame.
        arguments: more for ``gr.Blocks.launch``, such as ``server_name`` and ``server_port``.
    """
    more = arguments.pop("app_kwargs", None) or {}
    more = {**more, "middleware": [*more.get("middleware", []), api.guarded(page)]}
    page.queue(default_concurrency_limit=8, max_size=64)
    # a stream that waits for its next token holds a thread
    arguments.setdefault("max_threads", _THREADS)
    return page.launch(
        theme=theme(),
        css=css(),
        head=f"<script>{script('page.js')}{script('tooltips.js')}{script('share.js')}</script>",
        footer_links=["api", "gradio", "settings"],
        app_kwargs=app_arguments(host, embedders, more),
        state_session_capacity=_PAGES_KEPT,
        run_history=False,
        enable_monitoring=False,
        share=False,
        ssr_mode=False,
        pwa=False,
        max_file_size="20mb",
        **arguments,
    )
