"""The coordinates that ACE reaches at one block of a fit as a task of the model thread."""

from __future__ import annotations

from typing import Any

from ace_core.errors import EngineError
from ace_core.inspecting.achieved import Achieved, achieved_table
from ace_core.lab.fit import LabFit, progress_of
from ace_core.models import ChatModel
from ace_core.tasks import Task

__all__ = ["BATCH", "MOST_PROMPTS", "block_table", "check_block_table", "table_prompts"]

BATCH = 16
"""Rows a forward pass, so that others wait for one short pass at most."""
MOST_PROMPTS = 16
"""Of each class that a block is steered on."""


def table_prompts(fit: LabFit) -> tuple[list[str], list[str]]:
    """Harmful and harmless test prompts that a table is measured on; none for directions without prompts."""
    if fit.parts is None:
        return [], []
    harmful, harmless = fit.parts.texts("test")
    return harmful[:MOST_PROMPTS], harmless[:MOST_PROMPTS]


def check_block_table(fit: LabFit) -> None:
    """Raises :class:`EngineError` if nothing can be measured: no steering, or no test prompts."""
    if not fit.steers:
        raise EngineError("These directions belong to block inputs, and ACE edits outputs: there is nothing to reach.")
    if fit.parts is None:
        raise EngineError("These directions came without prompts: fit some to see which coordinate ACE reaches.")
    if not any(table_prompts(fit)):
        raise EngineError("No prompts were left to test on: fit with more to see which coordinate ACE reaches.")


def block_table(model: ChatModel, task: Task[Any], fit: LabFit, block: int) -> tuple[Achieved, ...]:
    """Steer one block by ACE on test prompts and read the coordinates reached.

    Args:
        model: a loaded model.
        task: reported to.
        fit: of that model.
        block: 0-based.

    Raises:
        EngineError: if the fit allows no table, or for a block outside the model. Stopped: when the task is cancelled.
    """
    check_block_table(fit)
    return achieved_table(
        model,
        fit.directions,
        *table_prompts(fit),
        [block],
        batch_size=BATCH,
        progress=progress_of(task, f"Measuring block {block}"),
        cancelled=task.cancelled,
    )
