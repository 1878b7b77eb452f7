"""Reading GGUF control vectors.

llama.cpp adds the tensor ``direction.N`` to the output of block N, 0-based: ``common_control_vector_load`` puts it at
row N − 1, ``llama_adapter_cvec::apply`` hands row N − 1 to layer N ("there's never a tensor for layer 0"), and every
graph calls ``build_cvec(cur, il)`` on the residual stream at the end of layer ``il``. It takes 1-D F32 tensors only.

repeng 0.4 counts alike: its direction N is from ``hidden_states[N + 1]``, the output of block N, and is added there.
llama.cpp's own ``cvector-generator`` names what it measured at the output of block N − 1 ``direction.N``; as llama.cpp
adds it after block N, so does this project, with a note.

The header is walked here and not by the gguf package, whose reader believes every count in the file and would fill the
memory for an array said to have 2⁶⁰ elements.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from torch import Tensor

from ace_core.errors import EngineError
from ace_core.exchange.vectors import MAX_ENTRIES, ImportedVectors, checked_vectors, printable

__all__ = ["CAUTION_KEY", "read_gguf"]

CAUTION_KEY = "ace.caution"
"""Metadata key that marks this project's own exports."""

_MAX_FIELDS = 1000
_MAX_STRINGS = 100_000
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass
class _Cursor:
    """A place in a file; every step is checked against the file's end."""

    data: bytes
    offset: int = 0
    strings: int = field(default=0, init=False)

    def skip(self, count: int) -> int:
        """Move on by ``count`` bytes; where they began.

        Raises:
            ValueError: past the end of the file.
        """
        start = self.offset
        if count > len(self.data) - start:
            raise ValueError("truncated")
        self.offset += count
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from(code, self.data, self.skip(struct.calcsize(code)))[0]

    def text(self) -> str:
        self.strings += 1
        if self.strings > _MAX_STRINGS:
            raise ValueError("too many strings")
        length = self.number("<Q")
        start = self.skip(length)
        return self.data[start : start + min(length, 4096)].decode("utf-8", "replace")

    def value(self) -> tuple[GGUFValueType, Any]:
        """Type and value of a metadata field; arrays are passed over and come back as None."""
        kind = GGUFValueType(self.number("<I"))
        if kind == GGUFValueType.STRING:
            return kind, self.text()
        if kind != GGUFValueType.ARRAY:
            return kind, self.number(_SCALARS[kind])
        element, count = GGUFValueType(self.number("<I")), self.number("<Q")
        if element == GGUFValueType.STRING:
            for _ in range(min(count, _MAX_STRINGS + 1)):
                self.text()
        else:
            self.skip(count * struct.calcsize(_SCALARS[element]))
        return kind, None


def read_gguf(data: bytes, name: str) -> ImportedVectors:
    """Vectors of a GGUF control vector.

    Args:
        data: the whole file.
        name: its name, for messages.

    Raises:
        EngineError: for a damaged file, a GGUF of another kind, or tensors that llama.cpp would not take.
    """
    try:
        fields, found = _parse(_Cursor(data), name)
    except (ValueError, KeyError, struct.error) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"{name} is damaged or cut short: fetch or export it again.") from None
    return _named(name, fields, found)


def _parse(cursor: _Cursor, name: str) -> tuple[dict[str, tuple[GGUFValueType, Any]], dict[int, Tensor]]:
    cursor.skip(4)
    version = cursor.number("<I")
    if version not in (2, 3):
        raise EngineError(f"{name} is a GGUF file of version {version}: only little-endian versions 2 and 3 are read.")
    tensors, count = cursor.number("<Q"), cursor.number("<Q")
    if tensors > MAX_ENTRIES or count > _MAX_FIELDS:
        raise EngineError(f"{name} claims {tensors:,} tensors and {count:,} fields: no control vector has that many.")
    fields: dict[str, tuple[GGUFValueType, Any]] = {}
    for _ in range(count):
        key = cursor.text()
        fields[key] = cursor.value()
        if key == "general.architecture" and fields[key][1] != "controlvector":
            raise EngineError(
                f"{name} is a GGUF file of a '{printable(str(fields[key][1]))}', not of a control vector: choose "
                "another file."
            )
    if "general.architecture" not in fields:
        raise EngineError(f"{name} is a GGUF file that does not say what it holds: choose a control vector.")
    infos = [_tensor_info(cursor, name) for _ in range(tensors)]
    kind, alignment = fields.get("general.alignment", (GGUFValueType.UINT32, 32))
    if kind != GGUFValueType.UINT32 or alignment == 0 or alignment & (alignment - 1):
        raise ValueError("alignment")
    start = -(-cursor.offset // alignment) * alignment
    # tensors that lie on top of each other would take many times the file's size
    if sum(4 * length for _, length, _ in infos) > len(cursor.data):
        raise ValueError("overlap")
    found: dict[int, Tensor] = {}
    for number, length, offset in infos:
        if number in found:
            raise ValueError("the same tensor twice")
        # numpy.frombuffer raises ValueError beyond the file's end
        begin = start + offset
        if begin + 4 * length > len(cursor.data):
            raise ValueError("truncated")
        # native order and writable, as torch wants it
        found[number] = torch.from_numpy(np.frombuffer(cursor.data, "<f4", length, begin).astype(np.float32))
    return fields, found


def _tensor_info(cursor: _Cursor, name: str) -> tuple[int, int, int]:
    """Number, length and offset of a tensor."""
    title = cursor.text()
    dimensions = cursor.number("<I")
    shape = [cursor.number("<Q") for _ in range(min(dimensions, 5))]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    prefix, _, number = title.partition(".")
    if prefix != "direction" or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise EngineError(
            f"{name} holds a tensor '{printable(title)}': a control vector has only direction.1, direction.2 and so on."
        )
    if dimensions != 1 or shape[0] == 0 or kind != GGMLQuantizationType.F32:
        raise EngineError(f"{title} in {name} is not one row of 32-bit floats: export it again in that form.")
    return int(number), shape[0], offset


def _named(name: str, fields: dict[str, tuple[GGUFValueType, Any]], found: dict[int, Tensor]) -> ImportedVectors:
    notes: tuple[str, ...] = ()
    hint = fields.get("controlvector.model_hint", (None, ""))[1]
    if isinstance(hint, str) and printable(hint):
        notes += (f"The file says it is for the model '{printable(hint)}'.",)
    counted = fields.get("controlvector.layer_count", (None, None))[0]
    maker = "llama.cpp"
    if CAUTION_KEY in fields:
        maker = "this project"
    # the writers differ in the type of this field
    elif counted == GGUFValueType.UINT32:
        maker = "repeng"
        notes += (
            "repeng's vectors have length 1, not that of a class gap, and it reads the last block after the model's "
            "final norm.",
        )
    elif counted == GGUFValueType.INT32:
        maker = "llama.cpp cvector-generator"
        notes += (
            "cvector-generator measures direction.N at the output of block N − 1, but llama.cpp adds it after block "
            "N, as is done here; its vectors have length 1, not that of a class gap.",
        )
    if 0 in found:
        if maker != "repeng":
            raise EngineError(f"{name} has a direction.0, which llama.cpp refuses: number its directions from 1.")
        notes += ("direction.0 became block 0; llama.cpp would refuse this file.",)
    return checked_vectors(name, found, f"GGUF control vector ({maker})", notes)
