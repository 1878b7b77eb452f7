"""A sweep as values of the page's components: plots, tables and lines of text, everything escaped."""

from __future__ import annotations

from html import escape

from ace_core.lab import SweepLook, SweepRequest
from ace_core.ui.compare.views import nothing_yet
from ace_core.ui.packing import pack

__all__ = [
    "BARS_HEIGHT",
    "COSTS_HEIGHT",
    "HEIGHT",
    "bar",
    "bars",
    "conditions",
    "costs",
    "gaps",
    "heading",
    "picture",
    "shown",
    "size",
    "wrong_way",
]

HEIGHT = 400
BARS_HEIGHT = 220
COSTS_HEIGHT = 340

_EMPTY = "Appears when a sweep has finished its first cells."
_LATER = "Worked out when the sweep ends."
_TITLES = ("Refusal against the coefficient", "Another method")
_SAYS = "The nearer the lines of harmful and harmless prompts, the less control depends on the prompt."


def picture(look: SweepLook | None, number: int) -> str:
    """Curves, or one method's map."""
    if look is None or number >= len(look.pictures):
        return nothing_yet(HEIGHT, _EMPTY)
    return _sized(look.pictures[number].figure, HEIGHT)


def heading(look: SweepLook | None, number: int) -> str:
    """What that figure shows."""
    if look is None or number >= len(look.pictures):
        return _heading(_TITLES[number], _SAYS)
    shown = look.pictures[number]
    return _heading(shown.title, shown.caption)


def bars(look: SweepLook | None) -> str:
    """Standardisation gaps."""
    if look is None or look.bars is None:
        return nothing_yet(BARS_HEIGHT, _EMPTY if look is None else _LATER)
    return _sized(look.bars.figure, BARS_HEIGHT)


def gaps(look: SweepLook | None) -> str:
    """The same in numbers, with what they say of the paper's claim."""
    if look is None or look.gaps is None:
        return _paragraph(_EMPTY if look is None else _LATER)
    words = f'<div class="ace-lab-words"><p>{_text(look.headline)}</p></div>'
    return words + _table(look.gaps.caption, look.gaps.head, look.gaps.rows)


def costs(look: SweepLook | None) -> str:
    """Methods at equal KL."""
    if look is None or look.costs is None:
        return nothing_yet(COSTS_HEIGHT, _EMPTY if look is None else _LATER)
    return _sized(look.costs.figure, COSTS_HEIGHT)


def wrong_way(look: SweepLook | None) -> str:
    """Shares of prompts steered the wrong way."""
    if look is None or look.wrong_way is None:
        return _paragraph(_EMPTY if look is None else _LATER)
    return _table(look.wrong_way.caption, look.wrong_way.head, look.wrong_way.rows)


def conditions(look: SweepLook | None) -> str:
    """Every condition on both classes."""
    if look is None or look.conditions is None:
        return _paragraph(_EMPTY if look is None else _LATER)
    return _table(look.conditions.caption, look.conditions.head, look.conditions.rows)


def shown(look: SweepLook | None, recorded: bool) -> str:
    """Which sweep the tab shows."""
    if look is None:
        missing = (
            "No recorded sweep came along: press Start to run one here, or record one with "
            "<code>python -m ace_core sweep --out assets/sweep</code>."
        )
        return f'<p class="ace-lab-empty">{missing}</p>'
    whose = "Recorded" if recorded else "Yours"
    made = f" · made with <code>{_text(look.command)}</code>" if look.command else ""
    note = f" {_text(look.note)}" if look.note else ""
    return (
        f'<p class="ace-lab-inuse"><span class="ace-badge">{whose}</span> '
        f"<b>{_text(look.model)}</b>, {look.done:,} of {look.total:,} cells{made}.{note}</p>"
    )


def size(request: SweepRequest | None, cells: int | None, problem: str = "") -> str:
    """How much a choice asks for."""
    if problem:
        return f'<p class="ace-problem" role="alert">{_text(problem)}</p>'
    if request is None or cells is None:
        return '<p class="ace-lab-note">The model is still loading.</p>'
    alphas = ", ".join(f"{alpha:g}".replace("-", "−") for alpha in request.alphas)
    how = f"answers of at most {request.tokens} tokens" if request.tokens else "first answer tokens only"
    return f'<p class="ace-lab-note">{cells:,} cells: α = {alphas}; {how}.</p>'


def bar(fraction: float | None, active: bool = True) -> str:
    """How far the sweep is; keeps its place when there is none."""
    value = "" if fraction is None else f' value="{fraction:.3f}"'
    hidden = "" if active else ' style="visibility:hidden"'
    return f'<progress class="ace-lab-bar" max="1" aria-label="Progress of the sweep"{value}{hidden}></progress>'


def _sized(figure: dict, height: int) -> str:
    return pack({**figure, "layout": {**figure["layout"], "height": height}})


def _heading(title: str, caption: str) -> str:
    return f'<div class="ace-heading"><h2>{_text(title)}</h2><p>{_text(caption)}</p></div>'


def _table(caption: str, head: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    names = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_number(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    # focusable, so that the arrow keys scroll it
    return (
        f'<p class="ace-lab-note">{_text(caption)}</p>'
        f'<div class="ace-lab-scroll ace-sweep-tall" tabindex="0" role="region" aria-label="{_text(caption)}">'
        f'<table class="ace-lab-table"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _number(cell: str) -> str:
    return "–" if not cell else _text(f"−{cell[1:]}" if cell.startswith("-") else cell)


def _paragraph(text: str) -> str:
    return f'<p class="ace-lab-empty">{_text(text)}</p>'


def _text(text: str) -> str:
    """Text for a component that is rendered by a template language with ``${}`` and ``{{}}``."""
    return escape(text).replace("$", "&#36;").replace("{", "&#123;")
