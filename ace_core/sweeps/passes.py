"""One forward pass of a sweep: blocks that do nothing, and logits of one position a row.

The causal mask takes its length from the first block's cache. Below the edited block that cache is therefore always
given its full length, though nothing reads it: left empty, results would be wrong in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ace_core.blocks import with_hidden
from ace_core.decoding import CACHE_NAMES
from ace_core.models import ChatModel
from ace_core.sweeps.prefixes import cache_of

__all__ = ["Ability", "bypassed", "forward"]


@dataclass(frozen=True)
class Ability:
    """What is known of a model for which the savings were measured to be exact.

    Args:
        outputs: one output a block, for its form.
        kept: numbers that attention keeps of a token, over all blocks.
        feed_forward: the last block's part behind attention, if it may read the scored position alone.
    """

    outputs: tuple[Any, ...]
    kept: int
    feed_forward: nn.Module | None = None


@contextmanager
def bypassed(blocks: Sequence[nn.Module], outputs: Sequence[Any], last: int, hidden: Tensor) -> Iterator[None]:
    """Blocks up to ``last`` do nothing inside the ``with`` block, and ``last`` puts out ``hidden`` ``(B, S, d)``.

    Hooks on the blocks still run, so an edit of ``last`` finds what it would have found.

    Args:
        blocks: of the model.
        outputs: one output a block, for its form.
        last: last block that does nothing.
        hidden: its recorded output.
    """

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            entering = args[0] if args else kwargs["hidden_states"]
            return with_hidden(outputs[index], hidden if index == last else entering)

        return forward

    own_forwards = [vars(block).get("forward") for block in blocks[: last + 1]]  # accelerate sets its own
    try:
        for index, block in enumerate(blocks[: last + 1]):
            block.forward = stand_in(index)
        yield
    finally:
        for block, own in zip(blocks, own_forwards, strict=False):
            if own is None:
                vars(block).pop("forward", None)
            else:
                block.forward = own


def forward(
    model: ChatModel,
    ids: Tensor,
    start: int,
    layers: list[Any] | None,
    last: Tensor | None,
    feed_forward: nn.Module | None = None,
) -> tuple[Tensor, list[Any]]:
    """Read tokens ``(B, S)`` at positions from ``start`` on, padded on the right, which no other position can see.

    Args:
        model: a loaded model.
        ids: the tokens.
        start: how many tokens the cache holds.
        layers: its layers; None where there are none.
        last: ``(B,)`` column of each row that is scored; None for the last one.
        feed_forward: see :class:`Ability`; the last block's output then holds at the scored column only.

    Returns:
        Float32 logits ``(B, vocabulary)`` on the CPU at column ``last`` of each row (None: the last column), and the
        cache's layers.
    """
    network = model.network
    accepted = inspect.signature(type(network).forward).parameters
    columns = torch.arange(start, start + ids.shape[1], device=ids.device)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
    if "position_ids" in accepted:
        inputs["position_ids"] = columns.unsqueeze(0)
    if "cache_position" in accepted:
        inputs["cache_position"] = columns
    if layers is not None:
        inputs[next(name for name in CACHE_NAMES if name in accepted)] = cache_of(layers)

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        hidden = args[0]
        column = -1 if last is None else last.to(hidden.device)
        row = torch.arange(hidden.shape[0], device=hidden.device)
        return (hidden[row, column].unsqueeze(1), *args[1:])

    def pick_inside(module: nn.Module, args: tuple[Any, ...]) -> Any:
        # its output (B, 1, d) is added to every column of the stream; the head picks the right one
        return pick(module, args) if args and args[0].dim() == 3 else None

    handles = [network.get_output_embeddings().register_forward_pre_hook(pick)]
    if feed_forward is not None:
        handles.append(feed_forward.register_forward_pre_hook(pick_inside))
    try:
        output = network(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    cache = next(c for c in (getattr(output, name, None) for name in CACHE_NAMES) if c is not None)
    return output.logits[:, -1].float().cpu(), cache.layers
