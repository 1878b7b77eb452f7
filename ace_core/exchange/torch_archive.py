"""Opening a file of ``torch.save`` that may be hostile.

``weights_only=True`` keeps code from running, but leaves ways to exhaust memory or, before PyTorch 2.10, to read past a
record's end (a storage may claim more than its record holds; pytorch/pytorch pull request 165553). So the archive is
checked first: records stored plainly and all of one size, a short list of globals, no nested tuples; then it is packed
anew, so that PyTorch's reader of zip files sees exactly what was checked here.
"""

from __future__ import annotations

import io
import pickletools
import threading
import zipfile
from typing import Any

import torch
from torch import Tensor

from ace_core.errors import EngineError
from ace_core.exchange.vectors import MAX_ENTRIES, printable

__all__ = ["SteeringVectorRecord", "load_archive"]

_CLASS = "steering_vectors.steering_vector.SteeringVector"
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in ("Float", "Double", "Half", "BFloat16")),
    " ".join(_CLASS.rsplit(".", 1)),
}
_INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1"}
# what torch.save needs for tensors in a dict or dataclass, less the ones that only remember a value
# fmt: off
_OPERATIONS = {
    *_INTEGERS,
    "PROTO", "GLOBAL", "MARK", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE", "BINUNICODE", "BINGET", "LONG_BINGET", "BINPERSID",
    "REDUCE", "NEWOBJ", "BUILD", "SETITEM", "SETITEMS", "STOP",
}
# fmt: on
_MAX_PICKLE_BYTES = 2 * 1024 * 1024
_LOCK = threading.Lock()


class SteeringVectorRecord:
    """Stands in for the dataclass of the steering-vectors library: takes its two fields and does nothing."""

    layer_activations: Any = None
    layer_type: Any = "decoder_block"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.layer_activations = state.get("layer_activations")
            self.layer_type = state.get("layer_type", "decoder_block")


def load_archive(data: bytes, name: str) -> Any:
    """The object in a zip file of ``torch.save``: a tensor, a dict, or a :class:`SteeringVectorRecord`.

    All tensors together take no more memory than the file; their types and shapes are for the caller to check.

    Args:
        data: the whole file.
        name: its name, for messages.

    Raises:
        EngineError: for a damaged file, or one that holds anything but float tensors, numbers, strings and dicts.
    """
    bad = f"{name} is damaged or not a file of torch.save: save the vectors again with torch.save."
    # every entry of a zip's directory begins so, and costs much more memory than disk
    if data.count(b"PK\x01\x02") > MAX_ENTRIES + 100:
        raise EngineError(f"{name} holds more than {MAX_ENTRIES:,} records: save only the vectors.")
    try:
        records = _records(data)
    except Exception:  # a hostile zip file can provoke nearly any error in the reader
        raise EngineError(bad) from None
    if "data.pkl" not in records or "constants.pkl" in records:
        raise EngineError(bad)
    if records.get("byteorder", b"little") != b"little":
        raise EngineError(f"{name} was written on a big-endian machine: save it again on a little-endian one.")
    code = records["data.pkl"]
    try:
        reason = _objection(code)
    except Exception:  # pickletools raises what the bytes provoke
        raise EngineError(bad) from None
    if reason:
        raise EngineError(f"{name} holds {reason}, so it was not opened: save plain tensors with torch.save.")
    storages = {key: record for key, record in records.items() if key.startswith("data/")}
    if len(set(map(len, storages.values()))) > 1:
        raise EngineError(f"The tensors in {name} differ in size: save clones of vectors of one width and type.")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", b"3\n")
        for key, record in storages.items():
            archive.writestr(f"archive/{key}", record)
    packed.seek(0)
    try:
        # PyTorch keeps the list of allowed classes per process
        with _LOCK, torch.serialization.safe_globals([(SteeringVectorRecord, _CLASS)]):
            content = torch.load(packed, map_location="cpu", weights_only=True)
    except Exception:  # UnpicklingError, RuntimeError, KeyError and what else a made-up pickle provokes
        raise EngineError(bad) from None
    if not _fits(content, max(map(len, storages.values()), default=0)):
        raise EngineError(f"{name} has tensors that claim more than the file holds: save clones of them.")
    return content


def _records(data: bytes) -> dict[str, bytes]:
    """Records by name without the archive's folder.

    Raises:
        ValueError: if they are compressed, of the same name, or in all larger than the file.
        zipfile.BadZipFile: and others for a damaged file.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("records larger than the file")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed records")
        records = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    if len(records) != len(entries):
        raise ValueError("two records of one name")
    return records


def _objection(code: bytes) -> str:
    """Why a pickle is not opened, or nothing.

    Raises:
        ValueError: and others for bytes that are no pickle.
    """
    if len(code) > _MAX_PICKLE_BYTES:
        return "too many objects"
    recent: list[str] = ["", "", ""]
    tensors = 0
    for operation, argument, _ in pickletools.genops(code):
        name = operation.name
        if name in ("BINPUT", "LONG_BINPUT"):
            continue
        if name not in _OPERATIONS or (name == "GLOBAL" and argument not in _GLOBALS):
            return f"code or objects of another kind ({printable(str(argument)) if name == 'GLOBAL' else name})"
        # torch.save makes tuples of integers, and longer ones only for a storage or a call; tuples in tuples in
        # tuples would overflow the interpreter's stack once hashed
        length = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}.get(name, 0)
        if not set(recent[3 - length :]) <= _INTEGERS or (
            recent[-1] == "TUPLE" and name not in ("BINPERSID", "REDUCE")
        ):
            return "objects that are no vectors"
        tensors += name == "BINPERSID"
        if tensors > MAX_ENTRIES:
            return f"more than {MAX_ENTRIES:,} tensors"
        recent = [*recent[1:], name]
    return ""


def _fits(content: Any, size: int) -> bool:
    """Whether no tensor's storage claims more than ``size``, that of every record, nor all tensors more than all."""
    if isinstance(content, SteeringVectorRecord):
        content = content.layer_activations
    values = list(content.values()) if isinstance(content, dict) else [content]
    tensors = [value for value in values if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(storages.values(), default=0) <= size and claimed <= sum(storages.values())
