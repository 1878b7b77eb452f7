"""The record of one comparison, from which pages, files and tables are made without a model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ace_core.arms import Arm, Scope, TokenScope
from ace_core.errors import EngineError
from ace_core.generation import Step
from ace_core.methods import Method, Reference
from ace_core.sampling import Sampling
from ace_core.scoring import verdict

__all__ = ["ArmRun", "Run", "RunBuilder", "RunSettings", "save_run"]


@dataclass(frozen=True)
class RunSettings:
    """What a person set for a comparison. Layers are 0-based blocks.

    Both coefficients are in class gaps: ``coefficient`` is how far from ``reference``, a key of
    :data:`ace_core.methods.REFERENCES`, ACE puts every token (from the harmless mean it is the coordinate itself),
    ``addition`` how far activation addition moves it.
    """

    layer: int
    last: int | None = None
    scope: Scope = "one"
    token_scope: TokenScope = "all"
    coefficient: float = 0.0
    addition: float = -1.0
    reference: Reference = "harmless"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int = 64

    def arm(self, method: Method) -> Arm:
        return Arm(method, self.layer, self.scope, self.last, self.token_scope)

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed, self.max_new_tokens)


@dataclass(frozen=True)
class ArmRun:
    """One arm's answer.

    ``before`` and ``after`` are float32 ``(blocks, positions)`` refusal coordinates around the edit; positions are
    the prompt's tokens, then the generated tokens the model has read. The newest token has not been read yet.
    ``verdict`` is empty until there is enough text to judge.
    """

    label: str
    method: str
    coefficient: float | None
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str
    stop: str | None
    verdict: str
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Run:
    """One comparison: a prompt, settings, and an answer an arm."""

    model: str
    prompt: str
    prompt_tokens: tuple[str, ...]
    settings: RunSettings
    arms: tuple[ArmRun, ...]
    tokens_per_second: float
    recorded: bool = False

    def to_json(self, decimals: int = 4) -> dict[str, Any]:
        """Plain lists and numbers; coordinates rounded."""
        data = asdict(self)
        for arm in data["arms"]:
            for key in ("before", "after"):
                arm[key] = np.round(arm[key].astype(np.float64), decimals).tolist()
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """Inverse of :meth:`to_json`.

        Raises:
            EngineError: if the data is not a recorded run.
        """
        try:
            arms = tuple(
                ArmRun(
                    **{
                        **arm,
                        "token_ids": tuple(arm["token_ids"]),
                        "tokens": tuple(arm["tokens"]),
                        "before": np.asarray(arm["before"], np.float32),
                        "after": np.asarray(arm["after"], np.float32),
                    }
                )
                for arm in data["arms"]
            )
            fields = {**data, "arms": arms, "prompt_tokens": tuple(data["prompt_tokens"])}
            return cls(**{**fields, "settings": RunSettings(**data["settings"])})
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError("This is not a recorded run of this project: record it again.") from error


def save_run(run: Run, path: Path) -> None:
    """Write a run as JSON.

    Raises:
        EngineError: if the file can't be written.
    """
    try:
        path.write_text(json.dumps(run.to_json(decimals=3), ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    except OSError as error:
        raise EngineError(f"{path} could not be written ({error.strerror or error}): choose another file.") from None


class RunBuilder:
    """Collects the steps of one comparison."""

    def __init__(
        self,
        model: str,
        prompt: str,
        prompt_tokens: Sequence[str],
        settings: RunSettings,
        methods: Sequence[Method],
    ) -> None:
        self._model, self._prompt, self._prompt_tokens = model, prompt, tuple(prompt_tokens)
        self._settings, self._methods = settings, tuple(methods)
        count = len(self._methods)
        self._ids: list[list[int]] = [[] for _ in range(count)]
        self._pieces: list[list[str]] = [[] for _ in range(count)]
        self._stops: list[str | None] = [None] * count
        self._before: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._after: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._started: float | None = None
        self._seconds = 0.0

    def add(self, step: Step) -> None:
        """Take in one step of the stream."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        self._seconds = now - self._started
        for row in range(len(self._methods)):
            token = step.tokens[row]
            if step.before[row].shape[-1]:
                self._before[row].append(step.before[row])
                self._after[row].append(step.after[row])
            if token is not None:
                self._ids[row].append(token)
                self._pieces[row].append(step.text[row])
            elif step.text[row] and self._pieces[row]:
                self._pieces[row][-1] += step.text[row]
            self._stops[row] = self._stops[row] or step.stop[row]

    def snapshot(self) -> Run:
        """The run so far. Tokens per second count all arms together, after the first token."""
        later = sum(max(0, len(ids) - 1) for ids in self._ids)
        rate = later / self._seconds if self._seconds > 0 else 0.0
        arms = tuple(self._arm(row, method) for row, method in enumerate(self._methods))
        return Run(self._model, self._prompt, self._prompt_tokens, self._settings, arms, rate)

    def _arm(self, row: int, method: Method) -> ArmRun:
        text = "".join(self._pieces[row])
        judged = self._stops[row] is not None or len(text) > 40
        return ArmRun(
            label=method.label,
            method=method.name,
            coefficient=method.coefficient,
            token_ids=tuple(self._ids[row]),
            tokens=tuple(self._pieces[row]),
            text=text,
            stop=self._stops[row],
            verdict=verdict(text) if judged and self._stops[row] not in ("cancelled", "nan") else "",
            before=_joined(self._before[row]),
            after=_joined(self._after[row]),
        )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) > 1:
        parts[:] = [np.concatenate(parts, axis=1)]  # keeps snapshots linear in length
    return parts[0] if parts else np.empty((0, 0), np.float32)
