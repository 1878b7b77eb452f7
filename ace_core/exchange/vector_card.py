"""A card in Markdown that says what a vectors file holds and how to use it."""

from __future__ import annotations

import html
import math
import re

from ace_core.default_model.adapter import REFUSING_ID
from ace_core.directions import RefusalDirections
from ace_core.embedded import EMBEDDED_ID
from ace_core.exchange.vectors import printable

__all__ = ["vector_card"]

_LIMIT = 200
_MARKS = re.compile(r"([\\`*_{}\[\]()#!|~:@^$])")
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_LOAD_NAMES = {REFUSING_ID: "embedded", EMBEDDED_ID: "embedded-base"}

_CARD = """\
# Refusal directions of {model}

Mean activations over harmless and harmful prompts at every decoder block (site: {site}; position: {position}), and a
refusal direction *r* between them at each ({variant}). The class gap is the distance of the means along it; blocks are
counted from 0.

| | |
|---|---|
| model | {model} |
| revision | {revision} |
| precision | {precision} |
| chat template, SHA-256 | {template} |
| harmless prompts | {harmless} |
| harmful prompts | {harmful} |
| third prompt set | {reference} |
| held out | {heldout_harmless} harmless, {heldout_harmful} harmful |
| split | {split} |
| licence of the prompts | {licence} |
| torch, transformers | {torch}, {transformers} |
| shape | {blocks} blocks, width {width} |

## Recommended block

Block **{layer}**: AUROC {auroc} and d′ {d_prime} on held-out prompts, class gap {gap}, origin's coordinate {origin}.
The coordinate is 0 at the harmless and 1 at the harmful mean; directional ablation sends every token to the origin,
wherever that lies, and ACE to the coordinate it is given.

## Use

```python
import ace_core as ace

model = ace.load_model({code_id})
directions = ace.load_directions(model, "FILE.safetensors")
```

These vectors steer a model while it runs and only then: nothing here changes or contains weights, and no model with
refusals removed is to be made or shared with them. Separation was measured at one position of held-out prompts; whether
steering changes answers has to be tried.

## All blocks

| block | AUROC | d′ | class gap | origin's coordinate |
|---:|---:|---:|---:|---:|
{table}
"""


def vector_card(directions: RefusalDirections) -> str:
    """The card of ``directions``; what their metadata says is escaped for Markdown and HTML, and cut if long."""
    get = directions.metadata.get
    model = directions.model_id
    separation, gap, origin = directions.separation, directions.gap, directions.origin
    rows = [
        (str(block), _number(s.auroc), _number(s.d_prime), _number(float(gap[block])), _number(float(origin[block])))
        for block, s in enumerate(separation)
    ]
    _, auroc, d_prime, chosen_gap, chosen_origin = rows[directions.recommended_layer]
    return _CARD.format(
        model=_safe(model),
        site=_safe(get("site", "block output")),
        position=_safe(get("position", "")),
        variant=_safe(directions.variant.replace("_", " ")),
        reference=_prompts(directions, "reference") if directions.mean_reference is not None else "none",
        split=_safe(get("split_rule", "")),
        revision=_safe(get("revision", "")),
        precision=_safe(get("precision", "")),
        template=_safe(get("template_sha256", "")),
        harmless=_prompts(directions, "harmless"),
        harmful=_prompts(directions, "harmful"),
        heldout_harmless=directions.heldout_harmless.shape[1],
        heldout_harmful=directions.heldout_harmful.shape[1],
        licence=_safe(get("prompts_licence", "")),
        torch=_safe(get("torch", "")),
        transformers=_safe(get("transformers", "")),
        blocks=directions.blocks,
        width=directions.width,
        layer=directions.recommended_layer,
        auroc=auroc,
        d_prime=d_prime,
        gap=chosen_gap,
        origin=chosen_origin,
        # inside a code fence nothing can be escaped
        code_id=f'"{_LOAD_NAMES.get(model, model)}"' if _PLAIN_ID.fullmatch(model) else '"MODEL"',
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
    )


def _prompts(directions: RefusalDirections, kind: str) -> str:
    count = directions.metadata.get(f"{kind}_count", "")
    digest = directions.metadata.get(f"{kind}_sha256", "")
    return f"{_safe(count)}, SHA-256 {_safe(digest)}"


def _safe(text: str) -> str:
    """``text`` as one line that Markdown and HTML show as it is; a dash for none."""
    shown = printable(text, _LIMIT)
    if len(text) > _LIMIT:
        shown += "…"
    # a colon, an at sign and www. are enough to make a link on many sites
    shown = _MARKS.sub(r"\\\1", shown)
    shown = re.sub(r"(?i)\bwww\.", lambda match: match[0][:-1] + "\\.", shown)
    return html.escape(shown, quote=False) or "–"


def _number(number: float) -> str:
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    return f"{number:.3g}".replace("-", "−")
