"""How much one host takes on at once, and how much memory there is for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ace_core.decoding import Decoding
from ace_core.models import ChatModel
from ace_core.scheduling.caches import SPARE_ROWS, CacheKindError, cache_bytes

__all__ = ["Footprint", "Limits", "free_memory"]

_SHARE = 0.4
"""Share of the memory that is free after loading, for keys and values."""


@dataclass(frozen=True)
class Limits:
    """Caps of one host.

    Args:
        rows: rows that are read or decoded at once, all visitors together.
        tokens: longest answer.
        turns: runs at once of a model whose rows can't join, which take turns instead.
        waiting: runs that may wait.
        visitor_running, visitor_waiting: runs at once, and waiting ones, of one visitor.
        visitor_tasks: longer computations of one visitor, running and waiting.
        task_patience: seconds that people may keep a longer computation from its next piece.
        task_turn: seconds one may compute while others wait; then it is stopped, and may be asked for again.
        wait_seconds: how long a run may wait before it is dropped.
        stalled_seconds: how long a run waits for a reader that takes nothing before it is dropped.
        queue_steps: steps a reader may lag behind before its rows pause.
        piece: prompt tokens read between two steps of the running batch.
        memory: bytes for keys and values; None measures what is free.
    """

    rows: int = 128
    tokens: int = 512
    turns: int = 4
    waiting: int = 64
    visitor_running: int = 2
    visitor_waiting: int = 4
    visitor_tasks: int = 2
    task_patience: float = 5.0
    task_turn: float = 600.0
    wait_seconds: float = 600.0
    stalled_seconds: float = 60.0
    queue_steps: int = 64
    piece: int = 64
    memory: int | None = None


@dataclass(frozen=True)
class Footprint:
    """What one row of a model takes while it runs, in bytes."""

    token: int
    row: int

    @classmethod
    @torch.inference_mode()
    def of(cls, model: ChatModel) -> Footprint:
        """Measured on a short prompt; families with other caches count as if every block kept two residual streams."""
        decoding = Decoding(model.network, [[1, 2]], model.pad_id, model.device)
        logits = decoding.prefill()
        try:
            token = cache_bytes(decoding.cache) // 2
        except CacheKindError:
            token = 2 * len(model.blocks) * model.width * logits.element_size()
        # a step may hold the grown copy of one layer beside the old one, and logits in several forms
        return cls(int((1 + SPARE_ROWS) * token) + token // len(model.blocks), 4 * 4 * logits.shape[-1])

    def bytes(self, rows: int, tokens: int) -> int:
        """Bytes for rows of a length, all that they may still write included."""
        return rows * (tokens * self.token + self.row)


def free_memory(device: torch.device) -> int:
    """Bytes a model's caches may take on a device: a share of what is free now."""
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.mem_get_info(device)[0])
    found = [_available(), _container()]
    return int(_SHARE * min((size for size in found if size is not None), default=4 * 2**30))


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _container() -> int | None:
    """What a control group leaves free."""
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
