"""What a visitor asked for: raw values of the controls in, a checked request out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ace_core.methods import METHODS, REFERENCES, Method, parse_method
from ace_core.prompts import MAX_PROMPT_CHARACTERS
from ace_core.runs import Run, RunSettings

__all__ = [
    "COEFFICIENT_RANGE",
    "FIELDS",
    "NEW_TOKENS_RANGE",
    "SCOPE_NAMES",
    "SEED_LIMIT",
    "TEMPERATURE_LIMIT",
    "TITLES",
    "TOKEN_SCOPE_NAMES",
    "TOP_K_LIMIT",
    "TOP_P_RANGE",
    "USED_BY",
    "Asked",
    "ask",
    "changes",
    "problems",
    "values_of",
]

COEFFICIENT_RANGE = (-2.0, 2.5)
NEW_TOKENS_RANGE = (8, 512)
TEMPERATURE_LIMIT = 2.0
TOP_K_LIMIT = 200
TOP_P_RANGE = (0.05, 1.0)
SEED_LIMIT = 2**31 - 1

SCOPE_NAMES = {
    "one": "one block",
    "window": "a window of blocks",
    "all": "all blocks, each its own direction",
    "shared": "all blocks, one shared direction",
}
TOKEN_SCOPE_NAMES = {
    "all": "all tokens",
    "prompt": "prompt only",
    "generated": "generated only",
    "last": "from the last prompt token",
}

FIELDS = (
    "prompt",
    "layer",
    "last",
    "scope",
    "token_scope",
    "coefficient",
    "reference",
    "addition",
    "arms",
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
)
"""Names of the controls, in the order in which their values are passed around."""


@dataclass(frozen=True)
class Asked:
    """A checked request."""

    prompt: str
    settings: RunSettings
    methods: tuple[Method, ...]


def problems(values: Mapping[str, Any], blocks: int) -> dict[str, str]:
    """What is wrong with raw values, one sentence by the name of the field; empty if nothing is.

    Args:
        values: by the names in :data:`FIELDS`, as the browser sent them: anything at all.
        blocks: how many blocks the model has.
    """
    found: dict[str, str] = {}
    prompt = values["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        found["prompt"] = "Type a prompt, or pick an example below."
    elif len(prompt) > MAX_PROMPT_CHARACTERS:
        found["prompt"] = (
            f"The prompt has {len(prompt):,} characters: shorten it to {MAX_PROMPT_CHARACTERS:,} or fewer."
        )
    if values["scope"] not in list(SCOPE_NAMES):
        found["scope"] = "Choose which blocks to edit."
    if values["token_scope"] not in list(TOKEN_SCOPE_NAMES):
        found["token_scope"] = "Choose which tokens to edit."
    if values["reference"] not in list(REFERENCES):
        found["reference"] = "Choose the point that ACE starts from."
    arms = values["arms"]
    if not isinstance(arms, list) or not arms or not all(name in list(METHODS) for name in arms):
        found["arms"] = "Choose at least one arm to show."
    _check_whole(found, values, "layer", 0, blocks - 1)
    if values["scope"] == "window":
        _check_whole(found, values, "last", 0, blocks - 1)
        if "layer" not in found and "last" not in found and values["last"] < values["layer"]:
            found["last"] = "The window must end at or after the layer where it starts."
    _check_number(found, values, "coefficient", *COEFFICIENT_RANGE)
    _check_number(found, values, "addition", *COEFFICIENT_RANGE)
    _check_whole(found, values, "max_new_tokens", *NEW_TOKENS_RANGE)
    _check_number(found, values, "temperature", 0, TEMPERATURE_LIMIT)
    _check_number(found, values, "top_p", *TOP_P_RANGE)
    _check_whole(found, values, "top_k", 0, TOP_K_LIMIT)
    _check_whole(found, values, "seed", 0, SEED_LIMIT)
    return found


def ask(values: Mapping[str, Any]) -> Asked:
    """The request behind values in which :func:`problems` found nothing."""
    coefficients = {"addition": float(values["addition"]), "ace": float(values["coefficient"])}
    wanted = [name for name in METHODS if name in values["arms"]]
    settings = RunSettings(
        layer=int(values["layer"]),
        last=int(values["last"]) if values["scope"] == "window" else None,
        scope=values["scope"],
        token_scope=values["token_scope"],
        coefficient=coefficients["ace"],
        addition=coefficients["addition"],
        reference=values["reference"],
        temperature=float(values["temperature"]),
        top_p=float(values["top_p"]),
        top_k=int(values["top_k"]),
        seed=int(values["seed"]),
        max_new_tokens=int(values["max_new_tokens"]),
    )
    methods = tuple(parse_method(name, coefficients.get(name), values["reference"]) for name in wanted)
    return Asked(values["prompt"], settings, methods)


def values_of(prompt: str, settings: RunSettings, arms: Sequence[str]) -> tuple[Any, ...]:
    """Values of :data:`FIELDS` that ask for a comparison; the inverse of :func:`ask`."""
    own = {name: getattr(settings, name) for name in FIELDS if hasattr(settings, name)}
    last = settings.layer if settings.last is None else settings.last
    values = {**own, "last": last, "prompt": prompt, "arms": list(arms)}
    return tuple(values[name] for name in FIELDS)


def changes(run: Run, values: Mapping[str, Any], blocks: int) -> list[str]:
    """Names of the settings that differ from those a run was made with; an invalid value counts as different."""
    bad = problems(values, blocks)
    changed = [TITLES[name] for name in bad]
    usable = {**values, **{name: _fallback(run)[name] for name in bad}}
    asked = ask(usable)
    if asked.prompt != run.prompt:
        changed.append(TITLES["prompt"])
    shown = {method.name for method in asked.methods}
    for name in FIELDS:
        idle = name in USED_BY and USED_BY[name] not in shown
        known = hasattr(run.settings, name) and not idle
        if known and getattr(asked.settings, name) != getattr(run.settings, name):
            changed.append(TITLES[name])
    if shown != {arm.method for arm in run.arms}:
        changed.append(TITLES["arms"])
    return list(dict.fromkeys(changed))


USED_BY = {"coefficient": "ace", "reference": "ace", "addition": "addition"}
"""The one method that a setting belongs to."""

TITLES = {
    "prompt": "prompt",
    "layer": "layer",
    "last": "window end",
    "scope": "edited blocks",
    "token_scope": "edited tokens",
    "coefficient": "ACE coefficient",
    "reference": "ACE reference",
    "addition": "addition coefficient",
    "arms": "arms",
    "max_new_tokens": "answer length",
    "temperature": "temperature",
    "top_p": "top-p",
    "top_k": "top-k",
    "seed": "seed",
}
"""What a sentence calls each control."""


def _fallback(run: Run) -> dict[str, Any]:
    values = values_of(run.prompt, run.settings, [arm.method for arm in run.arms])
    return dict(zip(FIELDS, values, strict=True))


def _check_number(found: dict[str, str], values: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = values[name]
    # NaN is in no range, so that one comparison refuses it too.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        found[name] = f"Choose a number from {low:g} to {high:g}."


def _check_whole(found: dict[str, str], values: Mapping[str, Any], name: str, low: int, high: int) -> None:
    _check_number(found, values, name, low, high)
    if name in found or values[name] != int(values[name]):
        found[name] = f"Choose a whole number from {low} to {high}."
