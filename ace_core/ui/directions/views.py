"""Fitted directions as values of the page's components: plots, tables and lines of text, everything escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ace_core import plots
from ace_core.directions import RefusalDirections
from ace_core.lab import ACHIEVED_COEFFICIENTS, METHOD_CHOICES, Achieved, Beside, BlockChoice, LabFit, Look
from ace_core.ui.compare.views import nothing_yet
from ace_core.ui.packing import pack

__all__ = [
    "BESIDE_HEIGHT",
    "LAYERS_HEIGHT",
    "MAP_HEIGHT",
    "achieved",
    "bar",
    "beside",
    "beside_words",
    "candidates",
    "classes",
    "cosines",
    "in_use",
    "layers",
    "never_achieved",
    "not_achieved",
    "note",
    "plane",
    "recommendation",
    "shown",
]

BESIDE_HEIGHT = 300
LAYERS_HEIGHT = 340
MAP_HEIGHT = 400

_LOADING = "Appears once the model is loaded."
_COLUMNS = (
    ("block", "0-based decoder block whose output is edited"),
    ("AUROC", "chance that a held-out harmful prompt lies above a harmless one"),
    ("d′", "distance of the two classes in standard deviations"),
    ("gap / norm", "class gap over the mean length of activations"),
    ("bypass", "refusal score of harmful prompts when the method takes refusal away: lower is better"),
    ("induce", "refusal score of harmless prompts when it brings refusal about: higher is better"),
    ("KL", "how much taking refusal away changes answers to harmless prompts, nats: lower is better"),
)


def layers(look: Look | None) -> str:
    """Separation by layer."""
    if look is None:
        return nothing_yet(LAYERS_HEIGHT, _LOADING)
    return pack(plots.by_layer(look.auroc, look.d_prime, look.recommended, "layers", LAYERS_HEIGHT))


def cosines(look: Look | None) -> str:
    """Cosines between layers."""
    if look is None:
        return nothing_yet(LAYERS_HEIGHT, _LOADING)
    return pack(plots.cosines(look.cosines, look.recommended, "cosines", LAYERS_HEIGHT))


def beside(found: Beside | None) -> str:
    """Two directions side by side."""
    if found is None:
        return nothing_yet(BESIDE_HEIGHT, "Appears when there are two different directions.")
    return pack(plots.beside(found.cosines, found.words, found.recommended, "beside", BESIDE_HEIGHT))


def beside_words(found: Beside | None, kept: str) -> str:
    """Which two directions the plot shows, and which one is kept, if any."""
    told = f"Kept: {kept}." if kept else "Nothing is kept yet: press Keep this one, then fit again in another way."
    return _paragraph(told if found is None else f"{found.words[0]} against {found.words[1]}. {told}")


def classes(look: Look | None, block: int) -> str:
    """Both classes at a block."""
    if look is None:
        return nothing_yet(MAP_HEIGHT, _LOADING)
    origin = float(look.origin[block])
    return pack(plots.classes(look.harmless[block], look.harmful[block], origin, block, f"classes {block}", MAP_HEIGHT))


def plane(fit: LabFit | None, block: int) -> str:
    """Every prompt at a block."""
    if fit is None or not fit.planes:
        missing = "Press Fit to see every prompt here." if fit is None else "These directions came without prompts."
        if fit is not None and fit.stopped:
            missing = "The fit was stopped before the map was drawn."
        return nothing_yet(MAP_HEIGHT, missing)
    here = fit.planes[min(block, len(fit.planes) - 1)]
    points, prompts = (here.harmless, here.harmful), (fit.harmless, fit.harmful)
    return pack(plots.plane(*points, *prompts, here.explained, here.block, f"plane {here.block}", MAP_HEIGHT))


def recommendation(look: Look | None, fit: LabFit | None, choice: BlockChoice | None) -> str:
    """Which block, and why."""
    if look is None or fit is None:
        return _paragraph("Choose two prompt sets and press Fit: the recommended layer and its reason appear here.")
    block = f"<b>Block {look.recommended}</b>"
    if choice is None:
        why = "separates the held-out classes best outside the first and last fifth of the model."
        if not fit.steers:
            why += " These directions belong to block inputs: they are for looking, since edits happen at outputs."
        return f'<div class="ace-lab-words"><p>{block} {why}</p>{_sentences(fit.notes)}</div>'
    selection = choice.selection
    method = METHOD_CHOICES[selection.method]
    notes = [selection.reason, *selection.relaxed, *fit.notes]
    return f'<div class="ace-lab-words"><p>{block} is recommended for {method}.</p>{_sentences(notes)}</div>'


def candidates(choice: BlockChoice | None) -> str:
    """Every block with its numbers and a verdict."""
    if choice is None:
        return _paragraph("Appears when every layer has been steered, after a fit.")
    selection = choice.selection
    rows = []
    for candidate in selection.candidates:
        apart, effect = candidate.separability, candidate.effects[selection.method]
        numbers = (apart.auroc, apart.d_prime, apart.gap_ratio, effect.bypass, effect.induce, effect.kl)
        current = ' aria-current="true"' if candidate.block == selection.recommended else ""
        verdict = "recommended" if current else candidate.reason
        cells = "".join(f"<td>{_number(value)}</td>" for value in numbers)
        rows.append(f'<tr{current}><th scope="row">{candidate.block}</th>{cells}<td>{_text(verdict)}</td></tr>')
    head = "".join(f'<th scope="col" title="{words}">{name}</th>' for name, words in _COLUMNS)
    caption = f"Every layer, edited alone, for {METHOD_CHOICES[selection.method]}; refusal scores are log-odds in nats"
    return _table(caption, f"{head}<th scope='col'>verdict</th>", rows, "ace-lab-tall")


def achieved(rows: Sequence[Achieved]) -> str:
    """Coefficient asked for and coordinate reached at one block."""
    numbers = [
        (row.coefficient, row.kind, _number(row.achieved, 4), f"{row.deviation:.0e}",
         _number(row.final), _number(row.final_unsteered))
        for row in rows
    ]  # fmt: skip
    return _achieved_table(f"ACE at block {rows[0].block}: last token of the prompt", numbers)


def not_achieved(told: str, kinds: Sequence[str]) -> str:
    """Instead of a table, and as high as one: why there is none.

    Args:
        told: a sentence.
        kinds: classes that there are test prompts of.
    """
    return _achieved_table(told, [(c, kind, *"––––") for c in ACHIEVED_COEFFICIENTS for kind in kinds])


def never_achieved(told: str = "") -> str:
    """Instead of a table where there can't be one; without a sentence, that a fit brings it."""
    return _paragraph(told or "Appears after a fit: which coordinate ACE really reaches on prompts it has never seen.")


def _achieved_table(caption: str, rows: Sequence[tuple[float | str, ...]]) -> str:
    names = ("coefficient α", "test prompts", "coordinate reached", "farthest off", "at the last block", "without edit")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    lines = [
        f'<tr><th scope="row">{_number(float(coefficient))}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for coefficient, *cells in rows
    ]
    return _table(_text(caption), head, lines)


def in_use(own: tuple[RefusalDirections, str] | None, shipped: Look | None) -> str:
    """Which directions Compare steers with."""
    if own is not None:
        directions, name = own
        counts = _counts(directions)
        words = f"<b>{_text(name)}</b>{counts}, block {directions.recommended_layer}"
    elif shipped is None:
        words = "<b>the model's own</b>, once it is loaded"
    else:
        counts = "" if shipped.counts is None else f" ({shipped.counts[0]} + {shipped.counts[1]} prompts)"
        words = f"<b>shipped</b>{counts}, block {shipped.recommended} recommended"
    return f'<p class="ace-lab-inuse" role="status">Directions in use: {words}</p>'


def shown(fit: LabFit | None, look: Look | None) -> str:
    """Whose directions the plots show."""
    if look is None:
        return _paragraph("The model is still loading.")
    whose = "the directions that came with the model; a fit of your own takes their place"
    if fit is not None:
        whose = f"{_text(fit.name)}{_counts(fit.directions)}"
    return f'<p class="ace-lab-inuse">Shown: {whose}.</p>'


def note(text: str, bad: bool = False) -> str:
    """A sentence under a field."""
    kind = ' class="ace-problem" role="alert"' if bad else ' class="ace-lab-note"'
    return f"<p{kind}>{_text(text)}</p>"


def bar(fraction: float | None, active: bool = True) -> str:
    """How far the work is; keeps its place when there is none."""
    value = "" if fraction is None else f' value="{fraction:.3f}"'
    hidden = "" if active else ' style="visibility:hidden"'
    return f'<progress class="ace-lab-bar" max="1" aria-label="Progress of the fit"{value}{hidden}></progress>'


def _counts(directions: RefusalDirections) -> str:
    counts = [directions.metadata.get(f"{kind}_count", "") for kind in ("harmful", "harmless")]
    known = all(count.isascii() and count.isdigit() and len(count) < 9 for count in counts)
    return f": {int(counts[0])} + {int(counts[1])} prompts" if known else ""


def _table(caption: str, head: str, rows: Sequence[str], kind: str = "") -> str:
    # focusable, so that the arrow keys scroll it
    return (
        f'<p class="ace-lab-caption">{caption}</p>'
        f'<div class="ace-lab-scroll {kind}" tabindex="0" role="region" aria-label="{caption}">'
        f'<table class="ace-lab-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _sentences(texts: Sequence[str]) -> str:
    return "".join(f"<p>{_text(text)}</p>" for text in texts)


def _paragraph(text: str) -> str:
    return f'<p class="ace-lab-empty">{_text(text)}</p>'


def _text(text: str) -> str:
    """Text for a component that is rendered by a template language with ``${}`` and ``{{}}``."""
    return escape(text).replace("$", "&#36;").replace("{", "&#123;")


def _number(value: float, digits: int = 2) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    # adding 0 turns a rounded −0 into 0
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
