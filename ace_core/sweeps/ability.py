"""Whether a sweep's savings are exact for a model, measured on a few tokens."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ace_core.activations import recording
from ace_core.arms import Arm
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections
from ace_core.interventions import Plan
from ace_core.methods import ACE, Addition
from ace_core.models import ChatModel
from ace_core.sweeps.passes import Ability, forward
from ace_core.sweeps.prefixes import cache_of, is_plain
from ace_core.sweeps.reuse import Shared

__all__ = ["ability"]

_FEED_FORWARD = ("mlp", "ffn", "feed_forward", "block_sparse_moe")
"""What families call a block's part behind attention, which reads every position by itself."""

_FAILURES = (RuntimeError, IndexError, ValueError, AttributeError, TypeError, KeyError, StopIteration)
"""What blocks, masks and caches of a form that the savings don't know raise."""

_known: weakref.WeakKeyDictionary[nn.Module, Ability | None] = weakref.WeakKeyDictionary()


def ability(model: ChatModel) -> Ability | None:
    """What the savings need to know of a model; None where they are not exact, so that cells must be read plainly.

    Masks, position encodings and caches of families differ, so this is measured, once a network, on a few tokens: first
    logits and a decoded token of two prompts under two strong edits, against the same read plainly.
    """
    if model.network not in _known:
        _known[model.network] = _measured(model)
    return _known[model.network]


@torch.inference_mode()
def _measured(model: ChatModel) -> Ability | None:
    if model.recurrent or not model.batched or model.network.get_output_embeddings() is None:
        return None
    blocks, prompts = model.blocks, [(1, 2, 3, 1, 3, 2), (1, 2, 3, 3)]
    forms: list[Any] = []
    handles = [block.register_forward_hook(lambda _m, _a, output: forms.append(output)) for block in blocks]
    try:
        with recording(blocks) as seen:
            _, layers = forward(model, torch.tensor([prompts[0]], device=model.device), 0, None, None)
        if len(layers) != len(blocks) or not is_plain(layers):
            return None
        outputs = tuple(
            (None, *(None if isinstance(x, Tensor) else x for x in form[1:])) if isinstance(form, tuple) else None
            for form in forms
        )
        kept = sum(t.shape[1] * t.shape[3] for layer in layers for t in (layer.keys, layer.values))
        mean = torch.stack([hidden[0].float().cpu() for hidden in seen])  # an edit as strong as the stream itself
        none = torch.empty(len(blocks), 0)
        directions = RefusalDirections(mean.roll(1, -1), mean, none, none, 0)
    except _FAILURES:
        return None
    finally:
        for handle in handles:
            handle.remove()
    parts = [part for name in _FEED_FORWARD if isinstance(part := getattr(blocks[-1], name, None), nn.Module)]
    for known in (*(Ability(outputs, kept, part) for part in parts), Ability(outputs, kept)):
        try:
            if _exact(model, known, directions, prompts):
                return known
        except _FAILURES:
            continue
    return None


def _exact(model: ChatModel, known: Ability, directions: RefusalDirections, prompts: Sequence[tuple[int, ...]]) -> bool:
    middle = (len(model.blocks) - 1) // 2
    arms, following = [Arm(Addition(1.0), middle), Arm(ACE(0.5), middle)], torch.tensor([2, 1], device=model.device)
    plan = Plan(directions, arms, [len(prompt) for prompt in prompts], read=False)
    plain = Decoding(model.network, prompts, model.pad_id, model.device)
    with plan.applied(model.blocks, plain.positions):
        expected = plain.prefill().float().cpu()
    # first logits, from rows padded on the right
    shared = Shared(model, known, directions, prompts, [middle])
    records, beginning = shared.record([0, 1]), shared.beginning(middle, arms)
    first, _ = shared.read(middle, arms, [0, 1], records, beginning, [0, 1])
    # generation, from rows that were read on their own and joined
    shared = Shared(model, known, directions, prompts, [middle], cached=True)
    records, beginning = shared.record([0, 1]), shared.beginning(middle, arms)
    parts = []
    for row, prompt in enumerate(prompts):
        _, layers = shared.read(middle, arms[row : row + 1], [row], records, beginning, [row])
        parts.append(Decoding(model.network, [prompt], model.pad_id, model.device))
        parts[-1].adopt(cache_of(layers))
    joined = parts[0]
    joined.join(parts[1:])
    steps = []
    for state in (plain, joined):
        state.advance(following)
        with plan.applied(model.blocks, state.positions):
            steps.append(state.step().float().cpu())
    want, have = torch.stack([expected, steps[0]]), torch.stack([first, steps[1]])
    tolerance = 0.02 if model.network.dtype == torch.float32 else 0.1
    return want.shape == have.shape and float((have - want).abs().max()) <= tolerance * float(want.std())
