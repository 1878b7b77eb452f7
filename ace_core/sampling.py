"""Choosing the next token of each row, independently of the other rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_core.errors import EngineError

__all__ = ["MAX_NEW_TOKENS", "Sampler", "Sampling", "exponential_noise", "filtered"]

MAX_NEW_TOKENS = 512
"""Cap on the length of any answer."""

_FEW = 256
_LEAST = 1e-8
_COLDEST = 1e-6
"""Lower temperatures count as this one, which is greedy but for near-ties: float32 logits over less are not numbers."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; ``top_p`` 1 and ``top_k`` 0 mean no cut.

    Every row draws from random numbers that depend on ``seed`` alone, so a row's text does not depend on which other
    rows run, and differences between arms are not differences of luck.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature) or not 0 <= self.temperature <= 5:
            raise EngineError("Temperature must be a number from 0 (greedy) to 5.")
        if not math.isfinite(self.top_p) or not 0 < self.top_p <= 1:
            raise EngineError("Top-p must be above 0 and at most 1.")
        if self.top_k < 0:
            raise EngineError("Top-k must be 0 (off) or a positive number of tokens.")
        if not 0 <= self.seed < 2**63:
            raise EngineError("The seed must be a whole number from 0 to 2^63 - 1.")
        if not 1 <= self.max_new_tokens <= MAX_NEW_TOKENS:
            raise EngineError(f"The answer length must be from 1 to {MAX_NEW_TOKENS} tokens.")


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities ``(vocabulary,)`` after temperature, then top-k, then top-p (smallest set reaching p)."""
    probabilities = _probabilities(logits.unsqueeze(0), [sampling])[0]
    if sampling.top_p < 1:
        ((kept, order),) = _nuclei(probabilities.unsqueeze(0), [sampling.top_p])
        probabilities = torch.zeros_like(probabilities).index_copy_(0, order, kept)
    return probabilities / probabilities.sum()


def _probabilities(logits: Tensor, rows: Sequence[Sampling]) -> Tensor:
    """After temperature and top-k, ``(B, vocabulary)``."""
    temperatures = torch.tensor([max(row.temperature, _COLDEST) for row in rows], device=logits.device)
    scaled = logits.float() / temperatures.unsqueeze(1)
    for row, sampling in zip(scaled, rows, strict=True):
        if 0 < sampling.top_k < row.numel():
            row.masked_fill_(row < torch.topk(row, sampling.top_k).values[-1], -math.inf)
    return torch.softmax(scaled, dim=-1)


def _nuclei(probabilities: Tensor, top_p: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Of every row the smallest set that reaches its ``top_p``, most probable first and of equal ones the first:
    probabilities and tokens."""
    out = []
    # Sorting a vocabulary takes longer than a small model takes for the row, and the set is nearly always small.
    few, places = probabilities.topk(min(_FEW, probabilities.shape[-1]))
    # a goal that float32 rounds to 0 is reached by the first token as well, not by none
    goals = torch.tensor(top_p, device=probabilities.device).clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    counts = (few.cumsum(-1) - few < goals).sum(-1).tolist()
    for row, (ordered, order, count) in enumerate(zip(few, places, counts, strict=True)):
        if count == len(ordered) or not bool(ordered[count - 1] > ordered[count]):
            ordered, order = probabilities[row].sort(descending=True, stable=True)
            count = int((ordered.cumsum(-1) - ordered < goals[row]).sum())
        out.append((ordered[:count], order[:count]))
    return out


def exponential_noise(seed: int, step: int, vocabulary: int) -> Tensor:
    """Exponential noise ``(vocabulary,)`` of a step, float32, the same on every device."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))
    # a draw of 0 stands for all that round to it
    return torch.from_numpy(generator.standard_exponential(vocabulary, dtype=np.float32)).clamp_(min=_LEAST)


class Sampler:
    """Samplers of a batch, one setting and one stream of random numbers a row."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._rows = tuple(rows)
        self._drawn = [0] * len(rows)

    def __call__(self, logits: Tensor) -> list[int]:
        """Next token of every row from logits ``(B, vocabulary)``.

        Raises:
            EngineError: if some row's logits are not numbers.
        """
        tokens = self.draw(logits)
        if any(token is None for token in tokens):
            raise EngineError("The model produced NaN: use a smaller coefficient, or load it in float32.")
        return [token for token in tokens if token is not None]

    def draw(self, logits: Tensor) -> list[int | None]:
        """As calling it, but a row whose logits are not numbers gets None and the others their tokens."""
        tokens: list[int | None] = list(logits.argmax(dim=-1).tolist())
        # argmax returns the position of a NaN if there is one
        best = logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)).squeeze(1)
        numbers = torch.isfinite(best).tolist()
        chance = [row for row, good in enumerate(numbers) if good and self._rows[row].temperature > 0]
        for row, token in zip(chance, self._chosen(logits[chance].cpu(), chance) if chance else [], strict=True):
            tokens[row] = token
            self._drawn[row] += 1
        return [token if good else None for token, good in zip(tokens, numbers, strict=True)]

    def _chosen(self, logits: Tensor, rows: Sequence[int]) -> list[int]:
        """Tokens drawn for some rows, as ``torch.multinomial`` draws them, but with like noise for all rows of a
        seed, so that arms differ by more than luck."""
        settings = [self._rows[row] for row in rows]
        probabilities = _probabilities(logits, settings)
        dice = [(sampling.seed, self._drawn[row]) for row, sampling in zip(rows, settings, strict=True)]
        noise = {die: exponential_noise(*die, probabilities.shape[-1]) for die in set(dice)}
        cut = [k for k, sampling in enumerate(settings) if sampling.top_p < 1]
        nuclei = (
            dict(zip(cut, _nuclei(probabilities[cut], [settings[k].top_p for k in cut]), strict=True)) if cut else {}
        )
        chosen = []
        for k, die in enumerate(dice):
            if k in nuclei:
                kept, order = nuclei[k]
                chosen.append(int(order[(kept / noise[die][order]).argmax()]))
            else:
                chosen.append(int((probabilities[k] / noise[die]).argmax()))
        return chosen

    def take(self, rows: Sequence[int]) -> Sampler:
        """The samplers of some rows, in that order; their random numbers go on where they stand."""
        return self._of([self], [(0, row) for row in rows])

    def join(self, others: Sequence[Sampler]) -> Sampler:
        """The samplers of this batch and then those of the others."""
        samplers = [self, *others]
        return self._of(samplers, [(i, row) for i, s in enumerate(samplers) for row in range(len(s._rows))])

    @classmethod
    def _of(cls, samplers: Sequence[Sampler], places: Sequence[tuple[int, int]]) -> Sampler:
        out = cls(())
        out._rows = tuple(samplers[i]._rows[row] for i, row in places)
        out._drawn = [samplers[i]._drawn[row] for i, row in places]
        return out
