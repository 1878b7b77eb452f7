"""Looking at fitted directions: plain arrays for plots and tables, nothing drawn here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.inspecting.achieved import ACHIEVED_COEFFICIENTS, Achieved, achieved_table
from ace_core.inspecting.axes import frame

__all__ = [
    "ACHIEVED_COEFFICIENTS",
    "Achieved",
    "ClassCoordinates",
    "PromptMap",
    "achieved_table",
    "class_coordinates",
    "compare_directions",
    "cosine_map",
    "prompt_map",
]


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
class PromptMap:
    """Prompts of both classes in one block's plane of refusal and of what else varies most.

    Args:
        block: 0-based decoder block.
        harmless, harmful: ``(n, 2)`` and ``(m, 2)`` float32. First column: refusal coordinate. Second: component along
            the first principal component of the activations without their refusal component, from the mean of all
            prompts, in class gaps like the first.
        explained: share of the variance outside the refusal direction that the second column holds, 0 to 1.
    """

    block: int
    harmless: np.ndarray
    harmful: np.ndarray
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


def prompt_map(directions: RefusalDirections, block: int, harmful: np.ndarray, harmless: np.ndarray) -> PromptMap:
    """Place activations of one block in the plane of refusal and the first principal component of the rest.

    The axes are those of :func:`ace_core.inspecting.axes.frame`, along the block's direction whatever the variant.

    Args:
        directions: of the model the activations come from.
        block: 0-based decoder block.
        harmful, harmless: ``(n, d)`` and ``(m, d)`` activations there.

    Raises:
        EngineError: for a block outside the model, an empty class, or arrays of another width.
    """
    if not 0 <= block < directions.blocks:
        raise EngineError(f"Block {block} is out of range: this model's blocks are 0 to {directions.blocks - 1}.")
    axis = directions.axis(block)
    means = directions.mean_harmless[block].numpy(), directions.mean_harmful[block].numpy()
    axes = frame(harmless, harmful, *means, unit=axis.unit.numpy())
    gap, places = axis.high - axis.low, [axes.project(points) for points in (harmless, harmful)]
    level = np.concatenate(places)[:, 1].mean()
    low, high = (((place - (axis.low, level)) / gap).astype(np.float32) for place in places)
    return PromptMap(block, low, high, axes.share)
