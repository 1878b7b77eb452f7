"""A small sweep as a task of the model thread: running and resuming it, and looking at it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.lab.sweep_request import SweepRequest
from ace_core.models import ChatModel
from ace_core.sweeps.figures import COSTS_TITLE, GAPS_TITLE, Picture, sweep_figures
from ace_core.sweeps.records import Record, SweepFolder
from ace_core.sweeps.report import read_sweep, write_report
from ace_core.sweeps.runner import run_sweep
from ace_core.sweeps.summary import SweepSummary
from ace_core.sweeps.tables import Table, sweep_tables
from ace_core.tasks import Task

__all__ = [
    "LabSweep",
    "SweepFiles",
    "SweepLook",
    "recorded_sweep",
]

# Small, so that comparisons of others wait for one short forward pass at most.
_BATCH = 16
_FEW_PLACES = 3


@dataclass(frozen=True)
class SweepLook:
    """A sweep as it stands.

    Args:
        preset: what it was made from.
        model: its model, as the manifest names it.
        done, total: cells.
        headline: whether the paper's claim holds here, in words; empty where it is not worked out yet.
        pictures: curves of refusal against the coefficient, or a map a method.
        costs: methods at equal KL; None where that is not worked out yet.
        bars: standardisation gaps drawn; None where they are not worked out yet.
        gaps: the same as a table.
        wrong_way: share of prompts steered the wrong way; None where it is not worked out yet.
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
    costs: Picture | None
    bars: Picture | None
    gaps: Table | None
    wrong_way: Table | None
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
    pictures = sweep_figures(summary, gaps=whole)
    apart = {picture.title: picture for picture in pictures if picture.title in (COSTS_TITLE, GAPS_TITLE)}
    return SweepLook(
        preset=summary.plan.name,
        model=str(manifest.get("model", "")),
        done=summary.count,
        total=len(summary.plan.cells),
        headline=summary.headline if whole else "",
        pictures=tuple(picture for picture in pictures if picture.title not in apart),
        costs=apart.get(COSTS_TITLE),
        bars=apart.get(GAPS_TITLE),
        gaps=tables.get("Standardisation gaps"),
        wrong_way=tables.get("Prompts steered the wrong way"),
        conditions=tables.get("All conditions"),
        command=str(manifest.get("command", "")),
        note=str(manifest.get("refusal_tokens", {}).get("note", "")),
    )
