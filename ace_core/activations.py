"""Recording residual streams at chosen positions of many prompts, in padded batches."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ace_core.blocks import hidden_of
from ace_core.chat import check_prompt
from ace_core.decoding import Decoding, equal_length_groups
from ace_core.errors import EngineError
from ace_core.fitting.positions import Position, template_ends
from ace_core.models import ChatModel

__all__ = [
    "SITES",
    "Progress",
    "Site",
    "Stopped",
    "TimeLeft",
    "batches",
    "last_token_activations",
    "position_activations",
    "recording",
]

Progress = Callable[[int, int], None]
Site = Literal["output", "input"]

SITES: dict[Site, str] = {"output": "block output", "input": "block input"}
"""Where in a block activations are read, in words; the input of block L is the output of block L - 1."""

_WINDOW = 16
"""Batches whose prompts are encoded and sorted by length together, so that memory does not grow with the set."""


class Stopped(EngineError):
    """A person asked a long computation to stop."""


class TimeLeft:
    """Seconds left of a job, from the pace since it was made: ``left = TimeLeft(); left(done, total)``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()

    def __call__(self, done: int, total: int) -> float | None:
        """Seconds left, or None before anything is done."""
        if done <= 0:
            return None
        return max(0, total - done) * (self._clock() - self._start) / done


@contextmanager
def recording(
    blocks: Sequence[nn.Module], positions: slice | int | Callable[[Tensor], Tensor] = -1, site: Site = "output"
) -> Iterator[list[Tensor]]:
    """Record every block's residual stream at ``positions`` during the forward passes inside the ``with`` block.

    Read-only. Yields a list that gains one tensor a block and pass: ``(B, d)`` for an int, ``(B, S, d)`` for a slice,
    or what a function makes of ``(B, S, d)``.

    Args:
        blocks: decoder blocks in order.
        positions: which positions of the chunk that a pass reads.
        site: ``output`` of the blocks, or their ``input``.

    Raises:
        EngineError: for an unknown site.
    """
    if site not in SITES:
        raise EngineError(f"Unknown site '{str(site)[:40]}': choose one of {', '.join(SITES)}.")
    seen: list[Tensor] = []

    def note(hidden: Tensor) -> None:
        chosen = positions(hidden) if callable(positions) else hidden[:, positions]
        seen.append(chosen.detach().clone())

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        note(hidden_of(output))

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(args[0] if args else kwargs["hidden_states"])

    if site == "output":
        handles = [block.register_forward_hook(after) for block in blocks]
    else:
        handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
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
def position_activations(
    model: ChatModel,
    prompts: Sequence[str],
    *,
    position: Position = "last",
    site: Site = "output",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[list[int], Tensor]]:
    """Residual streams of every block at one position of each templated prompt.

    Prompts are encoded some batches at a time and sorted by length among those, so memory is that of a few batches
    however many prompts there are. Batches of different length come in an order drawn from ``seed``, so that stopping
    early leaves no class with its short prompts only.

    Args:
        model: a loaded model.
        prompts: what users say.
        position: where in the prompt, see :mod:`ace_core.fitting.positions`.
        site: ``output`` or ``input`` of the blocks.
        batch_size: rows a forward pass.
        seed: orders batches.
        progress: called with (prompts done, prompts in all).
        cancelled: polled between batches.

    Yields:
        ``(indices, activations)``: which prompts, and float32 ``(blocks, len(indices), d)`` on CPU.

    Raises:
        EngineError: for an unusable prompt, position or site. Stopped: when ``cancelled`` turns true between batches.
    """
    for prompt in prompts:  # before any work
        check_prompt(prompt)
    ends, order = template_ends(model), random.Random(seed)
    done, window = 0, _WINDOW * batch_size
    for start in range(0, len(prompts), window):
        rows = [model.encode(prompt) for prompt in prompts[start : start + window]]
        groups = batches([len(row) for row in rows], model.recurrent, batch_size)
        order.shuffle(groups)
        for group in groups:
            if cancelled():
                raise Stopped("The extraction was stopped.")
            ids = [rows[i] for i in group]
            chosen = _Gather(ids, [ends.columns(row, position) for row in ids])
            decoding = Decoding(model.network, ids, model.pad_id, model.device)
            with recording(model.blocks, chosen, site) as seen:
                decoding.prefill()
            yield [start + i for i in group], _on_cpu(seen)
            done += len(group)
            progress(done, len(prompts))


def last_token_activations(
    model: ChatModel,
    prompts: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[list[int], Tensor]]:
    """Block outputs at the last token of each templated prompt, see :func:`position_activations`."""
    return position_activations(model, prompts, batch_size=batch_size, progress=progress, cancelled=cancelled)


class _Gather:
    """Picks each row's columns out of a left-padded batch ``(B, S, d)`` and averages them, ``(B, d)``."""

    def __init__(self, rows: Sequence[Sequence[int]], columns: Sequence[range]) -> None:
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        self._spans = [(pad + c.start, pad + c.stop) for pad, c in zip(pads, columns, strict=True)]
        self._single = all(len(c) == 1 for c in columns)

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._single:
            where = torch.tensor([start for start, _ in self._spans], device=hidden.device)
            return hidden[torch.arange(len(where), device=hidden.device), where]
        # row by row, since what a model leaves at padding need not be a number
        means = [hidden[row, start:stop].float().mean(0) for row, (start, stop) in enumerate(self._spans)]
        return torch.stack(means)


def _on_cpu(seen: Sequence[Tensor]) -> Tensor:
    if len({t.device for t in seen}) == 1:  # one transfer instead of one a block
        return torch.stack(list(seen)).float().cpu()
    return torch.stack([t.float().cpu() for t in seen])
