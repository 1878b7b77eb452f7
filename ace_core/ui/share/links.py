"""A comparison as text to take away: a link, a Python program, a command."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlencode

from ace_core.methods import ACE, METHODS, REFERENCES, Method
from ace_core.prompts import MAX_PROMPT_CHARACTERS
from ace_core.runs import RunSettings
from ace_core.ui import controls
from ace_core.ui.controls import FIELDS, TITLES, Asked

__all__ = ["PARAMETERS", "Link", "as_command", "as_python", "query", "read_link"]

PARAMETERS = {
    "layer": "layer",
    "last": "last",
    "scope": "blocks",
    "token_scope": "tokens",
    "coefficient": "ace",
    "reference": "from",
    "addition": "add",
    "arms": "arms",
    "max_new_tokens": "length",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "prompt": "prompt",
}
"""What each of :data:`~ace_core.ui.controls.FIELDS` is called in a link."""

_WORDS = {"scope": controls.SCOPE_NAMES, "token_scope": controls.TOKEN_SCOPE_NAMES, "reference": REFERENCES}
_WHOLE = ("layer", "last", "max_new_tokens", "top_k", "seed")
_NUMBER = re.compile(r"[+-]?\d{1,10}(\.\d{1,17})?(e-?\d{1,2})?", re.ASCII)
_DEFAULTS = {field.name: field.default for field in fields(RunSettings)}
_OPTIONS = {
    "last": "last",
    "scope": "scope",
    "token_scope": "tokens",
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
}
"""Settings as ``ace_core.stream`` and, with dashes, ``python -m ace_core compare`` call them."""


@dataclass(frozen=True)
class Link:
    """What a link asks for: usable values by field, and a sentence for each one that is not as it was written."""

    values: dict[str, Any]
    notes: tuple[str, ...]


def query(asked: Asked, with_prompt: bool = False) -> str:
    """The settings of a request as a query string, ``?layer=17&…``; the prompt only if it is wanted."""
    settings = asked.settings
    found: dict[str, Any] = {"layer": settings.layer}
    if settings.last is not None:
        found["last"] = settings.last
    for name in FIELDS:
        if name in ("arms", "prompt", "layer", "last"):
            continue
        value = getattr(settings, name)
        found[PARAMETERS[name]] = f"{value:.12g}" if isinstance(value, float) else value
    found["arms"] = ",".join(method.name for method in asked.methods)
    if with_prompt:
        found["prompt"] = asked.prompt
    return "?" + urlencode(found, safe=",")


def read_link(parameters: Mapping[str, str], blocks: int) -> Link:
    """Read a link's query; anything in it may be wrong, and what is not ours is left alone.

    Args:
        parameters: of the page's address.
        blocks: how many blocks the model has.
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    for name, short in PARAMETERS.items():
        text = parameters.get(short)
        if text is None:
            continue
        value, note = _read(name, str(text), blocks)
        if value is not None:
            values[name] = value
        if note:
            notes.append(f"{TITLES[name]}: {note}")
    if values.get("scope") == "window" and not values.get("layer", 0) <= values.get("last", -1):
        values = {name: value for name, value in values.items() if name not in ("scope", "last")}
        notes.append(f"{TITLES['last']}: ignored, because the window does not end after it starts")
    return Link(values, tuple(notes))


def as_python(asked: Asked, model: str, precision: str = "auto", own: bool = False) -> str:
    """A program that prints the answers of a request.

    Args:
        asked: a checked request.
        model: what :func:`ace_core.load_model` finds it by.
        precision: of its weights.
        own: whether it is steered with directions that only the visitor has.
    """
    load = [repr(model)] + ([] if precision == "auto" else [f"precision={precision!r}"])
    arms = ", ".join(f"ace.{method!r}" for method in asked.methods)
    options = "".join(f", {name}={value!r}" for name, value in _options(asked.settings))
    extra, directions = "", "ace.load_directions(model)"
    if own:
        directions = 'ace.load_directions(model, "vectors.safetensors")  # downloaded from the Directions tab'
    elif model != "embedded":
        extra, directions = "from ace_core.fitting.extraction import directions_for\n", "directions_for(model)"
    return f"""import ace_core as ace
{extra}
model = ace.load_model({", ".join(load)})
directions = {directions}
prompt = {asked.prompt!r}
arms = [{arms}]
texts = [""] * len(arms)
for step in ace.stream(model, directions, prompt, arms, layer={asked.settings.layer}{options}):
    texts = [text + piece for text, piece in zip(texts, step.text)]
for arm, text in zip(arms, texts):
    print(f"== {{arm.label}}\\n{{text.strip()}}\\n")
"""


def as_command(asked: Asked, model: str, precision: str = "auto", own: bool = False) -> str:
    """A command for a POSIX shell that prints the answers of a request; arguments as for :func:`as_python`."""
    words = ["python", "-m", "ace_core", "compare", "--model", model]
    if precision != "auto":
        words += ["--precision", precision]
    if own:
        words += ["--vectors", "vectors.safetensors"]
    words += ["--layer", str(asked.settings.layer)]
    for method in asked.methods:
        words += ["--arm", _arm(method)]
    for name, value in _options(asked.settings):
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--", asked.prompt])


def _arm(method: Method) -> str:
    """A method as :func:`ace_core.methods.parse_method` reads it."""
    alone = method.name if method.coefficient is None else f"{method.name}:{method.coefficient!r}"
    return f"{alone}@{method.reference}" if isinstance(method, ACE) and method.reference != "harmless" else alone


def _options(settings: RunSettings) -> list[tuple[str, Any]]:
    """Settings besides the layer that are not what they are anyway."""
    found = [(option, getattr(settings, name), _DEFAULTS[name]) for name, option in _OPTIONS.items()]
    return [(option, value) for option, value, default in found if value != default]


def _read(name: str, text: str, blocks: int) -> tuple[Any, str]:
    """A usable value or None, and what is to be said about it."""
    if name == "prompt":
        return _prompt(text)
    if name == "arms":
        wanted = text.split(",")[:20]
        arms = [arm for arm in METHODS if arm in wanted]
        if not arms:
            return None, "ignored, because it names no method"
        unknown = any(arm not in METHODS for arm in wanted)
        return arms, "methods that this page does not have were left out" if unknown else ""
    if name in _WORDS:
        known = _WORDS[name]
        return (text, "") if text in known else (None, f"ignored, because it is none of {', '.join(known)}")
    if not _NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
        return None, "ignored, because it is not a number"
    if name in _WHOLE and number != int(number):
        return None, "ignored, because it is not a whole number"
    low, high = _range(name, blocks)
    near = min(max(number, low), high)
    return int(near) if name in _WHOLE else near, "" if near == number else f"set to {near:g}, the nearest there is"


def _prompt(text: str) -> tuple[str | None, str]:
    if not text.strip():
        return None, ""
    if len(text) > MAX_PROMPT_CHARACTERS:
        return None, f"ignored, because it is longer than {MAX_PROMPT_CHARACTERS:,} characters"
    return text, ""


def _range(name: str, blocks: int) -> tuple[float, float]:
    return {
        "layer": (0, blocks - 1),
        "last": (0, blocks - 1),
        "coefficient": controls.COEFFICIENT_RANGE,
        "addition": controls.COEFFICIENT_RANGE,
        "max_new_tokens": controls.NEW_TOKENS_RANGE,
        "temperature": (0, controls.TEMPERATURE_LIMIT),
        "top_p": controls.TOP_P_RANGE,
        "top_k": (0, controls.TOP_K_LIMIT),
        "seed": (0, controls.SEED_LIMIT),
    }[name]
