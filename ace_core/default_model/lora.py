"""Training low-rank updates of some decoder blocks of a small model, on answers only; seeded and resumable."""

from __future__ import annotations

import inspect
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache

from ace_core.blocks import find_blocks
from ace_core.decoding import common_length
from ace_core.errors import EngineError

__all__ = [
    "BASE_ID",
    "Example",
    "Likely",
    "Recipe",
    "Trainer",
    "answer_loss",
    "divergence",
    "likely_tokens",
    "shared_length",
]

BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The embedded model's name on the hub, as peft's configuration records it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome. Blocks are 0-based and inclusive, lengths are in tokens.

    ``likely`` tokens of the base are what answers that are no refusals are learnt from, 0 for the answer's own tokens
    alone. ``reserve`` is added to the logit of a refusal's first token while training, so that without it the trained
    model is that much slower to refuse (logit adjustment, Menon et al., arXiv 2007.07314).
    """

    seed: int = 0
    rank: int = 16
    scale: float = 2.0
    first_block: int = 8
    last_block: int = 18
    rate: float = 6e-4
    warmup: float = 0.06
    epochs: int = 2
    batch: int = 16
    answer_tokens: int = 32
    clip: float = 1.0
    dropout: float = 0.0
    first_weight: float = 8.0
    likely: int = 32
    reserve: float = 1.0
    decay: float = 0.0
    topic_share: float = 0.4
    lookalike_repeats: int = 1
    validate_at: tuple[float, ...] = (0.5, 1.0)


Likely = tuple[Tensor, Tensor]
"""The most likely tokens at every position of an answer and their log-probabilities, both ``(answer, tokens)``."""


@dataclass(frozen=True)
class Example:
    """A templated prompt and the answer to learn, as token ids; ``kind`` is the prompt set's name.

    With ``likely``, the distribution that they are the head of is learnt in place of the answer's own tokens.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    kind: str
    likely: Likely | None = field(default=None, compare=False, repr=False)


class Trainer:
    """Trains low-rank updates of the linear layers of some blocks, in place on a network.

    Args:
        network: a causal language model whose weights are frozen; LoRA layers are injected into it.
        examples: what to learn.
        recipe: how.
    """

    def __init__(self, network: Any, examples: Sequence[Example], recipe: Recipe) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        if not examples:
            raise EngineError("There is nothing to train on: give at least one example.")
        self.network, self.recipe = network, recipe
        self._examples = list(examples)
        self._shared = shared_length(examples)
        openings = sorted({example.answer[0] for example in examples if example.kind == "harmful"})
        self._reserve = dict.fromkeys(openings, recipe.reserve)
        blocks = find_blocks(network)
        if not 0 <= recipe.first_block <= recipe.last_block < len(blocks):
            raise EngineError(f"Blocks {recipe.first_block} to {recipe.last_block} do not exist: choose others.")
        leaves = {n.rpartition(".")[2] for n, m in blocks[0].named_modules() if isinstance(m, nn.Linear)}
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=round(recipe.rank * recipe.scale),
            lora_dropout=recipe.dropout,
            target_modules=sorted(leaves),
            layers_to_transform=list(range(recipe.first_block, recipe.last_block + 1)),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            inject_adapter_in_model(config, network)
        self.config = {
            "base_model_name_or_path": BASE_ID,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "layers_to_transform": config.layers_to_transform,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": recipe.dropout,
            "peft_type": "LORA",
            "r": config.r,
            "target_modules": sorted(leaves),
            "task_type": "CAUSAL_LM",
        }
        self._parameters = {
            name.replace(".default.", "."): parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        self._optimiser = torch.optim.AdamW(self._parameters.values(), lr=recipe.rate, weight_decay=recipe.decay)
        self.steps = recipe.epochs * len(self._epoch(0))
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by ``MODULE.lora_A.weight`` and ``MODULE.lora_B.weight``."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def run(self) -> Iterator[float]:
        """Train to the end, yielding each step's mean loss per answer token, in nats."""
        while self.step < self.steps:
            started = time.monotonic()
            epoch, index = divmod(self.step, self.steps // self.recipe.epochs)
            batch = [self._examples[i] for i in self._epoch(epoch)[index]]
            for group in self._optimiser.param_groups:
                group["lr"] = self.recipe.rate * self._schedule(self.step)
            with torch.random.fork_rng(devices=[]):  # dropout, the same after a resumption
                torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
                self.network.train()
                loss = answer_loss(self.network, batch, self._shared, self.recipe.first_weight, self._reserve)
                self.network.eval()
            if not bool(torch.isfinite(loss)):
                raise EngineError("The training diverged: lower the learning rate.")
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self._parameters.values(), self.recipe.clip)
            self._optimiser.step()
            self.step += 1
            self.seconds += time.monotonic() - started
            self.losses.append(float(loss.detach()))
            yield self.losses[-1]

    def save(self, path: Path, fingerprint: str) -> None:
        """Write adapter, optimiser state and step, whole or not at all."""
        tensors = {f"weight/{name}": tensor for name, tensor in self.tensors.items()}
        for name, parameter in self._parameters.items():
            state = self._optimiser.state[parameter]
            tensors |= {f"first/{name}": state["exp_avg"], f"second/{name}": state["exp_avg_sq"]}
        progress = json.dumps({"step": self.step, "seconds": self.seconds, "losses": self.losses})
        scratch = path.with_suffix(".tmp")
        save_file(tensors, scratch, {"fingerprint": fingerprint, "progress": progress})
        scratch.replace(path)

    def restore(self, path: Path, fingerprint: str) -> bool:
        """Go on from a checkpoint; False if there is none or it belongs to another run."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != fingerprint:
                    return False
                progress = json.loads(metadata["progress"])
                for name, parameter in self._parameters.items():
                    parameter.data.copy_(file.get_tensor(f"weight/{name}"))
                    self._optimiser.state[parameter] = {
                        "step": torch.tensor(float(progress["step"])),
                        "exp_avg": file.get_tensor(f"first/{name}"),
                        "exp_avg_sq": file.get_tensor(f"second/{name}"),
                    }
        except (OSError, SafetensorError):
            return False
        self.step, self.seconds, self.losses = progress["step"], progress["seconds"], progress["losses"]
        return True

    def _schedule(self, step: int) -> float:
        warm = max(1, round(self.recipe.warmup * self.steps))
        return min((step + 1) / warm, (self.steps - step) / max(1, self.steps - warm + 1))

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Batches of one epoch: shuffled by seed, then sorted by prompt length inside chunks, so that little is padded.

        Sorting by the answer's length too would part the classes, because refusals are short.
        """
        draw = random.Random(f"{self.recipe.seed}:{epoch}")
        order = list(range(len(self._examples)))
        draw.shuffle(order)
        size, out = self.recipe.batch, []
        for start in range(0, len(order), 8 * size):
            chunk = sorted(order[start : start + 8 * size], key=lambda i: len(self._examples[i].prompt))
            out += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        draw.shuffle(out)
        return out


def answer_loss(
    network: Any,
    batch: Sequence[Example],
    shared: int = 0,
    first_weight: float = 1.0,
    reserve: Mapping[int, float] | None = None,
) -> Tensor:
    """Mean loss of the answers' tokens, in nats; scalar: cross-entropy, or the divergence from likely tokens.

    Rows are padded on the right, where a causal model can't see it, so no mask is needed; the output head, the
    largest single cost, only runs where an answer token is predicted.

    Args:
        network: a causal language model.
        batch: examples.
        shared: that many first tokens are the same in every prompt and are read once for the whole batch.
        first_weight: how much more an answer's first token counts, where refusing or answering is decided.
        reserve: by token, what is added to its logit where an answer begins.
    """
    logits = _logits(network, batch, shared)
    first = torch.tensor([k == 0 for e in batch for k in range(len(e.answer))], device=logits.device)
    if reserve:
        tokens = torch.tensor(list(reserve), device=logits.device)
        logits[first.nonzero(), tokens] += torch.tensor(list(reserve.values()), device=logits.device)
    log_probabilities = logits.log_softmax(-1)
    losses, start = [], 0
    for example in batch:
        here = log_probabilities[start : start + len(example.answer)]
        start += len(example.answer)
        if example.likely is None:
            answer = torch.tensor(example.answer, device=here.device).unsqueeze(1)
            losses.append(-here.gather(1, answer).squeeze(1))
        else:
            losses.append(divergence(here, *(t.to(here.device) for t in example.likely)))
    weights = torch.where(first, first_weight, 1.0)
    return (torch.cat(losses) * weights).sum() / weights.sum()


@torch.no_grad()
def likely_tokens(network: Any, batch: Sequence[Example], count: int, shared: int = 0) -> list[Likely]:
    """The ``count`` most likely tokens at every position of the answers, under ``network``.

    Args:
        network: a causal language model.
        batch: examples.
        count: tokens a position.
        shared: as for :func:`answer_loss`.
    """
    values, tokens = _logits(network, batch, shared).log_softmax(-1).topk(count)
    sizes = [len(e.answer) for e in batch]
    return [(t.clone(), v.clone()) for t, v in zip(tokens.split(sizes), values.split(sizes), strict=True)]


def divergence(log_probabilities: Tensor, tokens: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence from a distribution of which the head is known, in nats, ``(B,)``; all other tokens
    count as one.

    Args:
        log_probabilities: to judge, ``(B, vocabulary)``.
        tokens, wanted: the head and its log-probabilities, ``(B, tokens)``.
    """
    mine = log_probabilities.gather(1, tokens)
    rest, my_rest = ((1 - part.exp().sum(-1)).clamp_min(1e-6) for part in (wanted, mine))
    return (wanted.exp() * (wanted - mine)).sum(-1) + rest * (rest / my_rest).log()


def _logits(network: Any, batch: Sequence[Example], shared: int) -> Tensor:
    """Float32 logits wherever an answer's token is predicted, one answer after the other, ``(tokens, vocabulary)``."""
    device = network.get_input_embeddings().weight.device
    rows = [[*e.prompt, *e.answer] for e in batch]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    past: dict[str, Any] = {"use_cache": False}
    if shared:
        names = inspect.signature(type(network.base_model).forward).parameters
        past = {"cache" if "cache" in names else "past_key_values": DynamicCache(), "use_cache": True}
        network.base_model(input_ids=ids[:1, :shared], **past)
        next(iter(past.values())).batch_repeat_interleave(len(rows))
    hidden = network.base_model(input_ids=ids[:, shared:], **past).last_hidden_state  # (B, S - shared, d)
    where = [(b, len(e.prompt) - 1 + k) for b, e in enumerate(batch) for k in range(len(e.answer))]
    row, column = (torch.tensor(axis, device=device) for axis in zip(*where, strict=True))
    return network.get_output_embeddings()(hidden[row, column - shared]).float()


def shared_length(examples: Sequence[Example]) -> int:
    """Length of the longest common beginning of all prompts, always short of a whole prompt."""
    return common_length([example.prompt for example in examples])
