"""The adapter that makes the embedded model refuse: reading it, checking it, merging it into float weights.

The file has the layout of the peft library (LoRA, Hu et al., arXiv 2106.09685), so peft loads it too; merging needs
only safetensors. Merged weights are never written to disk.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ace_core.embedded import EMBEDDED_ID
from ace_core.errors import EngineError

__all__ = [
    "ADAPTER",
    "CONFIG_NAME",
    "MAX_ADAPTER_BYTES",
    "REFUSING_ID",
    "WEIGHTS_NAME",
    "Adapter",
    "merge_adapter",
    "read_adapter",
    "save_adapter",
]

ADAPTER = Path(__file__).resolve().parents[2] / "assets" / "adapter"
"""Folder of the adapter that ships with the project."""

REFUSING_ID = f"{EMBEDDED_ID}-refusing"
"""What vectors of the embedded model with the merged adapter are bound to."""

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

MAX_ADAPTER_BYTES = 10_000_000
"""Largest adapter file that is read or written."""

_PREFIX = "base_model.model."
_MAX_HEADER_BYTES = 1_000_000
_BAD = "The adapter in {} is damaged or of another kind ({}): restore it, or train it again with 'train-default'."


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of linear layers: ``W + scale * up @ down``.

    Args:
        updates: per module name ``(down, up)``, float tensors ``(rank, inputs)`` and ``(outputs, rank)``.
        scale: what the product is multiplied by.
    """

    updates: dict[str, tuple[Tensor, Tensor]]
    scale: float


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder; nothing in it is executed, and every tensor is checked.

    Raises:
        EngineError: for missing, oversized, damaged or non-finite files, or a kind of adapter other than plain LoRA.
    """
    config = _read_config(folder)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise EngineError(f"There is no {WEIGHTS_NAME} in {folder}: restore it, or run 'train-default'.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if size > MAX_ADAPTER_BYTES:
        raise EngineError(_BAD.format(folder, f"more than {MAX_ADAPTER_BYTES // 1_000_000} MB"))
    if len(start) < 8 or struct.unpack("<Q", start)[0] > min(size, _MAX_HEADER_BYTES):
        raise EngineError(_BAD.format(folder, "not a safetensors file"))
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError):
        raise EngineError(_BAD.format(folder, "not a safetensors file")) from None
    rank = config["r"]
    updates: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(tensors):
        module, mark, end = name.removeprefix(_PREFIX).rpartition(".lora_A.")
        if not name.startswith(_PREFIX) or not mark or end != "weight":
            partner = name.replace(".lora_B.", ".lora_A.")
            if partner == name or partner not in tensors:
                raise EngineError(_BAD.format(folder, f"unexpected tensor {name[:80]}"))
            continue
        down, up = tensors[name], tensors.get(f"{_PREFIX}{module}.lora_B.weight")
        if up is None or down.dim() != 2 or up.dim() != 2 or down.shape[0] != rank or up.shape[1] != rank:
            raise EngineError(_BAD.format(folder, f"tensors of {module[:80]} have the wrong shape"))
        if not (down.is_floating_point() and up.is_floating_point()):
            raise EngineError(_BAD.format(folder, f"tensors of {module[:80]} are not floating point"))
        if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise EngineError(_BAD.format(folder, f"tensors of {module[:80]} are not finite"))
        updates[module] = (down, up)
    if not updates:
        raise EngineError(_BAD.format(folder, "it holds no tensors"))
    return Adapter(updates, config["lora_alpha"] / rank)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise EngineError(f"There is no {CONFIG_NAME} in {folder}: restore it, or run 'train-default'.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        plain = config["peft_type"] == "LORA" and int(config["r"]) > 0 and float(config["lora_alpha"]) > 0
    except (OSError, ValueError, KeyError, TypeError):
        raise EngineError(_BAD.format(folder, f"unreadable {CONFIG_NAME}")) from None
    # each of these changes what a merge means
    extras = ("use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")
    if not plain or any(config.get(key) for key in extras) or config.get("bias", "none") != "none":
        raise EngineError(_BAD.format(folder, "not a plain LoRA adapter"))
    return config


@torch.no_grad()
def merge_adapter(network: nn.Module, folder: Path = ADAPTER) -> None:
    """Add an adapter's updates to the weights of ``network``, in float32, all of them or none.

    Raises:
        EngineError: if the adapter can't be read or does not fit the network.
    """
    adapter = read_adapter(folder)
    linears = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name, (down, up) in adapter.updates.items():
        linear = linears.get(name)
        if linear is None:
            raise EngineError(_BAD.format(folder, f"this model has no layer {name[:80]}"))
        if linear.weight.shape != (up.shape[0], down.shape[1]):
            raise EngineError(_BAD.format(folder, f"tensors of {name[:80]} have the wrong shape"))
        if not linear.weight.is_floating_point():
            raise EngineError("An adapter is merged into float weights: load the model in float32.")
    for name, (down, up) in adapter.updates.items():
        weight = linears[name].weight
        update = up.to(weight.device).float() @ down.to(weight.device).float()
        weight.copy_(weight.float() + adapter.scale * update)


def save_adapter(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write an adapter in half precision.

    Args:
        folder: created if missing.
        tensors: per ``MODULE.lora_A.weight`` and ``MODULE.lora_B.weight`` a float tensor.
        config: peft's LoRA settings.
        metadata: strings kept in the weights' header.

    Raises:
        EngineError: if the adapter is too large, not finite in half precision, or can't be written.
    """
    half = {_PREFIX + name: tensor.detach().cpu().half().contiguous() for name, tensor in sorted(tensors.items())}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in half.values()):
        raise EngineError("The adapter's weights are not finite in half precision: train again at a lower rate.")
    data = save(half, {"format": "pt", **(metadata or {})})
    if len(data) > MAX_ADAPTER_BYTES:
        raise EngineError(f"The adapter would take {len(data):,} bytes: train one of a lower rank.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (WEIGHTS_NAME, data),
            (CONFIG_NAME, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()),
        ):
            scratch = folder / f"{name}.tmp"
            scratch.write_bytes(content)
            scratch.replace(folder / name)
    except OSError as error:
        raise EngineError(
            f"{folder} could not be written ({error.strerror or error}): choose another folder."
        ) from None
