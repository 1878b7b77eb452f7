"""Looking at fitted directions: plain arrays for plots and tables, nothing drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ace_core.activations import Progress, Stopped, batches, recording
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.inspecting.achieved import ACHIEVED_COEFFICIENTS, Achieved, achieved_table
from ace_core.models import ChatModel

__all__ = [
    "ACHIEVED_COEFFICIENTS",
    "Achieved",
    "ClassCoordinates",
    "Plane",
    "achieved_table",
    "block_outputs",
    "class_coordinates",
    "compare_directions",
    "cosine_map",
    "plane",
]

_MAX_POINTS = 2_000
"""Most prompts a class that a plane is made of."""


@dataclass(frozen=True)
class ClassCoordinates:
    """Refusal coordinates of held-out prompts at every block, float32; 0 is the harmless and 1 the harmful mean.

    Args:
        harmless, harmful: ``(blocks, n)`` and ``(blocks, m)``.
        origin: ``(blocks,)``, coordinate of the zero vector, where directional ablation sends every token.
    """

    harmless: np.ndarray
    harmful: np.ndarray
    origin: np.ndarray


@dataclass(frozen=True)
class Plane:
    """Prompts of both classes in one block's plane of refusal and of what else varies most.

    Args:
        block: 0-based decoder block.
        harmless, harmful: ``(n, 2)`` and ``(m, 2)`` float32. First column: refusal coordinate. Second: component along
            the first principal component of the activations without their refusal component, from the mean of all
            prompts, in class gaps like the first.
        harmless_index, harmful_index: position of each point's prompt in the list it came from.
        explained: share of the variance outside the refusal direction that the second column holds, 0 to 1.
    """

    block: int
    harmless: np.ndarray
    harmful: np.ndarray
    harmless_index: np.ndarray
    harmful_index: np.ndarray
    explained: float


def cosine_map(directions: RefusalDirections) -> np.ndarray:
    """Cosines of every block's direction with every other's, ``(blocks, blocks)`` float32."""
    unit = directions.unit.double()
    return (unit @ unit.T).clamp(-1, 1).float().numpy()


def compare_directions(a: RefusalDirections, b: RefusalDirections) -> np.ndarray:
    """Cosine of two fits' directions at every block, ``(blocks,)`` float32.

    Raises:
        EngineError: if they belong to models of different shape.
    """
    if (a.blocks, a.width) != (b.blocks, b.width):
        raise EngineError(
            f"Directions of {a.blocks} blocks of width {a.width} and of {b.blocks} of width {b.width} have no common "
            "space: compare two fits of one model."
        )
    return (a.unit.double() * b.unit.double()).sum(-1).clamp(-1, 1).float().numpy()


def class_coordinates(directions: RefusalDirections) -> ClassCoordinates:
    """Coordinates of the prompts held out when the directions were fitted."""
    return ClassCoordinates(
        directions.heldout_harmless.numpy(), directions.heldout_harmful.numpy(), directions.origin.numpy()
    )


@torch.inference_mode()
def block_outputs(
    model: ChatModel,
    prompts: Sequence[str],
    block: int,
    *,
    limit: int = _MAX_POINTS,
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Output of one block at the last token of each templated prompt.

    Args:
        model: a loaded model.
        prompts: what users say.
        block: 0-based decoder block.
        limit: at most so many prompts are read, at equal distances in the list.
        batch_size: rows a forward pass.
        progress: called with (prompts done, prompts in all).
        cancelled: polled between batches.

    Returns:
        ``(n, d)`` float32 activations, and ``(n,)`` positions of their prompts in ``prompts``.

    Raises:
        EngineError: for a block outside the model or an unusable prompt. Stopped: when ``cancelled`` turns true.
    """
    if not 0 <= block < len(model.blocks):
        raise EngineError(f"Block {block} is out of range: this model's blocks are 0 to {len(model.blocks) - 1}.")
    count = min(limit, len(prompts))
    kept = [i * len(prompts) // count for i in range(count)]
    rows = [model.encode(prompts[i]) for i in kept]
    out = np.empty((count, model.width), np.float32)
    done = 0
    for indices in batches([len(row) for row in rows], model.recurrent, batch_size):
        if cancelled():
            raise Stopped("Reading the prompts was stopped.")
        decoding = Decoding(model.network, [rows[i] for i in indices], model.pad_id, model.device)
        with recording([model.blocks[block]]) as seen:
            decoding.prefill()
        out[indices] = seen[0].float().cpu().numpy()
        done += len(indices)
        progress(done, count)
    return out, np.array(kept, dtype=np.int64)


def plane(
    directions: RefusalDirections,
    block: int,
    harmful: np.ndarray,
    harmless: np.ndarray,
    *,
    harmful_index: np.ndarray | None = None,
    harmless_index: np.ndarray | None = None,
) -> Plane:
    """Place activations of one block in the plane of refusal and the first principal component of the rest.

    The sign of the second axis is fixed (its largest entry is positive), so the same prompts give the same picture.

    Args:
        directions: of the model the activations come from.
        block: 0-based decoder block.
        harmful, harmless: ``(n, d)`` activations there, see :func:`block_outputs`.
        harmful_index, harmless_index: positions of their prompts; None numbers them from 0.

    Raises:
        EngineError: for a block outside the model, arrays of another width, or fewer than two prompts in all.
    """
    if not 0 <= block < directions.blocks:
        raise EngineError(f"Block {block} is out of range: this model's blocks are 0 to {directions.blocks - 1}.")
    if any(a.ndim != 2 or a.shape[1] != directions.width for a in (harmful, harmless)):
        raise EngineError(f"The activations must have shape (prompts, {directions.width}): record them on this model.")
    points = np.concatenate([harmful, harmless]).astype(np.float64)
    if len(points) < 2:
        raise EngineError("A plane needs at least two prompts: give more.")
    axis = directions.axis(block)
    unit, gap = axis.unit.double().numpy(), axis.high - axis.low
    component = points @ unit
    rest = points - points.mean(0)
    rest -= np.outer(rest @ unit, unit)
    _, sizes, axes = np.linalg.svd(rest, full_matrices=False)
    main = axes[0] * np.sign(axes[0][np.abs(axes[0]).argmax()])
    total = float((sizes**2).sum())
    place = np.stack([(component - axis.low) / gap, rest @ main / abs(gap)], axis=1).astype(np.float32)
    split = len(harmful)
    return Plane(
        block,
        place[split:],
        place[:split],
        np.arange(len(harmless)) if harmless_index is None else harmless_index,
        np.arange(len(harmful)) if harmful_index is None else harmful_index,
        float(sizes[0] ** 2) / total if total > 0 else math.nan,
    )
