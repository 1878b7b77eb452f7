"""A recorded run and recorded held-out prompts, as JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.lab.look import look_at
from ace_core.methods import METHODS
from ace_core.runs import Run

__all__ = ["FORMAT", "Classes", "Recording"]

FORMAT = 1
_DECIMALS = 2
_MOST_HELD_OUT = 60


@dataclass(frozen=True)
class Recording:
    """A recorded run with a title and a sentence about what to look at."""

    name: str
    title: str
    note: str
    run: Run

    def to_json(self) -> dict[str, Any]:
        # Speed is left out, so that the same model writes the same file.
        run = replace(self.run, tokens_per_second=0.0, recorded=True)
        return {"format": FORMAT, "title": self.title, "note": self.note, "run": run.to_json(_DECIMALS)}

    @classmethod
    def from_json(cls, name: str, data: Any) -> Recording:
        """Inverse of :meth:`to_json`.

        Raises:
            EngineError: if the data is not a recording of this format.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise EngineError(f"The recording '{name}' has another format: record the gallery again.")
        texts = [data.get(key) for key in ("title", "note")]
        if not all(isinstance(text, str) and text for text in texts) or not isinstance(data.get("run"), dict):
            raise EngineError(f"The recording '{name}' is incomplete: record the gallery again.")
        run = Run.from_json({**data["run"], "recorded": True})
        for arm in run.arms:
            # The model has read every token but the newest.
            read = len(run.prompt_tokens) + len(arm.token_ids) - 1
            shape = arm.after.shape
            sound = arm.method in METHODS and len(arm.tokens) == len(arm.token_ids) and len(shape) == 2
            if not sound or shape != arm.before.shape or shape[1] not in (read, read + 1):
                raise EngineError(f"The recording '{name}' contradicts itself: record the gallery again.")
        if not run.arms or not 0 <= run.settings.layer < run.arms[0].after.shape[0]:
            raise EngineError(f"The recording '{name}' has no such block: record the gallery again.")
        return cls(name, str(texts[0]), str(texts[1]), run)


@dataclass(frozen=True)
class Classes:
    """Held-out refusal coordinates ``(blocks, n)`` and ``(blocks, m)``, and what can be said of them a block.

    ``auroc`` and ``origin``, the coordinate of the zero vector, are ``(blocks,)``.
    """

    model: str
    recommended: int
    harmless: np.ndarray
    harmful: np.ndarray
    auroc: np.ndarray
    origin: np.ndarray

    @classmethod
    def of(cls, model: str, directions: RefusalDirections) -> Classes | None:
        """Held-out prompts of directions, at most 60 a class; None if they were fitted without any."""
        look = look_at(directions)
        if not np.isfinite(look.auroc).all():
            return None
        harmless, harmful = _thinned(look.harmless), _thinned(look.harmful)
        return cls(model, look.recommended, harmless, harmful, look.auroc, look.origin)

    def to_json(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in ("harmless", "harmful", "auroc", "origin")}
        plain = {name: np.round(np.asarray(part, np.float64), 3).tolist() for name, part in arrays.items()}
        return {"format": FORMAT, "model": self.model, "recommended": self.recommended, **plain}

    @classmethod
    def from_json(cls, data: Any) -> Classes:
        """Inverse of :meth:`to_json`.

        Raises:
            EngineError: if the data is not of this format.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError("format")
            names = ("harmless", "harmful", "auroc", "origin")
            harmless, harmful, auroc, origin = parts = [np.asarray(data[name], np.float32) for name in names]
            blocks = len(auroc)
            dimensions = [part.ndim for part in parts] == [2, 2, 1, 1]
            if not dimensions or any(len(part) != blocks or not np.isfinite(part).all() for part in parts):
                raise ValueError("shape")
            recommended = int(data["recommended"])
            if not 0 <= recommended < blocks:
                raise ValueError("block")
            return cls(str(data["model"]), recommended, harmless, harmful, auroc, origin)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError("The gallery's held-out coordinates can't be read: record the gallery again.") from error


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most so many prompts, at equal distances."""
    count = values.shape[1]
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST_HELD_OUT)).round().astype(int)) if count else []
    return values[:, chosen]
