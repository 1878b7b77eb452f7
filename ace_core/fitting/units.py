"""Unit directions of every block, from collected activations or from vectors of another tool."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ace_core import geometry
from ace_core.activations import Stopped
from ace_core.errors import EngineError
from ace_core.fitting.collecting import ClassCollector
from ace_core.fitting.variants import Variant

__all__ = ["check_vectors", "imported_units", "variant_units"]


def check_vectors(vectors: Mapping[int, Tensor], blocks: int, width: int) -> None:
    """Check vectors (block → ``(d,)``) of another tool against a model, before any work.

    Raises:
        EngineError: for none at all, or one of another width, of a block that the model lacks, zero or not finite.
    """
    if not vectors:
        raise EngineError("There are no vectors to complete: choose a file that holds some.")
    for block, vector in vectors.items():
        if not 0 <= block < blocks:
            raise EngineError(
                f"There is a vector for block {block}, and this model's blocks are 0 to {blocks - 1}: "
                "choose vectors made for this model."
            )
        if vector.shape != (width,):
            raise EngineError(
                f"The vector of block {block} has shape {tuple(vector.shape)}, and this model's width is {width}: "
                "choose vectors made for this model."
            )
        length = float(torch.linalg.vector_norm(vector.double()))
        if not 0 < length < float("inf"):
            raise EngineError(f"The vector of block {block} is zero or not finite: leave it out or make it again.")


def imported_units(vectors: Mapping[int, Tensor], difference: Tensor) -> tuple[Tensor, dict[str, str]]:
    """Unit vectors that point along ``difference``, the class means' ``(blocks, d)``, and metadata about them.

    Blocks without a vector take the mean difference.

    Raises:
        EngineError: if the classes don't differ along a vector.
    """
    # divided in float64, where the square of a large vector does not overflow
    units = geometry.unit_vector(difference).clone()
    for block, vector in vectors.items():
        units[block] = (vector.double() / torch.linalg.vector_norm(vector.double())).to(units)
    units, turned = _turned(units, difference)
    missing = [block for block in range(len(difference)) if block not in vectors]
    lists = {"imported_blocks": sorted(vectors), "turned_blocks": turned, "mean_difference_blocks": missing}
    return units, {name: ", ".join(map(str, found)) for name, found in lists.items() if found}


def variant_units(
    variant: Variant,
    low: ClassCollector,
    high: ClassCollector,
    means: tuple[Tensor, Tensor],
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, dict[str, str]]:
    """Unit vectors ``(blocks, d)`` of a variant from harmless to harmful, and metadata about them.

    Args:
        variant: how a direction is chosen.
        low, high: the harmless and harmful class, with samples if the variant needs them.
        means: their means over all prompts, ``(blocks, d)`` float32.
        cancelled: polled between blocks, since wide models take seconds each.

    Raises:
        EngineError: if some block gives no direction. Stopped: when ``cancelled`` turns true.
    """
    blocks = range(len(means[0]))
    if not variant.samples:
        units = [variant.function(means[0][b : b + 1], means[1][b : b + 1]) for b in blocks]
        return _turned(torch.stack(units), means[1] - means[0])[0], {}
    rows = low.sampled, high.sampled
    if variant.paired:
        both = sorted(set(rows[0]) & set(rows[1]))
        rows = both, both
    units = []
    for b in blocks:
        if cancelled():
            raise Stopped("The extraction was stopped.")
        units.append(variant.function(low.samples(b, rows[0]), high.samples(b, rows[1])))
    notes = {"samples": f"{len(rows[0])} harmless, {len(rows[1])} harmful"}
    # samples may lie the other way than all prompts do
    return _turned(torch.stack(units), means[1] - means[0])[0], notes


def _turned(units: Tensor, difference: Tensor) -> tuple[Tensor, list[int]]:
    """``units`` turned along ``difference`` where they point against it, and the blocks where they did."""
    side = (units.double() * difference.double()).sum(-1)
    if bool((side == 0).any()):
        raise EngineError(
            f"At block {int((side == 0).nonzero()[0])} the classes do not differ along the direction: use other "
            "vectors or prompts."
        )
    return units * side.sign().float().unsqueeze(-1), (side < 0).nonzero().flatten().tolist()
