"""The CPU's fast mode: int8 weights with one scale per output channel, float32 residual stream.

Only the linear layers change. Each rounds its input and output to bfloat16, as torch's int8 kernel does, and every
row is computed alone, so a row of a batch equals the row by itself. Embeddings, norms, attention and the residual
stream stay float32, so steering coordinates keep float32 accuracy.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Int8Linear", "faster_with_int8", "quantise_linears"]

_KERNEL_ROWS = 12
"""Up to this many rows torch's int8 kernel beats a float32 matrix product."""


class Int8Linear(nn.Module):
    """Drop-in for ``nn.Linear`` on CPU, inference only.

    The scale is rounded up to bfloat16 before the weights are divided by it, so ``weight`` holds exactly
    ``int8 * scale`` and both code paths of :meth:`forward` multiply by the same numbers.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        limit = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        scale = (limit * (1 + 2**-8)).to(torch.bfloat16)
        packed = (weight / scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed: Tensor
        self.scale: Tensor
        self.weight: Tensor
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", packed.float() * scale.float().unsqueeze(1))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        # Decoding, one token a row, always takes the kernel and reading a prompt never does, whatever the number of
        # rows, and prompts are multiplied one by one: a row's rounding must not depend on its neighbours.
        if x.shape[-2] == 1 if x.dim() == 3 else rows.shape[0] <= _KERNEL_ROWS:
            out = torch._weight_int8pack_mm(rows, self.packed, self.scale)  # type: ignore[attr-defined]
        else:
            out = rows.new_empty(rows.shape[0], self.out_features)
            step = x.shape[-2] if x.dim() == 3 else rows.shape[0]
            for start in range(0, rows.shape[0], step):
                prompt = rows[start : start + step].float()
                out[start : start + step] = functional.linear(prompt, self.weight)
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def quantise_linears(network: nn.Module) -> int:
    """Replace every ``nn.Linear`` of ``network`` in place; returns how many were replaced."""
    count = 0
    for name, module in list(network.named_modules()):
        if type(module) is nn.Linear:
            parent_name, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent_name), attribute, Int8Linear(module))
            count += 1
    return count


@torch.inference_mode()
def faster_with_int8(network: nn.Module, rows: int = 4, repeats: int = 7) -> bool:
    """Whether the int8 kernel beats float32 on this CPU for the network's largest linear layer outside its head."""
    linears = [m for m in network.modules() if type(m) is nn.Linear]
    head: Any = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None  # type: ignore[operator]
    body = [m for m in linears if m is not head]
    if not body:
        return False
    linear = max(body, key=lambda m: m.weight.numel())
    x = torch.randn(rows, linear.in_features)
    try:
        fast = Int8Linear(linear)
        fast(x)
    except RuntimeError:  # no int8 kernel on this processor
        return False

    def median(module: nn.Module) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            module(x)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    median(linear)
    return median(fast) < median(linear)
