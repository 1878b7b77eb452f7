"""Choosing the block to steer as a task of the model thread."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ace_core.activations import Stopped, TimeLeft
from ace_core.choosing.refusal_score import RefusalTokens, find_refusal_tokens
from ace_core.choosing.selection import Selection, select_layer
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.inspecting.achieved import Achieved
from ace_core.lab.block_table import BATCH, MOST_PROMPTS, block_table, table_prompts
from ace_core.lab.fit import LabFit, progress_of
from ace_core.models import ChatModel
from ace_core.tasks import Task

__all__ = ["METHOD_CHOICES", "BlockChoice", "choose_block"]

METHOD_CHOICES: dict[str, str] = {"ace": "ACE", "ablation": "Directional ablation", "addition": "Activation addition"}
"""Methods a block can be chosen for, in words by name."""

_ANSWERS = 8


@dataclass(frozen=True)
class BlockChoice:
    """A recommendation, the table it comes from, and what ACE reaches there.

    Args:
        selection: for the method asked for.
        directions: recommending the chosen block.
        achieved: coordinates on test prompts at the chosen block; empty after a stop, or without test prompts.
    """

    selection: Selection
    directions: RefusalDirections
    achieved: tuple[Achieved, ...] = ()


def choose_block(
    model: ChatModel, task: Task[BlockChoice], fit: LabFit, method: str, tokens: RefusalTokens | None = None
) -> BlockChoice:
    """Steer every block on validation prompts and recommend one.

    Args:
        model: a loaded model.
        task: reported to.
        fit: of that model.
        method: key of :data:`METHOD_CHOICES`.
        tokens: refusal tokens if known from an earlier choice.

    Raises:
        EngineError: without prompts, or for directions of block inputs. Stopped: when the task is cancelled before a
            block is chosen.
    """
    _check(method)
    if fit.parts is None:
        raise EngineError("These directions came without prompts: fit some to choose a layer by steering.")
    if not fit.steers:
        raise EngineError("These directions belong to block inputs, and edits happen at outputs: fit at outputs.")
    harmful, harmless = (texts[:MOST_PROMPTS] for texts in fit.parts.texts("validation"))
    if tokens is None:
        tokens = find_refusal_tokens(
            model,
            harmful,
            harmless,
            batch_size=_ANSWERS,
            progress=progress_of(task, "Looking for the model's refusal tokens"),
            cancelled=task.cancelled,
        )
    lefts: dict[str, TimeLeft] = {}

    def progress(message: str, fraction: float | None) -> None:
        left = lefts.setdefault(message.partition(",")[0], TimeLeft())
        seconds = None if fraction is None or len(lefts) < 2 else left(round(1000 * fraction), 1000)
        tail = "" if seconds is None or fraction == 1 else f", about {seconds:.0f} s left"
        task.report(f"{message}{tail}", fraction)

    selection = select_layer(
        model,
        fit.directions,
        harmful,
        harmless,
        method=method,
        also=(),
        tokens=tokens,
        batch_size=BATCH,
        progress=progress,
        cancelled=task.cancelled,
    )
    directions = replace(fit.directions, recommended_layer=selection.recommended)
    if not any(table_prompts(fit)):
        return BlockChoice(selection, directions)
    try:
        return BlockChoice(selection, directions, block_table(model, task, fit, selection.recommended))
    except Stopped:
        return BlockChoice(selection, directions)


def _check(method: object) -> None:
    if not isinstance(method, str) or method not in METHOD_CHOICES:
        raise EngineError("Choose the method that the layer is for.")
