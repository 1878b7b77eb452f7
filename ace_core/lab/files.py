"""Files of directions that people take away and bring along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.exchange import ImportedVectors, export_gguf, read_vectors, vector_card
from ace_core.lab.fit import LabFit
from ace_core.models import ChatModel
from ace_core.store import load_directions, save_directions, vectors_path
from ace_core.tasks import Task

__all__ = [
    "FILE_SUFFIXES",
    "LabFiles",
    "accept_directions",
    "is_foreign",
    "read_foreign",
    "read_own",
    "write_files",
]

FILE_SUFFIXES = (".safetensors", ".gguf", ".pt")

_MOST_HELDOUT = 5_000
"""Held-out prompts a class: separation compares every harmful one with every harmless one."""


@dataclass(frozen=True)
class LabFiles:
    """What was written.

    Args:
        vectors: this project's own file.
        card: what it is, in Markdown.
        gguf: control vector of the recommended block; None if it has no place in the format.
        note: one sentence on the control vector.
    """

    vectors: Path
    card: Path
    gguf: Path | None
    note: str


def write_files(directions: RefusalDirections, folder: Path) -> LabFiles:
    """Write all three files into ``folder``, over earlier ones.

    Raises:
        EngineError: if the folder can't be written.
    """
    vectors = vectors_path(directions.model_id, folder)
    card, gguf = vectors.with_suffix(".card.md"), vectors.with_suffix(".gguf")
    try:
        save_directions(directions, vectors)
        card.write_text(vector_card(directions), encoding="utf-8")
    except (OSError, EngineError):  # whose text names a path of the server
        vectors.unlink(missing_ok=True)
        raise EngineError("The files could not be written, perhaps for want of room: try again later.") from None
    block = directions.recommended_layer
    try:
        export_gguf(directions, gguf)
    except EngineError as error:
        gguf.unlink(missing_ok=True)
        return LabFiles(vectors, card, None, f"No control vector: {error}")
    note = (
        f"The GGUF control vector holds block {block} and carries activation addition only: it cannot carry ablation "
        "or ACE. Scale it with llama.cpp's --control-vector-scaled; 1 adds one class gap."
    )
    return LabFiles(vectors, card, gguf, note)


def is_foreign(path: Path) -> bool:
    """Whether a file was written by another tool, told by its content; damaged files count as foreign."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] != b"{"
    except OSError:
        return True


def read_own(path: Path) -> RefusalDirections:
    """A vectors file of this project that is safe to draw.

    Raises:
        EngineError: one sentence on what is wrong with it.
    """
    directions = load_directions(path)
    if max(directions.heldout_harmless.shape[1], directions.heldout_harmful.shape[1]) > _MOST_HELDOUT:
        raise EngineError(f"{path.name[:80]} holds more than {_MOST_HELDOUT:,} held-out prompts: fit it on fewer.")
    return directions


def read_foreign(path: Path, layer: object = "") -> ImportedVectors:
    """Vectors of another tool.

    Args:
        path: the file.
        layer: what was typed as the layer of a ``direction.pt``; empty where none is needed.

    Raises:
        EngineError: one sentence on what is wrong with it.
    """
    typed = "" if layer is None else str(layer)[:20].strip()
    if typed and not (typed.isascii() and typed.isdigit()):
        raise EngineError("The layer of the file must be a whole number from 0, or empty.")
    return read_vectors(path, layer=int(typed) if typed else None)


def accept_directions(model: ChatModel, task: Task[LabFit], directions: RefusalDirections, name: str) -> LabFit:
    """Directions from a file, checked against the loaded model.

    Raises:
        EngineError: if they belong to another model.
    """
    task.report("Checking the file against the model", None)
    model.accepts(directions)
    return LabFit(directions, f"your file {name[:60]}")
