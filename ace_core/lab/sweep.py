"""A small sweep as a task of the model thread: what can be asked, running and resuming it, and looking at it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.methods import METHODS
from ace_core.models import ChatModel
from ace_core.prompts import load_builtin
from ace_core.sweeps.figures import Picture, sweep_figures
from ace_core.sweeps.plan import SweepPlan
from ace_core.sweeps.presets import PRESETS, preset_plan, sweep_prompts
from ace_core.sweeps.records import Record, SweepFolder
from ace_core.sweeps.report import read_sweep, write_report
from ace_core.sweeps.runner import run_sweep
from ace_core.sweeps.summary import SweepSummary
from ace_core.sweeps.tables import Table, sweep_tables
from ace_core.tasks import Task

__all__ = [
    "ALPHA_COUNTS",
    "ALPHA_RANGE",
    "MOST_METHODS",
    "PROMPT_COUNTS",
    "SWEEP_METHODS",
    "SWEEP_PRESETS",
    "TOKEN_COUNTS",
    "LabSweep",
    "SweepFiles",
    "SweepLook",
    "SweepRequest",
    "recorded_sweep",
    "sweep_request",
]

SWEEP_PRESETS = {"quick": "One layer, with answers", "layers": "Every layer, no answers"}
"""In words by name."""

SWEEP_METHODS = {name: method.title for name, method in METHODS.items() if name != "baseline"}
_CURVED = ("ace", "addition")

MOST_METHODS = 3
PROMPT_COUNTS = (2, 24)
"""Of each class."""
ALPHA_RANGE = (-3.0, 3.0)
"""Class gaps."""
ALPHA_COUNTS = (2, 11)
TOKEN_COUNTS = (8, 48)
"""Longest answers, in tokens."""

# Small, so that comparisons of others wait for one short forward pass at most.
_BATCH = 16
_FEW_PLACES = 3


@dataclass(frozen=True)
class SweepRequest:
    """A checked choice.

    Args:
        preset: of :data:`SWEEP_PRESETS`.
        methods: of :data:`SWEEP_METHODS`.
        alphas: coefficients in class gaps, increasing.
        prompts: of each class.
        tokens: longest answer; 0 where nothing is generated.
    """

    preset: str
    methods: tuple[str, ...]
    alphas: tuple[float, ...]
    prompts: int
    tokens: int

    def plan(self, directions: RefusalDirections) -> SweepPlan:
        """What is run: prompts of the built-in test split, on which nothing was fitted or chosen."""
        sets = [[p.text for p in load_builtin(kind, "test")] for kind in ("harmful", "harmless")]
        prompts = sweep_prompts(*sets, limit=self.prompts)
        return preset_plan(
            self.preset, directions, prompts, methods=self.methods, alphas=self.alphas, tokens=self.tokens
        )

    def cells(self, directions: RefusalDirections) -> int:
        """How many cells that makes."""
        plan = self.plan(directions)
        return len(plan.conditions) * len(plan.prompts)

    def command(self, model: ChatModel, own: bool) -> str:
        """The same sweep without a page."""
        words = ["python", "-m", "ace_core", "sweep", "--preset", self.preset, "--model", model.name]
        words += ["--vectors", "vectors.safetensors"] if own else []
        words += ["--methods", ",".join(self.methods), "--alphas=" + ",".join(f"{alpha:g}" for alpha in self.alphas)]
        words += ["--prompts", str(self.prompts)]
        words += ["--tokens", str(self.tokens)] if self.tokens else []
        return shlex.join([*words, "--out", "sweep"])


def sweep_request(values: Mapping[str, Any]) -> SweepRequest:
    """A request from raw values of a page, which may be anything at all.

    Raises:
        EngineError: one sentence on the first value that can't be used.
    """
    preset, methods = values.get("preset"), values.get("methods")
    if not isinstance(preset, str) or preset not in SWEEP_PRESETS:
        raise EngineError(f"Choose a sweep from the list: {', '.join(SWEEP_PRESETS)}.")
    if not isinstance(methods, list) or any(not isinstance(m, str) or m not in SWEEP_METHODS for m in methods):
        raise EngineError("Choose methods from the list.")
    chosen = tuple(name for name in SWEEP_METHODS if name in methods)
    if not set(chosen) & set(_CURVED):
        raise EngineError("Choose ACE or activation addition: only they have a coefficient to sweep.")
    if len(chosen) > MOST_METHODS:
        raise EngineError(f"Choose at most {MOST_METHODS} methods here; the command line runs any number.")
    low, high = (_number(values.get(name), f"The {name} coefficient") for name in ("lowest", "highest"))
    count = _whole(values.get("alphas"), *ALPHA_COUNTS, "The number of coefficients")
    if not low < high:
        raise EngineError("The highest coefficient must be above the lowest.")
    alphas = tuple(round(float(alpha), 3) + 0.0 for alpha in np.linspace(low, high, count))
    if len(set(alphas)) < count:
        raise EngineError("The coefficients are too close together: choose a wider range.")
    prompts = _whole(values.get("prompts"), *PROMPT_COUNTS, "The number of prompts")
    tokens = 0
    if PRESETS[preset].settings["tokens"]:
        tokens = _whole(values.get("tokens"), *TOKEN_COUNTS, "The length of answers")
    return SweepRequest(preset, chosen, alphas, prompts, tokens)


@dataclass(frozen=True)
class SweepLook:
    """A sweep as it stands.

    Args:
        preset: what it was made from.
        model: its model, as the manifest names it.
        done, total: cells.
        headline: whether the paper's claim holds here, in words; empty where it is not worked out yet.
        pictures: curves of refusal against the coefficient, or a map a method.
        bars: standardisation gaps drawn; None where they are not worked out yet.
        gaps: the same as a table.
        conditions: every condition on both classes; None where they are not worked out yet.
        command: what runs the same sweep.
        note: one sentence on the tokens that refusal scores count; empty until they are known.
    """

    preset: str
    model: str
    done: int
    total: int
    headline: str
    pictures: tuple[Picture, ...]
    bars: Picture | None
    gaps: Table | None
    conditions: Table | None
    command: str
    note: str


@dataclass(frozen=True)
class SweepFiles:
    """What a person takes away."""

    results: Path
    summary: Path
    report: Path


class LabSweep:
    """One sweep in a folder of its own, run by the model thread and looked at by any other.

    Args:
        request: what to run.
        directions: fitted on the model.
        folder: an empty one, removed by :meth:`discard`.
        own: whether the directions are a fit of the visitor's.
    """

    def __init__(self, request: SweepRequest, directions: RefusalDirections, folder: Path, own: bool = False) -> None:
        self.request, self.directions, self.folder, self.own = request, directions, folder, own
        self.plan = request.plan(directions)
        self.total = len(self.plan.cells)
        self._records: list[Record] = []
        self._discarded = False

    @property
    def done(self) -> int:
        """Finished cells."""
        return len(self._records)

    @property
    def finished(self) -> bool:
        return self.done == self.total

    def run(self, model: ChatModel, task: Task[None]) -> None:
        """Run what is not finished yet, on the model thread; once the task is cancelled, what is finished is kept.

        Raises:
            EngineError: for a model that is not the one it began with, or a full disk.
        """
        said, fraction = "Reading how the model refuses", None
        command = self.request.command(model, self.own)

        def halted() -> bool:
            # asked between two forward passes, when no hook is in place: comparisons of others go first
            task.report(said, fraction)
            return task.cancelled()

        events = run_sweep(
            model, self.directions, self.plan, SweepFolder(self.folder), resume=True, command=command,
            batch_rows=_BATCH, should_stop=halted,
        )  # fmt: skip
        try:
            for event in events:
                self._records += event.records
                if event.records:
                    left = "" if event.seconds_left is None else f", about {event.seconds_left:.0f} s left"
                    said, fraction = f"{event.done} of {event.total} cells{left}", event.fraction
                    task.report(said, fraction)
        except EngineError as error:
            raise EngineError(str(error).replace(str(self.folder), "The sweep's folder")) from None
        finally:
            events.close()
            if self._discarded:
                self.discard()

    def look(self) -> SweepLook:
        """Figures and tables of what is finished; where there are many layers, gaps only at the end."""
        summary = SweepSummary(self.plan, list(self._records))
        whole = summary.count == self.total or len(self.plan.places) <= _FEW_PLACES
        manifest = SweepFolder(self.folder).manifest() or {"model": self.directions.model_id}
        return _look(summary, manifest, whole)

    def write(self) -> SweepFiles:
        """Write tables and the report beside the results.

        Raises:
            EngineError: if nothing is finished yet, or the disk is full.
        """
        if not self.done:
            raise EngineError("No cell is finished yet: there is nothing to take away.")
        try:
            write_report(self.folder)
        except EngineError as error:
            raise EngineError(str(error).replace(str(self.folder), "The sweep's folder")) from None
        return SweepFiles(*(self.folder / name for name in ("results.jsonl", "summary.csv", "report.html")))

    def discard(self) -> None:
        """Remove its files, now and again once it has stopped running."""
        self._discarded = True
        shutil.rmtree(self.folder, ignore_errors=True)


def recorded_sweep(path: Path) -> SweepLook | None:
    """The sweep that the command line left in a folder; None if there is none or it can't be read."""
    try:
        summary, manifest = read_sweep(path)
        if not summary.count:
            return None
        return _look(summary, manifest, whole=True)
    except (EngineError, KeyError, TypeError, AttributeError):
        return None


def _look(summary: SweepSummary, manifest: Mapping[str, Any], whole: bool) -> SweepLook:
    tables = {table.title: table for table in sweep_tables(summary)} if whole else {}
    pictures, bars = sweep_figures(summary, gaps=whole), None
    if whole and summary.scaled and summary.plan.alphas:
        bars = pictures.pop()
    return SweepLook(
        preset=summary.plan.name,
        model=str(manifest.get("model", "")),
        done=summary.count,
        total=len(summary.plan.cells),
        headline=summary.headline if whole else "",
        pictures=tuple(pictures),
        bars=bars,
        gaps=tables.get("Standardisation gaps"),
        conditions=tables.get("All conditions"),
        command=str(manifest.get("command", "")),
        note=str(manifest.get("refusal_tokens", {}).get("note", "")),
    )


def _whole(value: Any, low: int, high: int, name: str) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or value != int(value):
        raise EngineError(f"{name} must be a whole number from {low} to {high}.")
    return int(value)


def _number(value: Any, name: str) -> float:
    low, high = ALPHA_RANGE
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise EngineError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)
