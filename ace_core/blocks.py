"""Finding and verifying the decoder blocks of any causal language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ace_core.errors import EngineError

__all__ = ["find_blocks", "hidden_of", "verify_blocks", "with_hidden"]


def hidden_of(output: Any) -> Tensor:
    """The residual stream in a block's output, which is a tensor or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """``output`` with its residual stream replaced by ``hidden``; nothing is written in place."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def find_blocks(network: nn.Module) -> tuple[nn.Module, ...]:
    """Decoder blocks in order: the outermost module list as long as the configuration's number of layers.

    Raises:
        EngineError: if there is none.
    """
    config: Any = getattr(network, "config", None)
    text_config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    count = getattr(text_config, "num_hidden_layers", None)
    lists = [
        (name.count("."), index, module)
        for index, (name, module) in enumerate(network.named_modules())
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    lists = [entry for entry in lists if "vision" not in type(entry[2][0]).__name__.lower()]
    if not lists:
        raise EngineError(
            f"No list of {count} decoder blocks was found in {type(network).__name__}: choose another model."
        )
    return tuple(min(lists, key=lambda entry: entry[:2])[2])


@torch.no_grad()
def verify_blocks(network: nn.Module, blocks: tuple[nn.Module, ...], device: torch.device) -> int:
    """Run two rows of three tokens and confirm that every block runs once, in order, and returns ``(B, S, d)``.

    Returns:
        Width ``d`` of the residual stream.

    Raises:
        EngineError: for models whose blocks are anything else (several streams, shared or skipped blocks).
    """
    seen: list[tuple[int, tuple[int, ...]]] = []

    def note(index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = hidden_of(output)
            seen.append((index, tuple(hidden.shape) if isinstance(hidden, Tensor) else ()))

        return hook

    handles = [block.register_forward_hook(note(i)) for i, block in enumerate(blocks)]
    try:
        network(input_ids=torch.tensor([[1, 2, 3], [3, 2, 1]], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    shapes = {shape for _, shape in seen}
    shape = shapes.pop() if len(shapes) == 1 else ()
    if [i for i, _ in seen] != list(range(len(blocks))) or len(shape) != 3 or shape[:2] != (2, 3):
        raise EngineError(
            f"{type(network).__name__} does not pass one residual stream of shape (batch, positions, width) "
            "through its blocks in order, so steering it would be wrong: choose another model."
        )
    return shape[2]
