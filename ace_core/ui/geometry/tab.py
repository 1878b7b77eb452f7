"""The geometry tab: what each method does to real activations, drawn and moved in the browser, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, TypedDict

import gradio as gr

from ace_core.methods import ACE, METHODS, REFERENCES, Method, Reference, parse_method
from ace_core.ui.geometry.tokens import TokensReader, wire
from ace_core.ui.handlers import Handlers
from ace_core.ui.packing import pack
from ace_core.ui.theme import GLYPHS, script

__all__ = ["Edit", "build", "edits", "load_map"]

_FILE = Path(__file__).resolve().parents[3] / "assets" / "geometry.json"
_ENGINES = ("unit", "principal")
"""What of a map only the engine needs."""
_SCRIPTS = [f"geometry_{part}.js" for part in ("scene", "drawing", "words", "tokens", "save", "controls")]
_REFERENCES: tuple[Reference, ...] = ("harmless", "origin", "pooled", "harmful")
_IN_WORDS = {
    "baseline": "Nothing is changed: every prompt stays where it was.",
    "addition": "Slides every prompt by the same distance, α class gaps.",
    "ablation": "Removes the whole component, so every prompt ends level with the origin.",
    "affine_ablation": "Puts the harmless mean's component in its place, so every prompt ends there.",
    "ace": "Puts every prompt α class gaps from the reference point, wherever it was.",
}
_CONSTANT = {
    "baseline": "0",
    "addition": "",
    "ablation": "0",
    "affine_ablation": "μ⁻·u",
    "harmless": "μ⁻·u",
    "origin": "0",
    "pooled": "½(μ⁻ + μ⁺)·u",
    "harmful": "μ⁺·u",
}
"""What is put back before the coefficient, by method, for ACE by reference point."""
_KNOWN_AS: dict[Reference, str] = {
    "harmless": "ACE as in the paper; 0 is affine ablation",
    "origin": "0 is directional ablation",
    "pooled": "the multiplier of the paper's public code",
    "harmful": "0 is the harmful mean itself",
}
_LETTERS = {
    "remove": ("λ", "how much of the old component is removed: 0 nothing, 1 all of it"),
    "add": ("s", "what is put back, in units of activation"),
    "coefficient": ("α", "the coefficient, in class gaps"),
    "low": ("μ⁻·u", "where the harmless mean lies along u, counted from the origin"),
    "gap": ("g", "the class gap: distance between the two means"),
}
_TOKENS_LEGEND = """
      <span><span data-mark="token">★</span> token of your prompt, its last one large</span>"""
_TOKENS = """
      <p class="ace-geo-buttons"><button type="button" data-tokens="put"
      title="Read the prompt of your last run once, without any edit, and show every token of it on the map">Put my
      prompt’s tokens here</button>
      <button type="button" data-tokens="remove" title="Take the tokens off the map" hidden>Remove</button></p>
      <p class="ace-geo-put" role="status" data-slot="tokens">Takes the prompt of your last run on the Compare tab, or
      of the recorded example.</p>
      <p class="ace-geo-token-words" data-slot="token"></p>
"""
_MISSING = (
    '<p class="ace-geo-missing">The map of activations is missing or damaged: run <code>geometry_data</code> of '
    "<code>ace_core.inspecting.plane</code> to make it again.</p>"
)


class Edit(TypedDict):
    """``(remove, add)`` of a method at every coefficient: ``add = base + slope * coefficient``."""

    method: str
    reference: str
    scaled: bool
    remove: float
    base: float
    slope: float
    constant: str
    words: str


def edits(low: float, high: float) -> list[Edit]:
    """Every method, ACE once a reference point, for class means at ``low`` and ``high``.

    The numbers come from the methods themselves, so that the page repeats only the one affine formula.
    """
    found = []
    for name in METHODS:
        if name == ACE.name:
            found += [
                _edit(lambda alpha, point=point: ACE(alpha, point), low, high, reference=point) for point in _REFERENCES
            ]
        else:
            scaled = name == "addition"
            found.append(_edit(lambda alpha, name=name, scaled=scaled: _method(name, alpha, scaled), low, high))
    return found


def load_map(path: Path = _FILE) -> dict[str, Any] | None:
    """The map that :mod:`ace_core.inspecting.plane` wrote, with the edits; None if there is none or it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        low, high = float(data["mean_harmless"][0]), float(data["mean_harmful"][0])
        points = [*data["harmless"], *data["harmful"], data["origin"]]
        if not high > low or any(not isinstance(number, (int, float)) for x, y in points for number in (x, y)):
            return None
        shown = {name: value for name, value in data.items() if name not in _ENGINES}
        return {**shown, "share": float(data["share"]), "edits": edits(low, high)}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def build(path: Path = _FILE, handlers: Handlers | None = None) -> gr.HTML:
    """The tab's one component; it answers in the browser and asks the server nothing but a prompt's tokens.

    Args:
        path: the map.
        handlers: of the page, whose model reads the visitor's prompt for the map; None offers no such thing.
    """
    data = load_map(path)
    if data is None:
        return gr.HTML(_MISSING, elem_id="geometry", apply_default_css=False)
    tab = gr.HTML(
        pack(data),
        html_template=_markup(data, tokens=handlers is not None),
        js_on_load="\n".join(map(script, _SCRIPTS)),
        elem_id="geometry",
        apply_default_css=False,
    )
    if handlers is not None:
        wire(tab, TokensReader(handlers, data, path))
    return tab


def _method(name: str, alpha: float, scaled: bool) -> Method:
    return parse_method(f"{name}:{alpha}" if scaled else name)


def _edit(at: Callable[[float], Method], low: float, high: float, reference: str = "") -> Edit:
    method = at(0.0)
    remove, base = method.affine(low, high)
    return {
        "method": method.name,
        "reference": reference,
        "scaled": method.coefficient is not None,
        "remove": remove,
        "base": base,
        "slope": at(1.0).affine(low, high)[1] - base,
        "constant": _CONSTANT[reference or method.name],
        "words": _IN_WORDS[method.name],
    }


def _markup(data: dict[str, Any], tokens: bool) -> str:
    """Everything but the numbers and the drawing, so that nothing jumps when the script starts."""
    model, block = _text(str(data["model"])), int(data["block"])
    harmful, harmless = len(data["harmful"]), len(data["harmless"])
    methods = "".join(
        _choice("method", name, "None" if name == "baseline" else cls.title, _IN_WORDS[name], GLYPHS[name])
        for name, cls in METHODS.items()
    )
    points = "".join(
        _choice("reference", point, REFERENCES[point].removeprefix("the ").capitalize(), _KNOWN_AS[point])
        for point in _REFERENCES
    )
    asks = "only your own prompt’s tokens ask the model" if tokens else "nothing here asks the model"
    letters = "".join(
        f'<div data-letter="{key}" title="{escape(words)}"><dt><i>{letter}</i> = <output data-number="{key}">'
        f"</output></dt><dd>{words}</dd></div>"
        for key, (letter, words) in _LETTERS.items()
    )
    family = "".join(
        f'<tr data-reference="{point}"><th scope="row">{REFERENCES[point]}</th><td data-family="{point}"></td>'
        f"<td>{_KNOWN_AS[point]}</td></tr>"
        for point in _REFERENCES
    )
    return f"""
<section class="ace-geo" data-method="baseline" aria-label="Geometry of the refusal direction">
  <div class="ace-heading"><h2>What an edit does to a prompt</h2>
  <p>Instant, on recorded numbers: the sidebar plays no part, and {asks}.</p></div>
  <p class="ace-geo-text">While a language model reads a prompt, it keeps notes as a long list of numbers, which is a
  point in a space of many dimensions. Each mark is one of {harmful + harmless} real prompts as {model} holds it after
  block {block}, just before it answers: the further right, the more it resembles the harmful requests that the model
  refuses; up and down is what prompts differ in most besides that. Choose a method and drag the coefficient to see
  where it moves every prompt.</p>
  <div class="ace-geo-bench">
    <div class="ace-geo-panel">
      <fieldset class="ace-geo-choices" data-group="method"><legend>Method</legend>{methods}</fieldset>
      <p class="ace-geo-hint" data-slot="words"></p>
      <div class="ace-geo-slider">
        <label for="ace-geo-alpha">Coefficient <i>α</i></label>
        <output for="ace-geo-alpha" data-slot="alpha"></output>
        <input id="ace-geo-alpha" type="range" min="-1" max="2" step="0.05" value="0"
        aria-describedby="ace-geo-alpha-hint">
        <p class="ace-geo-scale" aria-hidden="true"><span>−1</span><span>0</span><span>1</span><span>2</span></p>
        <p class="ace-geo-hint" id="ace-geo-alpha-hint" data-slot="alpha-hint"></p>
      </div>
      <fieldset class="ace-geo-choices" data-group="reference"><legend>Reference point of ACE</legend>{points}
      </fieldset>
      <p class="ace-geo-hint">Where ACE brings every prompt before it goes α class gaps further.</p>
    </div>
    <div class="ace-geo-stage">
      <div class="ace-geo-formula" role="math" data-slot="formula">
        <p><i>v′</i> = <i>v</i> + (<b data-letter="add">s</b> − <b data-letter="remove">λ</b> (<i>v·u</i>)) <i>u</i></p>
        <p><i>v′</i> = <i>v</i> + (<b data-letter="add" data-number="add"></b> −
        <b data-letter="remove" data-number="remove"></b> (<i>v·u</i>)) <i>u</i></p>
        <p data-slot="put-back"></p>
      </div>
      <p class="ace-geo-legend"><span><span data-mark="harmful">▼</span> harmful prompt</span>
      <span><span data-mark="harmless">○</span> harmless prompt</span>
      <span><span data-mark="before">▽○</span> before the edit</span>
      <span><span data-mark="probe">◎</span> your point: drag it, or use the arrow keys</span>{_TOKENS_LEGEND * tokens}
      </p>
      <div class="ace-geo-plot" data-slot="plot"></div>
      <p class="ace-geo-said" role="status" aria-live="polite" data-slot="said"></p>
      <p class="ace-geo-probe"><span data-mark="probe">◎</span> <output data-slot="probe"></output></p>
      {_TOKENS * tokens}
      <p class="ace-geo-buttons"><button type="button" data-save="png" title="Save this picture as a PNG file, for
      slides">Save as PNG</button> <button type="button" data-save="svg" title="Save this picture as an SVG file, which
      stays sharp at any size">Save as SVG</button></p>
    </div>
  </div>
  <dl class="ace-geo-letters">{letters}</dl>
  <table class="ace-geo-family">
    <caption>One family: the same edit, counted from four reference points</caption>
    <thead><tr><th scope="col">Counted from</th><th scope="col">Coefficient</th>
    <th scope="col">Known as</th></tr></thead>
    <tbody>{family}</tbody>
  </table>
  <p class="ace-geo-hint ace-geo-family-note" data-slot="family"></p>
  <div class="ace-heading"><h2>Why the origin is no neutral point</h2></div>
  <p class="ace-geo-text">{_origin(data)}</p>
  <p class="ace-geo-hint ace-geo-text">{harmful} harmful and {harmless} harmless prompts, the ones the direction was
  fitted on. Across: <i>v·u</i>, the component along the refusal direction. Up: the first principal component of the
  rest, which holds {100 * data["share"]:.0f} % of the variance that is left. Every edit moves sideways only.</p>
</section>
"""


def _origin(data: dict[str, Any]) -> str:
    low, high = data["mean_harmless"][0], data["mean_harmful"][0]
    place = (data["origin"][0] - low) / (high - low)
    side = "harmful" if place > 0.5 else "harmless"
    moved = (
        "so directional ablation, which brings every prompt level with it, moves harmless prompts towards the harmful "
        "ones"
        if side == "harmful"
        else "so that is where directional ablation brings every prompt"
    )
    return (
        "The origin is the list of all zeros. No prompt ever lands there, and training never made it mean “neither "
        "harmful nor harmless”: where it lies among the prompts is an accident of how the model keeps its notes. Here "
        f"it lies at coordinate {place:.2f}, on the {side} side of the decision line, {moved}. ACE starts from a point "
        "that means something: the mean of the harmless prompts."
    )


def _text(text: str) -> str:
    """Text for Gradio's templates, which would compute what stands in ``${}`` or ``{{}}``."""
    return escape(text).replace("$", "&#36;").replace("{", "&#123;")


def _choice(group: str, value: str, label: str, words: str, glyph: str = "") -> str:
    mark = f'<span class="ace-glyph" aria-hidden="true">{glyph}</span>' if glyph else ""
    first = " checked" if value in ("baseline", "harmless") else ""
    return (
        f'<label data-{group}="{value}" title="{escape(words)}"><input type="radio" name="ace-geo-{group}" '
        f'value="{value}"{first}>{mark}<span>{escape(label)}</span></label>'
    )
