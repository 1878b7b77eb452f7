"""Vectors on disk: one safetensors file a model."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError

__all__ = ["MAX_VECTOR_BYTES", "VECTORS", "load_directions", "save_directions", "vectors_path"]

MAX_VECTOR_BYTES = 256 * 1024 * 1024
"""Largest vectors file that is opened."""

_MAX_HEADER_BYTES = 100_000
_TENSORS = ("mean_harmless", "mean_harmful", "heldout_harmless", "heldout_harmful")
# absent for the mean difference, which is derived, and without a third prompt set
_OPTIONAL = ("variant_unit", "mean_reference")

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
"""Folder of the vectors that ship with the project."""


def vectors_path(model_id: str, folder: Path = VECTORS) -> Path:
    """File for a model's vectors: its id with anything unusual replaced."""
    name = "".join(c if c.isalnum() or c in "-._" else "--" if c == "/" else "_" for c in model_id)
    return folder / f"{name.lstrip('.') or 'model'}.safetensors"


def save_directions(directions: RefusalDirections, path: Path) -> None:
    """Write directions to ``path`` whole or not at all; the file is byte-identical for identical directions.

    Raises:
        EngineError: if the folder can't be written or the disk is full.
    """
    present = [name for name in (*_TENSORS, *_OPTIONAL) if getattr(directions, name) is not None]
    tensors = {name: getattr(directions, name).contiguous() for name in present}
    metadata = {**directions.metadata, "recommended_layer": str(directions.recommended_layer)}
    data = _ordered(save(tensors, metadata))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"{path} could not be written ({error.strerror or error}): choose another folder.") from None


def _ordered(data: bytes) -> bytes:
    """The same safetensors file with its metadata in order; the library writes them in a random one."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def load_directions(path: Path | str) -> RefusalDirections:
    """Read directions; nothing in the file is executed, and its size and shapes are checked before use.

    Raises:
        EngineError: for a missing, truncated, oversized or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"There is no vectors file {path}: check the path, or fit one with 'extract'.")
    size = path.stat().st_size
    if size > MAX_VECTOR_BYTES:
        raise EngineError(f"{path.name} is larger than {MAX_VECTOR_BYTES >> 20} MB, so it is no vectors file.")
    bad = f"{path.name} is not a vectors file of this project, or is damaged: fit it again with 'extract'."
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8 or struct.unpack("<Q", start)[0] > min(size, _MAX_HEADER_BYTES):
        raise EngineError(bad)
    try:
        with safe_open(path, framework="pt") as file:
            if not set(_TENSORS) <= set(file.keys()):
                raise EngineError(bad)
            metadata = dict(file.metadata() or {})
            tensors = [file.get_tensor(name).float() for name in _TENSORS]
            optional = {name: file.get_tensor(name).float() for name in _OPTIONAL if name in file.keys()}  # noqa: SIM118
        layer = int(metadata.pop("recommended_layer"))
    except (SafetensorError, KeyError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(bad) from None
    return RefusalDirections(tensors[0], tensors[1], tensors[2], tensors[3], layer, metadata, **optional)
