"""One sweep shared by the processes of ``accelerate launch`` or ``torchrun``: who runs which cells, and the end of it.

Process k of n runs every n-th cell of the plan and writes a results file of its own; nothing is sent between processes,
so any of them may be killed and resumed alone. Whoever finishes the last cell merges.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ace_core.errors import EngineError
from ace_core.loading import choose_device
from ace_core.sweeps.records import SweepFolder, write_whole
from ace_core.sweeps.report import read_sweep, write_report
from ace_core.sweeps.summary import SweepSummary

__all__ = ["device_of_part", "finish", "lone_launch", "merge", "part_of_launch", "precision_of_part"]

_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""What torch's launcher and the MPI libraries call a process's number, how many there are, and its number on its host;
accelerate uses either."""


def part_of_launch() -> tuple[int, int]:
    """Number of this process and of all of them, as the launcher's environment says; (0, 1) without one.

    Raises:
        EngineError: if it says nonsense.
    """
    try:
        index, count = int(_told(_INDEX, "0")), int(_told(_COUNT, "1"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise EngineError("RANK and WORLD_SIZE don't fit: start the processes with accelerate launch.")
    return index, count


def lone_launch() -> bool:
    """Whether ``accelerate launch --cpu --num_processes N`` started this process alone, as it does without MPI."""
    return "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and not _told(_INDEX, "")


def device_of_part(device: str, index: int, count: int) -> str:
    """Device of one process: each takes a GPU of its own host where ``device`` leaves the choice."""
    import torch

    if count == 1 or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    local = int(_told(_LOCAL, str(index)))
    return f"cuda:{local % torch.cuda.device_count()}"


def precision_of_part(
    folder: SweepFolder, precision: str, resume: bool, device: str = "auto", device_map: str | None = None
) -> str:
    """Precision to load the model in where ``auto`` leaves the choice, which falls by the clock on CPUs and may differ
    from one start to the next: what a resumed sweep began with, and float32 where processes share one on CPUs."""
    if precision != "auto":
        return precision
    if resume and (before := folder.manifest()) is not None:
        return str(before.get("precision", precision))
    by_clock = device_map is None and choose_device(device).type == "cpu"
    return "float32" if folder.part[1] > 1 and by_clock else precision


def _told(names: Sequence[str], otherwise: str) -> str:
    return next((os.environ[name] for name in names if name in os.environ), otherwise)


def merge(folder: SweepFolder) -> bool:
    """Once all cells are there, write them to ``results.jsonl`` in the plan's order; says whether they are."""
    summary, _ = read_sweep(folder.path)
    order = {cell.id: number for number, cell in enumerate(summary.plan.cells)}
    records = {record["cell"]: record for record in folder.records()}
    if set(records) != set(order):
        return False
    lines = [json.dumps(records[cell], ensure_ascii=False, allow_nan=False) for cell in order]
    write_whole(folder.path / "results.jsonl", "\n".join(lines) + "\n")
    return True


def finish(folder: SweepFolder) -> tuple[SweepSummary, list[Path]]:
    """Merge and write the report; of several processes only the one that finds all cells done does.

    Returns:
        The summary of what is there, and the files written.
    """
    if folder.part[1] > 1 and not merge(folder):
        return read_sweep(folder.path)[0], []
    written = write_report(folder.path)
    return read_sweep(folder.path)[0], written
