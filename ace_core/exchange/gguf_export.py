"""Writing refusal directions as a GGUF control vector for llama.cpp.

llama.cpp adds ``direction.N`` to the output of block N at every position (see :mod:`ace_core.exchange.gguf_import` for
where that is read off), so block L is written as ``direction.L``. Block 0 has no place in the format.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGUFWriter

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.exchange.gguf_import import CAUTION_KEY
from ace_core.exchange.vectors import printable

__all__ = ["CAUTION", "GGUFExport", "export_gguf"]

CAUTION = (
    "A control vector carries activation addition only. It cannot carry directional ablation or affine concept editing "
    "(ACE): those take the old component of every activation away, and ACE needs the harmless mean as well."
)
"""What every exported file says about itself."""


@dataclass(frozen=True)
class GGUFExport:
    """What was written.

    Args:
        path: the file.
        blocks: 0-based decoder blocks in it, ascending; block L is ``direction.L``.
        dropped: blocks that the format has no place for.
    """

    path: Path
    blocks: tuple[int, ...]
    dropped: tuple[int, ...] = ()


def export_gguf(
    directions: RefusalDirections,
    path: Path | str,
    *,
    layer: int | None = None,
    all_blocks: bool = False,
    coefficient: float = 1.0,
) -> GGUFExport:
    """Write ``coefficient * r``, activation addition of so many class gaps, as a control vector, whole or not at all.

    Use it with ``llama-cli --control-vector FILE`` or ``--control-vector-scaled FILE FACTOR``. llama.cpp scales every
    block of a file alike and additions at several blocks add up, so with ``all_blocks`` small coefficients are enough.

    Args:
        directions: of the model that llama.cpp runs.
        path: the file to write; its folder is made if missing.
        layer: 0-based decoder block; None takes the recommended one.
        all_blocks: write every block's own direction, which excludes ``layer``; block 0 is dropped and reported.
        coefficient: class gaps to add at each block, negative to steer away from refusing.

    Raises:
        EngineError: for a block that the model or the format lacks, a coefficient that is zero or not finite (or makes
            the vector so), or a path that can't be written.
    """
    path = Path(path)
    last = directions.blocks - 1
    if all_blocks and layer is not None:
        raise EngineError("Choose one layer or all blocks, not both.")
    if not math.isfinite(coefficient) or coefficient == 0:
        raise EngineError("The coefficient must be a number other than 0: 1 adds one class gap.")
    if last == 0:
        raise EngineError("A control vector has no place for block 0, and this model has no other: nothing to export.")
    if all_blocks:
        blocks, dropped = tuple(range(1, last + 1)), (0,)
    else:
        block = directions.recommended_layer if layer is None else layer
        if not 0 <= block <= last:
            raise EngineError(f"The model has blocks 0 to {last}: choose a layer from 1 to {last}.")
        if block == 0:
            raise EngineError(f"A control vector has no place for block 0: choose a layer from 1 to {last}.")
        blocks, dropped = (block,), ()
    vectors = directions.direction[list(blocks)] * coefficient
    if not bool(torch.isfinite(vectors).all()) or not bool((vectors != 0).any(dim=1).all()):
        raise EngineError("The coefficient is too large or too small for 32-bit floats: choose one closer to 1.")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(temporary, "controlvector")
        try:
            _describe(writer, directions, blocks, coefficient)
            for block, vector in zip(blocks, vectors, strict=True):
                writer.add_tensor(f"direction.{block}", vector.contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(temporary, path)
        finally:
            writer.close()
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"{path} could not be written ({error.strerror or error}): choose another folder.") from None
    return GGUFExport(path, blocks, dropped)


def _describe(writer: GGUFWriter, directions: RefusalDirections, blocks: tuple[int, ...], coefficient: float) -> None:
    model = printable(directions.model_id, 200) or "unknown"
    where = f"block {blocks[0]}" if len(blocks) == 1 else f"each of blocks {blocks[0]} to {blocks[-1]}"
    writer.add_description(
        f"Refusal direction of {model}: adds {coefficient:g} class gaps at the output of {where}, counted from 0. "
        f"{CAUTION}"
    )
    # repeng refuses files without these two
    writer.add_string("controlvector.model_hint", model)
    writer.add_int32("controlvector.layer_count", len(blocks))
    writer.add_string(CAUTION_KEY, CAUTION)
    writer.add_string("ace.model_id", model)
    writer.add_float32("ace.coefficient", coefficient)
    for key in ("revision", "template_sha256", "harmless_sha256", "harmful_sha256", "position"):
        # the writer leaves out empty strings
        writer.add_string(f"ace.{key}", printable(directions.metadata.get(key, ""), 200))
