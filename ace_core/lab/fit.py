"""Fitting directions on chosen prompts as a task of the model thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ace_core.activations import Stopped, TimeLeft, position_activations
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.exchange import ImportedVectors
from ace_core.fitting.extraction import fit_directions
from ace_core.fitting.filtering import filter_by_behaviour
from ace_core.fitting.variants import IMPORTED
from ace_core.inspecting.inspection import PromptMap, prompt_map
from ace_core.lab.options import LabOptions
from ace_core.lab.sets import LabParts, LabSet
from ace_core.models import ChatModel
from ace_core.prompts import evenly
from ace_core.tasks import Task

__all__ = ["LabFit", "LabRequest", "fit_lab", "progress_of"]

# Small, so that comparisons of others wait for one short forward pass at most.
_BATCH = 8
_LEAST_BEHAVING = 4
_MAP_PROMPTS = 100
_MAP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LabRequest:
    """What to fit.

    Args:
        parts: both classes.
        options: how.
        foreign: another tool's vectors to complete; None fits new ones.
        maps: whether to draw a map of every block too, from one more reading of the prompts.
        reference: a third set, whose mean ACE may start from.
    """

    parts: LabParts
    options: LabOptions
    foreign: ImportedVectors | None = None
    maps: bool = True
    reference: LabSet | None = None


@dataclass(frozen=True)
class LabFit:
    """Directions and what belongs to them.

    Args:
        directions: the fit.
        name: in a few words, whose they are; may hold a file's name.
        parts: prompts; None for directions read from a file.
        notes: one sentence each on what a visitor should know.
        planes: one map a block, or none.
        harmful, harmless: prompts that the points of the maps stand for.
    """

    directions: RefusalDirections
    name: str = "your fit"
    parts: LabParts | None = None
    notes: tuple[str, ...] = ()
    planes: tuple[PromptMap, ...] = ()
    harmful: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()

    @property
    def steers(self) -> bool:
        """Whether they can be used: edits happen at block outputs."""
        return self.directions.site == "output"

    @property
    def stopped(self) -> bool:
        return "stopped" in self.directions.metadata


def progress_of(task: Task[Any], message: str) -> Callable[[int, int], None]:
    """A progress callback that reports to ``task``, with the time left once the pace is known."""
    left = TimeLeft()

    def progress(done: int, total: int) -> None:
        seconds = left(done, total)
        tail = "" if seconds is None or done >= total else f", about {seconds:.0f} s left"
        task.report(f"{message}: {done} of {total}{tail}", done / max(1, total))

    return progress


def fit_lab(model: ChatModel, task: Task[LabFit], request: LabRequest) -> LabFit:
    """Fit on the model thread; once the task is cancelled, directions come from what is done if that is enough.

    Raises:
        EngineError: for unusable prompts, or a stop before enough was done.
    """
    options, parts, notes = request.options, request.parts, list(request.foreign.notes if request.foreign else ())
    if options.behaving:
        parts, note = _behaving(model, task, parts)
        notes.append(note)
    harmful, harmless = parts.texts("fit")
    heldout_harmful, heldout_harmless = parts.texts("validation")
    third = [] if request.reference is None else evenly([p.text for p in request.reference.prompts], options.limit)
    directions = fit_directions(
        model,
        harmful,
        harmless,
        heldout_harmful=heldout_harmful,
        heldout_harmless=heldout_harmless,
        variant=options.variant if request.foreign is None else IMPORTED,
        vectors=None if request.foreign is None else request.foreign.vectors,
        position=options.position,
        site=options.site,
        reference=third,
        seed=options.seed,
        split_rule=parts.rule,
        licence=parts.licence,
        batch_size=_BATCH,
        progress=progress_of(task, "Reading prompts"),
        should_stop=task.cancelled,
    )
    metadata = directions.metadata
    if "stopped" in metadata:
        notes.append(f"Stopped {metadata['stopped']}; what was read is kept.")
    if "reference_count" in metadata:
        notes.append(f"ACE may start from the mean of {metadata['reference_count']} prompts of the third set.")
    if metadata.get("turned_blocks"):
        notes.append(f"Turned round to point from harmless to harmful: blocks {metadata['turned_blocks']}.")
    if metadata.get("mean_difference_blocks"):
        notes.append(f"Not in the file, so filled by the mean difference: blocks {metadata['mean_difference_blocks']}.")
    name = "your fit" if request.foreign is None else f"your file ({request.foreign.format})"
    planes, texts = _map(model, task, directions, parts, options) if request.maps else ((), ((), ()))
    return LabFit(directions, name, parts, tuple(notes), planes, *texts)


def _behaving(model: ChatModel, task: Task[LabFit], parts: LabParts) -> tuple[LabParts, str]:
    both: list[list[str]] = [[], []]
    for part in ("fit", "validation", "test"):
        for texts, more in zip(both, parts.texts(part), strict=True):
            texts += more
    found = filter_by_behaviour(
        model,
        both[0],
        both[1],
        batch_size=_BATCH,
        progress=progress_of(task, "Asking every prompt"),
        cancelled=task.cancelled,
    )
    kept = parts.keeping(set(found.harmful), set(found.harmless))
    summary = f"{found.summary[0].upper()}{found.summary[1:]}."
    if any(len(texts) < _LEAST_BEHAVING for texts in kept.texts("fit")):
        raise EngineError(f"{summary[:-1]}: too few to fit on, so use more prompts or keep all of them.")
    if any(not texts for texts in kept.texts("validation")):
        raise EngineError(f"{summary[:-1]}: none is left to choose the layer, so use more prompts or keep all of them.")
    return kept, summary


def _map(
    model: ChatModel, task: Task[LabFit], directions: RefusalDirections, parts: LabParts, options: LabOptions
) -> tuple[tuple[PromptMap, ...], tuple[tuple[str, ...], tuple[str, ...]]]:
    """A map of every block, from one more reading of at most a hundred prompts a class; none after a stop."""
    row = directions.blocks * directions.width * 4
    most = max(2, min(_MAP_PROMPTS, _MAP_BYTES // (2 * row)))
    # those that were not used in fitting first
    order = [parts.texts(part) for part in ("test", "validation", "fit")]
    texts = [[text for pair in order for text in pair[kind]][:most] for kind in (0, 1)]
    every = [*texts[0], *texts[1]]
    points = np.empty((directions.blocks, len(every), directions.width), np.float32)
    progress = progress_of(task, "Drawing the map")
    try:
        done = 0
        for indices, activations in position_activations(
            model, every, position=options.position, site=options.site, batch_size=_BATCH, cancelled=task.cancelled
        ):
            points[:, indices] = activations.numpy()
            done += len(indices)
            progress(done, len(every))
    except Stopped:
        return (), ((), ())
    split = len(texts[0])
    planes = []
    for block in range(directions.blocks):
        planes.append(prompt_map(directions, block, points[block, :split], points[block, split:]))
        if block % 8 == 7:
            task.report("Drawing the map", None)
    return tuple(planes), (tuple(texts[0]), tuple(texts[1]))
