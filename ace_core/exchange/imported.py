"""Reading steering vectors that other tools wrote; the format is told by content, not by the file's name."""

from __future__ import annotations

import struct
from pathlib import Path

from ace_core.errors import EngineError
from ace_core.exchange.gguf_import import read_gguf
from ace_core.exchange.torch_archive import load_archive
from ace_core.exchange.torch_import import read_torch
from ace_core.exchange.vectors import ImportedVectors
from ace_core.store import MAX_VECTOR_BYTES

__all__ = ["read_vectors"]


def read_vectors(path: Path | str, *, position: int | None = None, layer: int | None = None) -> ImportedVectors:
    """Read vectors of another tool; nothing in the file is executed, and everything is checked before use.

    Known are ``direction.pt`` and ``mean_diffs.pt`` of refusal_direction, what the steering-vectors library leaves
    through ``torch.save``, and GGUF control vectors (llama.cpp, repeng, this project). Layer numbers of every format
    are turned into 0-based decoder blocks whose output is steered.

    Args:
        path: the file, at most ``MAX_VECTOR_BYTES`` long.
        position: which of the ``n_positions`` of a ``mean_diffs.pt``; None takes the last one.
        layer: layer of a ``direction.pt`` in the numbering of refusal_direction, where layer L is the **input** of
            block L; None takes it from the ``direction_metadata.json`` beside the file.

    Raises:
        EngineError: for a missing, oversized, damaged, foreign or hostile file, or an argument it has no use for.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"There is no file {path}: check the path.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_VECTOR_BYTES + 1)
    except OSError as error:
        raise EngineError(f"{path} could not be read ({error.strerror or error}): check its permissions.") from None
    if len(data) > MAX_VECTOR_BYTES:
        raise EngineError(f"{path.name} is larger than {MAX_VECTOR_BYTES >> 20} MB, so it is no vectors file.")
    if data.startswith(b"PK"):
        return read_torch(path, load_archive(data, path.name), position=position, layer=layer)
    if data.startswith(b"GGUF"):
        if position is not None or layer is not None:
            raise EngineError(f"{path.name} names its layers itself: leave out position and layer.")
        return read_gguf(data, path.name)
    if data.startswith(b"\x80"):
        raise EngineError(
            f"{path.name} is a plain pickle, which can carry code and is never opened: save the vectors with "
            "torch.save of PyTorch 1.6 or newer."
        )
    if len(data) > 9 and data[8:9] == b"{" and struct.unpack_from("<Q", data)[0] <= len(data) - 8:
        raise EngineError(f"{path.name} is a safetensors file: read this project's own with load_directions.")
    raise EngineError(
        f"{path.name} is damaged or no vectors file: give a .pt file of refusal_direction or steering-vectors, or a "
        "GGUF control vector."
    )
