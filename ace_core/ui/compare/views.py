"""A recorded or running comparison as values of the page's components, at any block, without the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ace_core import plots
from ace_core.directions import RefusalDirections
from ace_core.methods import METHODS, Method
from ace_core.plots import Line
from ace_core.runs import ArmRun, Run, RunSettings
from ace_core.ui.compare.answers import AnswersValue, Column
from ace_core.ui.controls import TOKEN_SCOPE_NAMES
from ace_core.ui.packing import pack
from ace_core.ui.theme import GLYPHS

__all__ = [
    "DISTRIBUTION_HEIGHT",
    "HEATMAP_HEIGHT",
    "PROJECTION_HEIGHT",
    "SPARKLINE_HEIGHT",
    "answers",
    "arm_choices",
    "distribution",
    "heatmap",
    "no_answers",
    "nothing_yet",
    "pinned_answers",
    "projection",
    "promised_answers",
    "separation",
    "sparkline",
]

PROJECTION_HEIGHT = 340
HEATMAP_HEIGHT = 420
DISTRIBUTION_HEIGHT = 460
SPARKLINE_HEIGHT = 64

_STOPS = {
    "end": "ended",
    "stop": "ended",
    "length": "length limit",
    "cancelled": "stopped",
    "nan": "ended by NaN: use a smaller coefficient",
}


def answers(run: Run, block: int | None, key: str, live: bool = False) -> str:
    """Columns with their tokens shaded at ``block``."""
    shown = _shown(run, block)
    columns = [_column(run, arm, shown, live) for arm in run.arms]
    return pack(AnswersValue(key=key, live=live, block=shown, columns=columns))


def promised_answers(settings: RunSettings, methods: Sequence[Method], key: str) -> str:
    """Empty columns, shown while a run waits for its first token."""
    columns = [
        Column(
            label=_unbroken(method.label),
            method=method.name,
            glyph=GLYPHS[method.name],
            stamp=_stamp(settings, method.name),
            badge="waiting",
            note="",
            tokens=[],
        )
        for method in methods
    ]
    return pack(AnswersValue(key=key, live=True, block=settings.layer, columns=columns))


def pinned_answers(pinned: Run, above: Run, block: int | None) -> str:
    """A run's columns in the order of another's, so that those of one method stand below each other."""
    shown = _shown(pinned, block)
    mine = {arm.method: _column(pinned, arm, shown, live=False) for arm in pinned.arms}
    order = dict.fromkeys([arm.method for arm in above.arms] + list(mine))
    columns = [mine.get(method) or _absent(method) for method in order]
    return pack(AnswersValue(key=f"pinned {' '.join(order)}", live=False, block=shown, columns=columns))


def no_answers() -> str:
    """No columns."""
    return pack(AnswersValue(key="", live=False, block=0, columns=[]))


def projection(run: Run, block: int | None, key: str) -> str:
    """Coordinate over position, one line an arm."""
    shown = _shown(run, block)
    prompt = len(run.prompt_tokens)
    longest = max((len(arm.token_ids) for arm in run.arms), default=0)
    over = all(arm.stop is not None for arm in run.arms)
    room = prompt + (longest if over else run.settings.max_new_tokens)
    return pack(plots.projection(_lines(run, shown), prompt, room, shown, key, PROJECTION_HEIGHT))


def heatmap(run: Run, block: int | None, method: str | None, key: str) -> str:
    """Block by token for one arm, the last one if ``method`` did not run."""
    shown = _shown(run, block)
    arm = next((arm for arm in run.arms if arm.method == method), run.arms[-1])
    tokens = [*run.prompt_tokens, *arm.tokens]
    key = f"{key} {arm.method}"
    return pack(plots.heatmap(arm.after, tokens, len(run.prompt_tokens), shown, arm.label, key, HEATMAP_HEIGHT))


def distribution(run: Run, block: int | None, directions: RefusalDirections | None, key: str) -> str:
    """Held-out classes at a block, and where every arm put this prompt's last token."""
    shown = _shown(run, block)
    prompt = len(run.prompt_tokens)
    lines = [Line(line.label, line.method, line.before[:prompt], line.after[:prompt]) for line in _lines(run, shown)]
    harmless = harmful = np.empty(0, np.float32)
    if directions is not None and shown < directions.blocks:
        harmless = np.asarray(directions.heldout_harmless[shown])
        harmful = np.asarray(directions.heldout_harmful[shown])
    return pack(plots.distribution(harmless, harmful, lines, shown, key, DISTRIBUTION_HEIGHT))


def separation(directions: RefusalDirections | None) -> np.ndarray | None:
    """Held-out AUROC by block, for :func:`sparkline`."""
    return None if directions is None else np.array([part.auroc for part in directions.separation])


def sparkline(auroc: np.ndarray | None, block: int) -> str:
    """Held-out separation by block; None while no model is loaded."""
    if auroc is None:
        return nothing_yet(SPARKLINE_HEIGHT, "Appears once the model is loaded.")
    return pack(plots.sparkline(auroc, block, SPARKLINE_HEIGHT))


def nothing_yet(height: int, message: str = "Appears when a run ends.") -> str:
    """A plot before there is something to plot."""
    return pack(plots.empty(message, height))


def arm_choices(run: Run) -> list[tuple[str, str]]:
    """Label and method of each arm, for a choice."""
    return [(f"{GLYPHS[arm.method]} {arm.label}", arm.method) for arm in run.arms]


def _shown(run: Run, block: int | None) -> int:
    """The block to show: the chosen one if the run has it."""
    count = max((arm.after.shape[0] for arm in run.arms), default=0)
    return max(0, min(run.settings.layer if block is None else block, count - 1))


def _lines(run: Run, block: int) -> list[Line]:
    lines = []
    for arm in run.arms:
        known = arm.after.shape[0] > 0
        before, after = (part[block] if known else np.empty(0, np.float32) for part in (arm.before, arm.after))
        lines.append(Line(arm.label, arm.method, before, after, [*run.prompt_tokens, *arm.tokens]))
    return lines


def _column(run: Run, arm: ArmRun, block: int, live: bool) -> Column:
    # A generated token has a coordinate once the model has read it, one step after choosing it.
    read = arm.after[block, len(run.prompt_tokens) :] if arm.after.shape[0] else np.empty(0, np.float32)
    coordinates = [round(float(c), 3) if np.isfinite(c) else None for c in read]
    coordinates += [None] * (len(arm.tokens) - len(coordinates))
    return Column(
        label=_unbroken(arm.label),
        method=arm.method,
        glyph=GLYPHS[arm.method],
        stamp=_stamp(run.settings, arm.method),
        badge=arm.verdict or ("writing" if live and arm.stop is None else "stopped" if arm.stop else ""),
        note=_note(run, arm),
        tokens=list(zip(arm.tokens, coordinates, strict=False)),
    )


def _absent(method: str) -> Column:
    title, note = METHODS[method].title, "not in the pinned run"
    return Column(label=title, method=method, glyph=GLYPHS[method], stamp="", badge="", note=note, tokens=[])


def _unbroken(label: str) -> str:
    """The same label, wrapped before its coefficient and not inside it."""
    return label.replace(" = ", "\u00a0=\u00a0")


def _stamp(settings: RunSettings, method: str) -> str:
    chance = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}, seed {settings.seed}"
    if method == "baseline":
        return f"no edit · {chance}"
    place = {
        "one": f"block {settings.layer}",
        "window": f"blocks {settings.layer} to {settings.last}",
        "all": "all blocks",
        "shared": f"all blocks, direction of block {settings.layer}",
    }[settings.scope]
    return f"{place} · {TOKEN_SCOPE_NAMES[settings.token_scope]} · {chance}"


def _note(run: Run, arm: ArmRun) -> str:
    count = len(arm.token_ids)
    parts = [f"{count} token{'' if count == 1 else 's'}"]
    if count > 1 and run.tokens_per_second and not run.recorded:
        # Arms advance together, so all are as fast as the longest.
        made = [max(0, len(other.token_ids) - 1) for other in run.arms]
        parts.append(f"{run.tokens_per_second * max(made) / sum(made):.1f} tokens/s")
    if arm.stop is not None:
        parts.append(_STOPS.get(arm.stop, arm.stop))
    return " · ".join(parts)
