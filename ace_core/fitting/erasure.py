"""LEACE: the affine map that erases a linear concept and moves the data least, for two classes.

Least-squares concept erasure is by Belrose et al. (arXiv 2306.03819); the shrinkage of its covariance by Bodnar et al.
(arXiv 1308.2608).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.errors import EngineError

__all__ = ["NO_DIRECTION", "LeaceEraser", "checked_classes", "leace_eraser"]

NO_DIRECTION = "The two classes give no direction this way: use other prompts, or another variant."


def checked_classes(harmless: Tensor, harmful: Tensor) -> tuple[Tensor, Tensor]:
    """Two classes of activations, ``(n, d)`` and ``(m, d)``, in float64 on the CPU.

    Raises:
        EngineError: for empty classes, unequal widths, numbers that are not finite, or equal means.
    """
    if harmless.dim() != 2 or harmful.dim() != 2 or harmless.shape[1] != harmful.shape[1]:
        raise EngineError("Activations must have shape (prompts, width) with one width for both classes.")
    if 0 in harmless.shape or 0 in harmful.shape:
        raise EngineError("No prompts were given for one of the two classes: provide at least one each.")
    low, high = (t.detach().to("cpu", torch.float64) for t in (harmless, harmful))
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise EngineError("The model produced non-finite activations: load it in float32 and try again.")
    if torch.equal(low.mean(0), high.mean(0)):
        raise EngineError(NO_DIRECTION)
    return low, high


@dataclass(frozen=True)
class LeaceEraser:
    """LEACE's affine map for two classes, ``x - ((x - mean) . right) left``.

    Afterwards the class means of the fitting data are equal, so no linear classifier beats a constant there, and no
    other affine map that achieves this moves data of the estimated covariance less. ``left`` is the mean difference,
    ``right`` is parallel to ``inverse(Sigma)`` times it, and ``left . right = 1``; all three are ``(d,)`` float64.
    """

    left: Tensor
    right: Tensor
    mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Erase from ``x``, ``(..., d)`` any float dtype; a new tensor of the same dtype."""
        wide = x.double()
        reading = (wide - self.mean) @ self.right
        return (wide - reading.unsqueeze(-1) * self.left).to(x.dtype)


def leace_eraser(harmless: Tensor, harmful: Tensor, *, shrinkage: bool = True) -> LeaceEraser:
    """LEACE for the classes ``harmless`` ``(n, d)`` and ``harmful`` ``(m, d)`` (Belrose et al., arXiv 2306.03819).

    Args:
        shrinkage: pull the sample covariance towards a multiple of the identity by the optimal linear amount of
            Bodnar et al. (arXiv 1308.2608), needed where prompts are fewer than coordinates; False takes the
            pseudo-inverse of the sample covariance.

    Raises:
        EngineError: as :func:`checked_classes`, or if the classes give no direction.
    """
    low, high = checked_classes(harmless, harmful)
    x = torch.cat([low, high])
    mean = x.mean(0)
    x, left = x - mean, high.mean(0) - low.mean(0)
    right = _inverse_times(x, left, shrinkage)
    overlap = left @ right
    if not float(overlap) > 0:
        raise EngineError(NO_DIRECTION)
    return LeaceEraser(left, right / overlap, mean)


def _inverse_times(x: Tensor, vector: Tensor, shrinkage: bool) -> Tensor:
    """``inverse(Sigma) vector`` up to a positive factor, ``Sigma`` the covariance of the centred rows of ``x``."""
    count, width = x.shape
    if not shrinkage:
        _, lengths, axes = torch.linalg.svd(x, full_matrices=False)
        kept = lengths > lengths[0] * max(x.shape) * torch.finfo(x.dtype).eps
        return axes[kept].T @ ((axes[kept] @ vector) / lengths[kept].square())
    gram = x @ x.T if count < width else x.T @ x
    trace, square = float(gram.trace()) / count, float(gram.square().sum()) / count**2
    excess = square - trace**2 / width
    keep = 0.0 if excess <= 0 else min(1.0, max(0.0, 1 - trace**2 / count / excess))
    ridge = (1 - keep) * trace / width
    eye = torch.eye(len(gram), dtype=x.dtype)
    if count >= width:
        return torch.linalg.solve(keep * gram / count + ridge * eye, vector)
    if keep == 0:
        return vector
    # Woodbury: a system as large as the number of prompts instead of the width
    return vector - x.T @ torch.linalg.solve(gram + (count * ridge / keep) * eye, x @ vector)
