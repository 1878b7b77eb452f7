"""Steering vectors of another tool, in this project's block numbering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.errors import EngineError

__all__ = ["MAX_ENTRIES", "ImportedVectors", "checked_vectors", "printable"]

MAX_ENTRIES = 10_000
"""Most vectors that are read from one file; block numbers lie below it too."""


@dataclass(frozen=True)
class ImportedVectors:
    """Vectors that may be added to block outputs; without class means they carry addition only, never ACE.

    Args:
        vectors: per 0-based decoder block a ``(d,)`` float32 tensor in the convention of block outputs, blocks
            ascending, all of one width, finite and not zero.
        format: what wrote the file, for people.
        notes: one sentence each on what was dropped or has to be known.
    """

    vectors: dict[int, Tensor]
    format: str
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Width ``d`` of every vector."""
        return next(iter(self.vectors.values())).shape[0]


def checked_vectors(name: str, found: Mapping[int, Tensor], kind: str, notes: tuple[str, ...]) -> ImportedVectors:
    """``found`` (block → ``(d,)``, any float dtype) copied to float32, checked, zero vectors dropped with a note.

    Args:
        name: the file's name, for messages.
        found: vectors by block.
        kind: the format's name.
        notes: kept before this function's own.

    Raises:
        EngineError: for no vectors, block numbers out of range, unequal widths, or numbers that are not finite.
    """
    vectors: dict[int, Tensor] = {}
    zero = []
    for block, vector in sorted(found.items()):
        if not 0 <= block < MAX_ENTRIES:
            raise EngineError(
                f"{name} has a vector for layer {str(block)[:20]}, which no model has: renumber its layers from 0."
            )
        # a copy, since a view would keep the whole file's storage
        copy = vector.detach().to(torch.float32, copy=True).reshape(-1).contiguous()
        if not bool(torch.isfinite(copy).all()):
            raise EngineError(
                f"The vector of block {block} in {name} holds numbers that are not finite: make it again."
            )
        if vectors and copy.shape != next(iter(vectors.values())).shape:
            raise EngineError(f"The vectors in {name} differ in length: each must be as wide as the model.")
        if bool((copy == 0).all()):
            zero.append(block)
            continue
        vectors[block] = copy
    if zero:
        notes += (f"Dropped because they are zero everywhere: {', '.join(f'block {block}' for block in zero[:20])}.",)
    if not vectors:
        raise EngineError(f"{name} holds no vector that steers any decoder block: choose another file.")
    return ImportedVectors(vectors, kind, notes)


def printable(text: str, limit: int = 60) -> str:
    """``text`` from a file fit for one line of a message: nothing unprintable, at most ``limit`` characters."""
    return "".join(c if c.isprintable() else " " for c in text[:limit]).strip()
