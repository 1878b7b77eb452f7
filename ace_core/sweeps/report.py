"""A sweep's tables and figures, and one HTML file that holds them all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly

from ace_core.errors import EngineError
from ace_core.plots.style import Figure
from ace_core.plots.sweeps import Band, GapBar, MapPanel, alpha_curves, gap_bars, layer_maps
from ace_core.sweeps.plan import KINDS, Place, SweepPlan
from ace_core.sweeps.records import SweepFolder, write_whole
from ace_core.sweeps.summary import ConditionRow, SweepSummary, mean_map, steered_curve, title_of, unsteered

__all__ = ["Picture", "Table", "read_sweep", "sweep_figures", "sweep_tables", "write_report"]

_FEW_PLACES = 3
_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 400


@dataclass(frozen=True)
class Picture:
    """A figure with a title and what it shows."""

    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Table:
    """A table of text with a title and what it shows."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def read_sweep(path: Path | str) -> tuple[SweepSummary, dict[str, Any]]:
    """Summary and manifest of the sweep in a folder.

    Raises:
        EngineError: if there is none, or it is damaged.
    """
    folder = SweepFolder(path)
    manifest = folder.manifest()
    if manifest is None or "plan" not in manifest:
        raise EngineError(f"There is no sweep in {path}: check the folder.")
    return SweepSummary(SweepPlan.from_json(manifest["plan"]), folder.records()), manifest


def sweep_figures(summary: SweepSummary, gaps: bool = True) -> list[Picture]:
    """Figures of a sweep, finished or not: curves, a map where there are many places, gaps.

    Args:
        summary: of the sweep.
        gaps: also draw the gaps, whose intervals take seconds where there are many places.
    """
    plan, alphas = summary.plan, np.array(summary.plan.alphas)
    told = {
        "logit": "the mean probability of a refusal token at the last prompt position",
        "phrase": "the share of answers that open with a refusal",
        "judge": "the share of answers that the judge calls a refusal",
    }[summary.scorer]
    out: list[Picture] = []
    if summary.scaled and len(plan.places) <= _FEW_PLACES:
        out += [_curves(summary, place, alphas, told) for place in plan.places]
    if summary.scaled and len(plan.places) > 1:
        for method in summary.scaled:
            panels = [MapPanel(f"{kind} prompts", mean_map(summary, method, kind)) for kind in KINDS]
            figure = layer_maps(alphas, [place.key for place in plan.places], panels, f"map {method}")
            out.append(Picture(f"{title_of(method)} at every layer", f"Colour is {told}.", figure))
    if gaps and summary.scaled and plan.alphas:
        several = len(plan.places) > 1
        bars = [
            GapBar(
                gap.method,
                f"{title_of(gap.method)}, block {gap.place}" if several else title_of(gap.method),
                gap.gap.value,
                gap.gap.low,
                gap.gap.high,
            )
            for gap in _fewest(summary)
        ]
        caption = (
            "How differently a method treats harmful and harmless prompts, ∫ |harmful − harmless| dα over all "
            "coefficients; 0 is control that does not depend on the prompt. Whiskers are 95 % bootstrap intervals over "
            "prompts."
        )
        out.append(Picture("Standardisation gap", caption, gap_bars(bars, "gaps")))
    return out


def _fewest(summary: SweepSummary) -> list[Any]:
    """Gaps to draw: of many places each method's three smallest."""
    if len(summary.plan.places) <= _FEW_PLACES:
        return list(summary.gaps)
    ranked = sorted((g for g in summary.gaps if np.isfinite(g.gap.value)), key=lambda g: g.gap.value)
    return [gap for method in summary.scaled for gap in [g for g in ranked if g.method == method][:_FEW_PLACES]]


def _curves(summary: SweepSummary, place: Place, alphas: np.ndarray, told: str) -> Picture:
    bands = []
    for method in summary.scaled:
        for kind in KINDS:
            points = steered_curve(summary, method, place, kind)
            rate, low, high = (np.array([getattr(p, name) for p in points]) for name in ("value", "low", "high"))
            bands.append(Band(method, title_of(method), kind, rate, low, high))
    plain = {kind: unsteered(summary, kind) for kind in KINDS}
    levels = {kind: found["baseline"].value for kind, found in plain.items() if "baseline" in found}
    caption = (
        f"Refusal is {told}, with 95 % intervals. Filled markers are harmful prompts, open ones harmless; the area "
        "between the two lines is the standardisation gap. Grey lines are the unsteered model."
    )
    figure = alpha_curves(alphas, bands, levels, f"curves {place.key}")
    return Picture(f"Refusal against the coefficient, block {place.key}", caption, figure)


def sweep_tables(summary: SweepSummary) -> list[Table]:
    """Tables of a sweep, numbers rounded for reading."""
    out = [
        Table(
            "Standardisation gaps",
            "95 % bootstrap intervals over prompts; the difference is taken on the same resampled prompts.",
            ("method", "block", "gap", "from", "to", "addition's minus this", "from", "to", "incoherent"),
            tuple(
                (
                    title_of(g.method),
                    g.place,
                    *_three(g.gap),
                    *(_three(g.beyond) if g.beyond is not None else ("", "", "")),
                    _share(g.incoherent),
                )
                for g in summary.gaps
            ),
        ),
        Table(
            "All conditions",
            "Refused with 95 % intervals (Wilson, or a bootstrap over prompts where several answers were drawn). KL is "
            "a token's on harmless prompts, nats; perplexity is the answers' median under the unsteered model.",
            ("condition", "α", "block", "prompts", "cells", "unscored", "refused", "from", "to", "answered",
             "incoherent", "refusal score", "KL", "first KL", "perplexity", "tokens"),
            tuple(_condition(row) for row in summary.rows),
        ),
        Table(
            "At equal side effects",
            "The most each method does for at most so much KL on harmless prompts: harmful prompts answered, harmless "
            "prompts refused.",
            ("method", "block", "KL at most", "harmful answered", "harmless refused"),
            tuple(
                (title_of(r.method), r.place, f"{r.budget:g}", _share(r.bypass), _share(r.induce))
                for r in summary.equal_kl
            ),
        ),
        Table(
            "Prompts steered the wrong way",
            "Share of prompts whose refusal falls as the coefficient rises (arXiv 2407.12404), Wilson's intervals.",
            ("method", "block", "prompts", "share", "from", "to"),
            tuple((title_of(w.method), w.place, w.kind, *_three(w.share)) for w in summary.wrong_way),
        ),
        Table(
            "Agreement of scorers",
            "Cohen's κ on whether a cell refuses: 1 is full agreement, 0 what chance gives.",
            ("scorers", "κ", "cells"),
            tuple((f"{a.first} and {a.second}", _two(a.kappa), str(a.cells)) for a in summary.agreement),
        ),
    ]  # fmt: skip
    return [table for table in out if table.rows]


def write_report(path: Path | str) -> list[Path]:
    """Write ``results.csv``, ``summary.csv``, ``gaps.csv``, ``summary.json`` and ``report.html`` beside the results.

    Returns:
        What was written.

    Raises:
        EngineError: if there is no sweep in the folder, or it can't be written.
    """
    summary, manifest = read_sweep(path)
    folder = SweepFolder(path)
    order = {cell.id: number for number, cell in enumerate(summary.plan.cells)}
    records = sorted(folder.records(), key=lambda record: order.get(record["cell"], len(order)))
    data = summary.to_json()
    written = [
        folder.write_csv("results.csv", [{**r, "request": summary.plan.prompts[r["prompt"]].text} for r in records]),
        folder.write_csv("summary.csv", [_flat(row) for row in data["rows"]]),
        folder.write_csv("gaps.csv", [_flat(row) for row in data["gaps"]]),
    ]
    plain, html = folder.path / "summary.json", folder.path / "report.html"
    write_whole(plain, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    write_whole(html, _html(summary, manifest, records))
    return [*written, plain, html]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            out |= {key if name == "value" else f"{key}_{name}": item for name, item in value.items()}
        else:
            out[key] = value
    return out


def _condition(row: ConditionRow) -> tuple[str, ...]:
    return (
        title_of(row.method),
        "" if row.alpha is None else f"{row.alpha:g}",
        row.place or "",
        row.kind,
        str(row.cells),
        str(row.unscored),
        *_three(row.refused),
        _share(row.answered),
        _share(row.incoherent),
        _two(row.refusal_score),
        _two(row.kl),
        _two(row.first_kl),
        _two(row.perplexity),
        _two(row.length),
    )


def _three(estimate: Any) -> tuple[str, str, str]:
    return _two(estimate.value), _two(estimate.low), _two(estimate.high)


def _two(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.0%}"


_STYLE = """
:root { color-scheme: light dark; --ace-ink: #374151; --ace-strong: #111827; --ace-faint: #9ca3af; --ace-grid: #e5e7eb;
  --ace-middle: #eceef1; --ace-surface: #ffffff; --ace-veil: rgba(255, 255, 255, 0.7); }
@media (prefers-color-scheme: dark) { :root { --ace-ink: #d1d5db; --ace-strong: #f3f4f6; --ace-faint: #6b7280;
  --ace-grid: #2b303b; --ace-middle: #2a2e37; --ace-surface: #14171d; --ace-veil: rgba(11, 15, 25, 0.7); } }
body { margin: 0 auto; padding: 16px; max-width: 1100px; background: var(--ace-surface); color: var(--ace-ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1, h2 { color: var(--ace-strong); line-height: 1.25; margin: 28px 0 6px; } h1 { font-size: 1.5rem; margin-top: 4px; }
h2 { font-size: 1.1rem; } p { max-width: 80ch; margin: 4px 0 8px; }
.headline { font-size: 1.05rem; color: var(--ace-strong); } .plot { width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.82rem; }
th, td { padding: 2px 10px 2px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--ace-grid); }
th:first-child, td:first-child { text-align: left; } dl { display: grid; grid-template-columns: max-content 1fr;
  gap: 2px 12px; font-size: 0.85rem; } dd { margin: 0; overflow-wrap: anywhere; } dt { color: var(--ace-faint); }
.answers td { white-space: pre-wrap; text-align: left; vertical-align: top; }
"""

_SCRIPT = """
const figures = JSON.parse(document.getElementById('figures').textContent);
function resolve(node, style) {
  if (typeof node === 'string') {
    const match = /^var\\((--[\\w-]+),\\s*(.+)\\)$/.exec(node);
    return match ? style.getPropertyValue(match[1]).trim() || match[2] : node;
  }
  if (Array.isArray(node)) return node.map((item) => resolve(item, style));
  if (node && typeof node === 'object')
    return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, resolve(item, style)]));
  return node;
}
function draw() {
  const style = getComputedStyle(document.documentElement);
  figures.forEach((figure, number) => {
    const plot = document.getElementById(`figure-${number}`);
    const layout = resolve(figure.layout, style);
    layout.width = plot.clientWidth;
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: style.getPropertyValue('--ace-surface').trim() };
    layout.paper_bgcolor = style.getPropertyValue('--ace-surface').trim();
    plot.setAttribute('aria-label', figure.layout.meta.summary);
    Plotly.react(plot, resolve(figure.data, style), layout,
      { displaylogo: false, toImageButtonOptions: { format: 'svg', filename: `sweep-figure-${number + 1}` } });
  });
}
draw();
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
"""


def _html(summary: SweepSummary, manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """One file that needs no network: plotly.js is inside."""
    library = (Path(str(plotly.__file__)).parent / "package_data" / "plotly.min.js").read_text("utf-8")
    pictures, total = sweep_figures(summary), len(summary.plan.cells)
    # a closing tag inside a string would end the script
    figures = json.dumps([picture.figure for picture in pictures], allow_nan=False).replace("<", "\\u003c")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Refusal sweep of {escape(str(manifest.get('model', '')))}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Refusal sweep of {escape(str(manifest.get('model', '')))}</h1>",
        f"<p class='headline'>{escape(summary.headline)}</p>",
        f"<p>{summary.count:,} of {total:,} cells finished"
        + ("." if summary.count == total else "; the sweep is not complete, and its numbers will change.")
        + f" {escape(str(manifest.get('refusal_tokens', {}).get('note', '')))}</p>",
    ]
    for number, picture in enumerate(pictures):
        parts += [
            f"<h2>{escape(picture.title)}</h2><p>{escape(picture.caption)}</p>",
            f"<div class='plot' id='figure-{number}' role='img' "
            f"style='min-height:{int(picture.figure['layout']['height'])}px'></div>",
        ]
    for table in sweep_tables(summary):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
        parts.append(
            f"<h2>{escape(table.title)}</h2><p>{escape(table.caption)}</p><div class='wide'><table><thead><tr>{head}"
            f"</tr></thead><tbody>{body}</tbody></table></div>"
        )
    parts += [_answers(summary, records), _provenance(manifest)]
    parts.append(
        f"<script type='application/json' id='figures'>{figures}</script>"
        f"<script>{library}</script><script>{_SCRIPT}</script></body></html>\n"
    )
    return "".join(parts)


def _answers(summary: SweepSummary, records: Sequence[Mapping[str, Any]]) -> str:
    """A few answers of every condition, to see what the numbers count."""
    rows, shown = [], {}
    for record in records:
        place = (record["condition"], record["kind"])
        if "text" not in record or shown.get(place, 0) >= _EXAMPLES:
            continue
        shown[place] = shown.get(place, 0) + 1
        text = str(record["text"]).strip()
        text = text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 1] + "…"
        label = record.get("judge") or record.get("verdict") or ""
        request = summary.plan.prompts[record["prompt"]].text[:_EXAMPLE_CHARACTERS]
        cells = (record["condition"], record["kind"], request, text, label)
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("condition", "prompts", "request", "answer", "label"))
    return (
        f"<details><summary>Answers: up to {_EXAMPLES} of every condition and class</summary><div class='wide'>"
        f"<table class='answers'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _provenance(manifest: Mapping[str, Any]) -> str:
    plan = {key: value for key, value in manifest["plan"].items() if key != "prompts"}
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())
    facts = {
        **{
            key: manifest.get(key, "")
            for key in ("command", "model", "revision", "precision", "device", "judge", "seed")
        },
        **{key: manifest.get(key, "") for key in ("vectors_sha256", "prompts_sha256", "template_sha256")},
        "versions": versions,
        "plan": json.dumps(plan, ensure_ascii=False),
    }
    rows = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items() if value != ""
    )
    return f"<h2>How it was made</h2><dl>{rows}</dl>"
