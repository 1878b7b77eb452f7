"""What the CPU's fast mode changes against float32 weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ace_core.activations import recording
from ace_core.checking.checks import CheckRow
from ace_core.directions import RefusalDirections
from ace_core.models import ChatModel

__all__ = ["fast_mode_rows"]


def fast_mode_rows(
    fast: ChatModel, reference: ChatModel, directions: RefusalDirections, prompts: Sequence[str]
) -> Iterator[CheckRow]:
    """What the CPU's fast mode changes against float32 weights on ``prompts`` (templated, unsteered).

    Yields the mean KL divergence a token, the mean shift of the refusal coordinate at the recommended block, and how
    far a direction fitted in the fast mode turns.
    """
    layer, kl, shift, tokens, same = directions.recommended_layer, 0.0, 0.0, 0, 0
    axis = directions.axis(layer)
    means: list[list[Tensor]] = [[], []]
    for prompt in prompts:
        ids = torch.tensor([fast.encode(prompt)], device=fast.device)
        streams, logits = [], []
        for index, model in enumerate((fast, reference)):
            with torch.inference_mode(), recording([model.blocks[layer]], slice(None)) as seen:
                logits.append(model.network(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1))
            streams.append((seen[0][0].float() @ axis.unit - axis.low) / (axis.high - axis.low))
            means[index].append(seen[0][0, -1].float())
        kl += float((logits[1].exp() * (logits[1] - logits[0])).sum())
        same += int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum())
        shift += float((streams[0][-1] - streams[1][-1]).abs())
        tokens += ids.shape[1]
    note = f"most likely token equal at {same / tokens:.1%} of {tokens} positions"
    yield CheckRow("fast mode: KL from float32", kl / tokens, 0.05, "nats a token", note)
    yield CheckRow("fast mode: shift of the refusal coordinate", shift / len(prompts), 0.1, "class gaps")
    half = len(prompts) // 2
    turned = [torch.stack(m[half:]).mean(0) - torch.stack(m[:half]).mean(0) for m in means]
    cosine = float(torch.nn.functional.cosine_similarity(turned[0], turned[1], dim=0))
    yield CheckRow("fast mode: 1 - cosine of the directions fitted in both", 1 - cosine, 0.02, "")
