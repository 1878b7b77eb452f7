"""Runs, fits and readings as plain JSON for programs; numbers that are none become null."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ace_core.host import ModelInfo
from ace_core.lab import LabFit, Look, PromptLayers
from ace_core.runs import ArmRun, Run

__all__ = ["done", "fitted", "projected", "running", "waiting"]

_DECIMALS = 4

Answer = dict[str, Any]


def waiting(message: str, layer: int) -> Answer:
    """Others go first."""
    return {"status": "waiting", "message": message, "layer": layer, "arms": []}


def running(run: Run) -> Answer:
    """A run so far."""
    longest = max(len(arm.token_ids) for arm in run.arms)
    message = f"Writing token {longest} of at most {run.settings.max_new_tokens}"
    return {"status": "running", "message": message, "layer": run.settings.layer, "arms": _arms(run)}


def done(run: Run) -> Answer:
    """A run with its complete record."""
    record = run.to_json(_DECIMALS)
    if not all(np.isfinite(part).all() for arm in run.arms for part in (arm.before, arm.after)):
        record = _plain(record)
    return {"status": "done", "message": "", "layer": run.settings.layer, "arms": _arms(run), "run": record}


def fitted(name: str, fit: LabFit, look: Look) -> Answer:
    """A fit that is kept under a name."""
    columns = zip(look.auroc, look.d_prime, look.origin, strict=True)
    return {
        "status": "done",
        "message": "",
        "fraction": 1.0,
        "directions": name,
        "model": fit.directions.model_id,
        "recommended_layer": look.recommended,
        "split": "" if fit.parts is None else f"{fit.parts.counts} {fit.parts.rule}",
        "notes": list(fit.notes),
        "layers": [
            {"layer": layer, "auroc": _number(auroc), "d_prime": _number(d_prime), "origin": _number(origin)}
            for layer, (auroc, d_prime, origin) in enumerate(columns)
        ],
    }


def projected(info: ModelInfo | None, read: PromptLayers, layers: list[int]) -> Answer:
    """A prompt's coordinates at some blocks."""
    return {
        "model": "" if info is None else info.model_id,
        "tokens": list(read.tokens),
        "recommended_layer": read.recommended,
        "layers": [{"layer": layer, "coordinates": _numbers(read.coordinates[layer])} for layer in layers],
    }


def _arms(run: Run) -> list[Answer]:
    return [_arm(arm, run.settings.layer, len(run.prompt_tokens)) for arm in run.arms]


def _arm(arm: ArmRun, layer: int, prompt_length: int) -> Answer:
    return {
        "label": arm.label,
        "method": arm.method,
        "coefficient": arm.coefficient,
        "text": arm.text,
        "tokens": len(arm.token_ids),
        "stop": arm.stop,
        "verdict": arm.verdict,
        "coordinates": _numbers(arm.after[layer, prompt_length:]) if arm.after.size else [],
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    number = round(float(value), _DECIMALS) + 0.0  # no -0
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
