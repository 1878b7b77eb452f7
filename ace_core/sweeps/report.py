"""A sweep's files: tables, and one HTML file that holds them and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly

from ace_core.errors import EngineError
from ace_core.sweeps.figures import sweep_figures
from ace_core.sweeps.plan import SweepPlan
from ace_core.sweeps.records import SweepFolder, write_whole
from ace_core.sweeps.summary import SweepSummary
from ace_core.sweeps.tables import sweep_tables

__all__ = ["read_sweep", "write_report"]

_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 400


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
