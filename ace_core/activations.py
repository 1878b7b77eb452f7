"""Recording block outputs at chosen positions of many prompts, in padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ace_core.blocks import hidden_of
from ace_core.decoding import Decoding, equal_length_groups
from ace_core.errors import EngineError
from ace_core.models import ChatModel

__all__ = ["Stopped", "batches", "last_token_activations", "recording"]

Progress = Callable[[int, int], None]


class Stopped(EngineError):
    """A person asked a long computation to stop."""


@contextmanager
def recording(blocks: Sequence[nn.Module], positions: slice | int = -1) -> Iterator[list[Tensor]]:
    """Record every block's output at ``positions`` during the forward passes inside the ``with`` block.

    Read-only. Yields a list that gains one tensor a block and pass, ``(B, d)`` for an int, ``(B, S, d)`` for a slice.
    """
    seen: list[Tensor] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(hidden_of(output)[:, positions].detach().clone())

    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def batches(lengths: Sequence[int], recurrent: bool, size: int) -> list[list[int]]:
    """Row indices grouped into batches of at most ``size`` rows of similar length; recurrent models get equal ones."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups = equal_length_groups([lengths[i] for i in order], recurrent)
    out = []
    for group in groups:
        rows = [order[i] for i in group]
        out += [rows[i : i + size] for i in range(0, len(rows), size)]
    return out


@torch.inference_mode()
def last_token_activations(
    model: ChatModel,
    prompts: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[list[int], Tensor]]:
    """Block outputs at the last token of each templated prompt.

    Yields:
        ``(indices, activations)``: which prompts, and float32 ``(blocks, len(indices), d)`` on CPU.

    Raises:
        EngineError: for an unusable prompt. Stopped: when ``cancelled`` turns true between batches.
    """
    rows = [model.encode(prompt) for prompt in prompts]
    done = 0
    for indices in batches([len(row) for row in rows], model.recurrent, batch_size):
        if cancelled():
            raise Stopped("The extraction was stopped.")
        decoding = Decoding(model.network, [rows[i] for i in indices], model.pad_id, model.device)
        with recording(model.blocks) as seen:
            decoding.prefill()
        yield indices, torch.stack([t.float().cpu() for t in seen])
        done += len(indices)
        progress(done, len(rows))
