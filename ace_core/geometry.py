"""The affine geometry of a concept direction: pure tensor maths, no model.

Notation of *Refusal in LLMs is an Affine Function* (Marshall, Scherlis, Belrose; arXiv 2411.09003):
``mu_minus`` and ``mu_plus`` are the mean activations over harmless and harmful prompts,
``r = mu_plus - mu_minus`` is the refusal direction, ``u = r / |r|`` its unit vector and
``g = |r|`` the class gap.

Every steering method here is one formula with two numbers per row,

    v' = v + (add - remove * (v . u)) u

``remove`` is the fraction of the old component along ``u`` that is taken away, ``add`` what is put
back, in units of activation. All arithmetic is float32 whatever the dtype of ``v``, because in
bfloat16 the component cancels when ``|v|`` is much larger than ``g``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_edit", "component", "coordinate", "mean_difference", "unit_vector"]


def mean_difference(mean_harmless: Tensor, mean_harmful: Tensor) -> Tensor:
    """Refusal direction ``r``, shape of the inputs ``(..., d)``, float32, not normalised."""
    return mean_harmful.float() - mean_harmless.float()


def unit_vector(direction: Tensor) -> Tensor:
    """``direction / |direction|`` along the last axis, float32.

    Raises:
        ValueError: if a direction has zero or non-finite length.
    """
    direction = direction.float()
    length = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    if not bool(torch.isfinite(length).all()) or bool((length == 0).any()):
        raise ValueError("a direction of zero or non-finite length has no unit vector")
    return direction / length


def component(v: Tensor, unit: Tensor) -> Tensor:
    """Scalar component ``v . u`` in units of activation, float32.

    Args:
        v: activations, shape ``(batch, positions, d)``, any float dtype.
        unit: unit vectors, ``(d,)`` shared by all rows or ``(batch, d)``, float32.

    Returns:
        Tensor of shape ``(batch, positions)``.
    """
    # Not a matrix product: its rounding depends on how many rows there are, and an arm's numbers must not.
    return (v.float() * (unit if unit.dim() == 1 else unit.unsqueeze(1))).sum(-1)


def coordinate(projection: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Refusal coordinate ``c = (v.u - low) / (high - low)``; 0 at the harmless mean, 1 at the harmful mean.

    Args:
        projection: ``v . u`` as returned by :func:`component`.
        low, high: ``mu_minus . u`` and ``mu_plus . u``, broadcastable to ``projection``.
    """
    return (projection - low) / (high - low)


def apply_edit(
    v: Tensor,
    unit: Tensor,
    remove: Tensor,
    add: Tensor,
    projection: Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """``v + (add - remove * (v . u)) u`` per row, in float32, returned in the dtype of ``v``.

    ``v`` is never written to. Positions where ``where`` is false are returned bit-equal.

    Args:
        v: activations, ``(batch, positions, d)``.
        unit: ``(d,)`` or ``(batch, d)`` float32 unit vectors.
        remove, add: ``(batch,)`` float32.
        projection: ``component(v, unit)`` if already known.
        where: bool ``(batch, positions)``; None edits every position.
    """
    if projection is None:
        projection = component(v, unit)
    delta = (add.unsqueeze(-1) - remove.unsqueeze(-1) * projection).unsqueeze(-1)
    along = unit if unit.dim() == 1 else unit.unsqueeze(1)
    edited = torch.addcmul(v.float(), delta, along).to(v.dtype)
    return edited if where is None else torch.where(where.unsqueeze(-1), edited, v)
