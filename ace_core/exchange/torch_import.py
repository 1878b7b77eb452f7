"""Vectors in files of ``torch.save``: refusal_direction (Arditi et al.) and the steering-vectors library.

Conventions, read off the tools' sources:

* refusal_direction (``pipeline/submodules/generate_directions.py``) records forward **pre**-hooks of the blocks, so its
  layer L is the input of block L, which is the output of block L − 1; layer 0 is the output of the embedding.
  ``mean_diffs.pt`` is float64 ``(n_positions, n_layers, d)``, harmful minus harmless; ``direction.pt`` is one row of
  it, and ``direction_metadata.json`` beside it says ``{"pos": …, "layer": …}``.
* steering-vectors (``steering_vectors/steering_vector.py``, 0.12) adds ``layer_activations[L]`` in a forward hook of
  block L, 0-based, which is the output of block L, if ``layer_type`` is ``decoder_block``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ace_core.errors import EngineError
from ace_core.exchange.torch_archive import SteeringVectorRecord
from ace_core.exchange.vectors import MAX_ENTRIES, ImportedVectors, checked_vectors, printable

__all__ = ["read_torch"]

_METADATA = "direction_metadata.json"
_MAX_METADATA_BYTES = 10_000


def read_torch(path: Path, content: Any, *, position: int | None, layer: int | None) -> ImportedVectors:
    """Vectors from what ``torch.save`` wrote.

    Args:
        path: the file, for messages and for the metadata beside it.
        content: what was in it.
        position, layer: see :func:`ace_core.exchange.imported.read_vectors`.

    Raises:
        EngineError: for anything that is no set of vectors, and arguments without use.
    """
    name = path.name
    if isinstance(content, Tensor) and content.dim() == 3:
        if layer is not None:
            raise EngineError(f"{name} holds every layer: leave out the layer.")
        return _mean_diffs(name, content, -1 if position is None else position)
    if position is not None:
        raise EngineError(f"{name} holds one position only: leave out the position.")
    if isinstance(content, Tensor):
        return _direction(path, content, layer)
    if layer is not None:
        raise EngineError(f"{name} names its layers itself: leave out the layer.")
    if isinstance(content, SteeringVectorRecord):
        if content.layer_type != "decoder_block":
            raise EngineError(
                f"{name} steers '{printable(str(content.layer_type))}': only vectors of layer type 'decoder_block' "
                "have a place here."
            )
        return _layer_activations(name, content.layer_activations, "steering-vectors SteeringVector")
    return _layer_activations(name, content, "steering-vectors layer_activations")


def _mean_diffs(name: str, tensor: Tensor, position: int) -> ImportedVectors:
    positions, layers, _ = tensor.shape
    _check_tensor(name, tensor)
    if not -positions <= position < positions:
        raise EngineError(f"{name} has {positions} positions: choose one from {-positions} to {positions - 1}.")
    if layers > MAX_ENTRIES:
        raise EngineError(f"{name} has more than {MAX_ENTRIES:,} layers: choose another file.")
    rows = tensor[position]
    notes = (
        f"Position {position} of {positions}.",
        "Layer L of the file is the input of block L and became block L − 1; layer 0, the output of the embedding, was "
        "dropped, and the output of the last block is not in the file.",
    )
    found = {layer - 1: rows[layer] for layer in range(1, layers)}
    return checked_vectors(name, found, "refusal_direction mean_diffs", notes)


def _direction(path: Path, tensor: Tensor, layer: int | None) -> ImportedVectors:
    name = path.name
    _check_vector(name, tensor)
    notes: tuple[str, ...] = ()
    if layer is None:
        layer, position = _metadata(path)
        notes = (f"Layer {layer} and position {position} are from {_METADATA}.",)
    if layer == 0:
        raise EngineError(
            f"{name} is a direction of layer 0, the output of the embedding, which no decoder block makes: choose a "
            "direction of a later layer."
        )
    notes += (f"Layer {layer} of the file is the input of block {layer}, so it became block {layer - 1}.",)
    return checked_vectors(name, {layer - 1: tensor}, "refusal_direction direction", notes)


def _metadata(path: Path) -> tuple[int, int]:
    beside = path.with_name(_METADATA)
    if not beside.is_file():
        raise EngineError(
            f"{path.name} does not say which layer it is of: give the layer, or put {_METADATA} beside it."
        )
    try:
        with beside.open("rb") as file:
            fields = json.loads(file.read(_MAX_METADATA_BYTES))
        layer, position = fields["layer"], fields["pos"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        layer = position = None
    # True is an int as well
    if type(layer) is not int or type(position) is not int:
        raise EngineError(f"{_METADATA} beside {path.name} has no whole numbers 'layer' and 'pos': give the layer.")
    return layer, position


def _layer_activations(name: str, content: Any, kind: str) -> ImportedVectors:
    if not isinstance(content, dict) or not content:
        raise EngineError(f"{name} holds no dictionary from layers to vectors: save the vector's layer_activations.")
    for layer, tensor in content.items():
        if type(layer) is not int or layer < 0:
            raise EngineError(f"{name} has the layer {printable(repr(layer))}: number its layers 0, 1, 2 and so on.")
        _check_vector(name, tensor)
    return checked_vectors(name, content, kind, ())


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.numel() == 0:
        raise EngineError(f"{name} holds something else than vectors of floating point numbers: save only the vectors.")


def _check_vector(name: str, tensor: Any) -> None:
    _check_tensor(name, tensor)
    if tensor.dim() == 0 or tensor.numel() != tensor.shape[-1]:
        shape = f"of shape {'×'.join(map(str, tensor.shape))}" if tensor.dim() else "without dimensions"
        raise EngineError(f"{name} holds a tensor {shape}: a steering vector has one dimension.")
