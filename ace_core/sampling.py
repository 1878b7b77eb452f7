"""Choosing the next token of each row, independently of the other rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.errors import EngineError

__all__ = ["MAX_NEW_TOKENS", "Sampler", "Sampling", "filtered"]

MAX_NEW_TOKENS = 512
"""Cap on the length of any answer."""

_FEW = 256


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
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.numel():
        kth = torch.topk(scaled, sampling.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < kth, -math.inf)
    probabilities = torch.softmax(scaled, dim=-1)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    return probabilities / probabilities.sum()


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """``probabilities`` with all but the smallest set that reaches ``top_p`` set to 0; of equal ones the first stay."""
    # Sorting a vocabulary takes longer than a small model takes for the row, and the set is nearly always small.
    if probabilities.numel() > _FEW:
        ordered, order = probabilities.topk(_FEW)
        kept = int((ordered.cumsum(-1) - ordered < top_p).sum())
        if kept < _FEW and bool(ordered[kept - 1] > ordered[kept]):
            return torch.zeros_like(probabilities).index_copy_(0, order[:kept], ordered[:kept])
    ordered, order = probabilities.sort(descending=True, stable=True)
    beyond = ordered.cumsum(-1) - ordered >= top_p
    return probabilities.index_fill(0, order[beyond], 0.0)


class _Luck:
    """The random numbers of one seed, step by step; rows that share a seed share the work of drawing them."""

    def __init__(self, seed: int) -> None:
        self._seed, self._generator = seed, torch.Generator().manual_seed(seed)
        self._index, self._noise = -1, torch.empty(0)

    def noise(self, index: int, vocabulary: int) -> Tensor:
        """Exponential noise ``(vocabulary,)`` of a step; cheap while steps come in order, each as often as wanted."""
        if index < self._index:
            self._generator.manual_seed(self._seed)
            self._index = -1
        while self._index < index:
            self._noise = torch.empty(vocabulary).exponential_(1, generator=self._generator)
            self._index += 1
        return self._noise


class Sampler:
    """Samplers of a batch, one setting and one stream of random numbers a row."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._rows = tuple(rows)
        lucks = {row.seed: _Luck(row.seed) for row in rows if row.temperature > 0}
        self._lucks = [lucks[row.seed] if row.temperature > 0 else None for row in rows]
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
        for row, bad in enumerate((~torch.isfinite(best)).tolist()):
            sampling = self._rows[row]
            if bad:
                tokens[row] = None
            elif (luck := self._lucks[row]) is not None:
                probabilities = filtered(logits[row].cpu(), sampling)
                # what torch.multinomial does; like noise for all rows of a seed, so that arms differ by more than luck
                tokens[row] = int((probabilities / luck.noise(self._drawn[row], len(probabilities))).argmax())
                self._drawn[row] += 1
        return tokens

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
        out._lucks = [samplers[i]._lucks[row] for i, row in places]
        out._drawn = [samplers[i]._drawn[row] for i, row in places]
        return out
