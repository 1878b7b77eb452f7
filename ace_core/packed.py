"""Linear layers on CPUs with weights packed the way they multiply fastest, inference only.

A product of a few rows with a plain weight runs far from memory speed on many CPUs, and a few rows are what decoding
a handful of arms needs. Two packings, both with float32 inputs, sums and outputs:

* :class:`FloatWeight`, oneDNN's blocked layout of float32 weights: four rows cost little more than one;
* :class:`HalfWeight`, FBGEMM's layout of float16 weights: half the bytes to read again. This is the *fast mode*; its
  only change is that weights are rounded to float16.

A row's numbers don't depend on how many others share the product (to the bit on AVX2 processors).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FloatWeight", "HalfWeight", "PackedLinear", "PackedSibling", "faster_with", "pack_linears"]

_LAYOUT_ROWS = 64
"""Rows oneDNN's layout is chosen for; with its choice for one row, numbers would depend on the number of rows."""

_TILE_ROWS = 6
"""FBGEMM's AVX2 kernels take three to six rows at once and sum in one order; those for one or two rows, which it uses
for what a larger product leaves over, sum in another."""


class FloatWeight:
    """A float32 weight ``(outputs, inputs)`` in oneDNN's layout.

    Raises:
        RuntimeError: where this build of torch or this processor can't pack.
    """

    def __init__(self, weight: Tensor) -> None:
        try:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAYOUT_ROWS)
        except AttributeError:
            raise RuntimeError("This build of torch has no oneDNN.") from None

    def product(self, x: Tensor) -> Tensor:
        """``x @ weight.T`` for float32 ``(..., inputs)``."""
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self._weight, None, "none", [], "")


class HalfWeight:
    """A weight ``(outputs, inputs)`` rounded to float16, in FBGEMM's layout.

    Raises:
        RuntimeError: where this build of torch or this processor can't pack, or the weight does not fit float16.
    """

    def __init__(self, weight: Tensor) -> None:
        if float(weight.abs().max()) > torch.finfo(torch.float16).max:
            raise RuntimeError("These weights are too large for float16.")
        try:
            self._weight = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), None)
        except AttributeError:
            raise RuntimeError("This build of torch has no FBGEMM.") from None

    def product(self, x: Tensor) -> Tensor:
        """``x @ weight.T`` for float32 ``(..., inputs)``."""
        rows = x.reshape(-1, x.shape[-1])
        count = rows.shape[0]
        spare = max(0, 3 - count) if count <= _TILE_ROWS else -count % _TILE_ROWS
        if spare:
            rows, full = rows.new_empty(count + spare, rows.shape[1]), rows
            rows[:count] = full
        out = torch.ops.quantized.linear_dynamic_fp16(rows, self._weight)
        return out[:count].view(*x.shape[:-1], -1)


class PackedLinear(nn.Module):
    """Drop-in for ``nn.Linear`` on CPU.

    Args:
        linear: the layer to replace.
        kind: how its weight is packed.
    """

    def __init__(self, linear: nn.Linear, kind: type[FloatWeight] | type[HalfWeight]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = kind(linear.weight.detach().float())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out = self.packed.product(x)
        return out if self.bias is None else out + self.bias


class _Siblings:
    """One product for several layers that read the same input, such as a block's query, key and value layers.

    The first of them to be called computes all outputs; the others pick theirs up.
    """

    def __init__(self, linears: Sequence[nn.Linear], kind: type[FloatWeight] | type[HalfWeight]) -> None:
        self._packed = kind(torch.cat([linear.weight.detach().float() for linear in linears]))
        self._sizes = [linear.out_features for linear in linears]
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def output(self, index: int, x: Tensor) -> Tensor:
        """``x @ weight.T`` of layer ``index``, ``(..., outputs)``."""
        if x is not self._input or index not in self._outputs:
            parts = self._packed.product(x).split(self._sizes, dim=-1)
            self._input, self._outputs = x, dict(enumerate(parts))
        out = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return out


class PackedSibling(nn.Module):
    """Drop-in for one ``nn.Linear`` of several that read the same input."""

    def __init__(self, linear: nn.Linear, siblings: _Siblings, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._siblings, self._index = siblings, index
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out = self._siblings.output(self._index, x)
        return out if self.bias is None else out + self.bias


@torch.inference_mode()
def pack_linears(network: nn.Module, kind: type[FloatWeight] | type[HalfWeight]) -> int:
    """Replace every plain ``nn.Linear`` of ``network`` in place; returns how many were replaced.

    Raises:
        RuntimeError: where packing is not possible; the network may then be packed in part.
    """
    found = {name: module for name, module in network.named_modules() if type(module) is nn.Linear}
    groups = _reading_alike(network, found)
    grouped = {name for group in groups for name in group}
    groups += [[name] for name in found if name not in grouped]
    for group in groups:
        linears = [found[name] for name in group]
        siblings = _Siblings(linears, kind) if len(group) > 1 else None
        for index, (name, linear) in enumerate(zip(group, linears, strict=True)):
            parent, _, attribute = name.rpartition(".")
            packed = PackedLinear(linear, kind) if siblings is None else PackedSibling(linear, siblings, index)
            setattr(network.get_submodule(parent), attribute, packed)
    return len(found)


def _reading_alike(network: nn.Module, linears: dict[str, nn.Linear]) -> list[list[str]]:
    """Names of layers of one module that a dry run gave the very same tensor, in groups of two or more."""
    seen: dict[tuple[str, int], list[str]] = {}
    alive = []  # a tensor that is gone may leave its identity to another
    handles = []
    for name, linear in linears.items():

        def note(_module: nn.Module, inputs: Any, name: str = name) -> None:
            alive.append(inputs[0])
            seen.setdefault((name.rpartition(".")[0], id(inputs[0])), []).append(name)

        handles.append(linear.register_forward_pre_hook(note))
    try:
        network(input_ids=torch.tensor([[1, 2]]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    groups = [group for group in seen.values() if len(group) > 1]
    names = [name for group in groups for name in group]
    return [group for group in groups if all(names.count(name) == 1 for name in group)]


@torch.inference_mode()
def faster_with(network: nn.Module, kind: type[FloatWeight] | type[HalfWeight], rows: int = 4) -> bool:
    """Whether packing beats the plain float32 product on this CPU for the network's largest linear layer outside its
    head, and gives the same numbers within rounding."""
    head: Any = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None  # type: ignore[operator]
    body = [m for m in network.modules() if type(m) is nn.Linear and m is not head]
    linear = max(body, key=lambda m: m.weight.numel(), default=None)
    if linear is None or linear.weight.dtype != torch.float32:
        return False
    x = torch.randn(16, linear.in_features)
    try:
        packed = PackedLinear(linear, kind)
        expected = linear(x)
        if float((packed(x) - expected).abs().max()) > 0.01 * float(expected.std()):
            return False
    except RuntimeError:
        return False
    few = x[:rows]
    return _median_time(lambda: packed(few)) < _median_time(lambda: linear(few))


def _median_time(run: Callable[[], Any], repeats: int = 9) -> float:
    """Median seconds of one call, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
