"""A recorded or running comparison as values of the page's components, at any block, without the model."""

from __future__ import annotations

import numpy as np

from ace_core import plots
from ace_core.directions import RefusalDirections
from ace_core.plots import Figure, Line
from ace_core.runs import ArmRun, Run, RunSettings
from ace_core.ui.answers import AnswersValue, Column
from ace_core.ui.controls import TOKEN_SCOPE_NAMES
from ace_core.ui.theme import GLYPHS

__all__ = ["answers", "arm_choices", "distribution", "heatmap", "projection", "shown_block", "sparkline"]

_WAITING = "Appears with a run."
_STOPS = {"end": "ended by itself", "stop": "ended by itself", "length": "cut at the length limit"}
_STOPS["cancelled"] = "stopped"


def shown_block(run: Run, block: int | None) -> int:
    """The block to show: the chosen one if the run has it."""
    count = max((arm.after.shape[0] for arm in run.arms), default=0)
    wanted = run.settings.layer if block is None else block
    return max(0, min(wanted, count - 1))


def answers(run: Run, block: int | None, key: str, live: bool = False) -> AnswersValue:
    """Columns with their tokens shaded at ``block``."""
    shown = shown_block(run, block)
    return {
        "key": key,
        "live": live,
        "block": shown,
        "columns": [_column(run, arm, shown, live) for arm in run.arms],
    }


def projection(run: Run, block: int | None, key: str) -> Figure:
    shown = shown_block(run, block)
    prompt = len(run.prompt_tokens)
    longest = max((len(arm.token_ids) for arm in run.arms), default=0)
    over = all(arm.stop is not None for arm in run.arms)
    room = prompt + (longest if over else run.settings.max_new_tokens)
    return plots.projection(_lines(run, shown), prompt, room, shown, key)


def heatmap(run: Run, block: int | None, method: str | None, key: str) -> Figure:
    shown = shown_block(run, block)
    chosen = next((arm for arm in run.arms if arm.method == method), run.arms[-1])
    tokens = [*run.prompt_tokens, *chosen.tokens]
    return plots.heatmap(chosen.after, tokens, len(run.prompt_tokens), shown, chosen.label, f"{key} {chosen.method}")


def distribution(run: Run, block: int | None, directions: RefusalDirections | None, key: str) -> Figure:
    """Held-out classes at a block, and where every arm put this prompt's last token."""
    shown = shown_block(run, block)
    prompt = len(run.prompt_tokens)
    lines = [
        Line(line.label, line.method, line.before[:prompt], line.after[:prompt]) for line in _lines(run, shown)
    ]
    harmless = harmful = np.empty(0, np.float32)
    if directions is not None and shown < directions.blocks:
        harmless = np.asarray(directions.heldout_harmless[shown])
        harmful = np.asarray(directions.heldout_harmful[shown])
    return plots.distribution(harmless, harmful, lines, shown, key)


def sparkline(directions: RefusalDirections | None, block: int) -> Figure:
    if directions is None:
        return plots.empty("Separation by layer appears once the model is loaded.", 64)
    return plots.sparkline(np.array([part.auroc for part in directions.separation]), block)


def arm_choices(run: Run) -> list[tuple[str, str]]:
    """Label and method of each arm, for a choice."""
    return [(f"{GLYPHS[arm.method]} {arm.label}", arm.method) for arm in run.arms]


def _lines(run: Run, block: int) -> list[Line]:
    lines = []
    for arm in run.arms:
        before, after = (
            values[block] if values.shape[0] else np.empty(0, np.float32) for values in (arm.before, arm.after)
        )
        lines.append(Line(arm.label, arm.method, before, after, [*run.prompt_tokens, *arm.tokens]))
    return lines


def _column(run: Run, arm: ArmRun, block: int, live: bool) -> Column:
    prompt = len(run.prompt_tokens)
    # A generated token has a coordinate once the model has read it, one step after choosing it.
    read = arm.after[block, prompt:] if arm.after.shape[0] else np.empty(0, np.float32)
    coordinates = [round(float(c), 3) if np.isfinite(c) else None for c in read]
    coordinates += [None] * (len(arm.tokens) - len(coordinates))
    return {
        "label": arm.label,
        "method": arm.method,
        "glyph": GLYPHS[arm.method],
        "stamp": _stamp(run.settings, arm),
        "badge": arm.verdict or ("writing" if live and arm.stop is None else "stopped" if arm.stop else ""),
        "note": _note(run, arm),
        "tokens": list(zip(arm.tokens, coordinates, strict=False)),
    }


def _stamp(settings: RunSettings, arm: ArmRun) -> str:
    chance = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}, seed {settings.seed}"
    if arm.method == "baseline":
        return f"no edit · {chance}"
    place = f"block {settings.layer}"
    if settings.scope == "window":
        place = f"blocks {settings.layer} to {settings.last}"
    elif settings.scope == "all":
        place = "all blocks"
    elif settings.scope == "shared":
        place = f"all blocks, direction of block {settings.layer}"
    return f"{place} · {TOKEN_SCOPE_NAMES[settings.token_scope]} · {chance}"


def _note(run: Run, arm: ArmRun) -> str:
    count = len(arm.token_ids)
    parts = [f"{count} token{'' if count == 1 else 's'}"]
    if count > 1 and run.tokens_per_second:
        # Arms advance together, so an arm's share of the total rate is its share of the tokens.
        share = (count - 1) / max(1, sum(max(0, len(other.token_ids) - 1) for other in run.arms))
        parts.append(f"{run.tokens_per_second * share:.1f} tokens/s")
    if arm.stop is not None:
        parts.append(_STOPS.get(arm.stop, arm.stop))
    return " · ".join(parts)
