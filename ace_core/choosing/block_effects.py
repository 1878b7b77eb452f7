"""Measuring what steering each block does to validation prompts, many edits to a forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.activations import Stopped, batches, recording
from ace_core.arms import Arm
from ace_core.choosing.effects import (
    STEERING_PAIRS,
    BlockEffects,
    Effect,
    Separability,
    SteeringPair,
    cosmic_blocks,
    kl_divergence,
)
from ace_core.choosing.refusal_score import refusal_score
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections, separation
from ace_core.interventions import Plan
from ace_core.methods import Baseline, Method
from ace_core.models import ChatModel
from ace_core.sweeps.ability import ability
from ace_core.sweeps.logit_map import first_logits

__all__ = ["measure_blocks", "shared_batches"]

Progress = Callable[[str, float | None], None]

_STEERING = "Steering every block"


@dataclass(frozen=True)
class _Row:
    """One row of a batch: prompt number ``prompt`` of class ``kind`` under ``method`` at ``block``."""

    kind: str
    prompt: int
    method: Method
    block: int


@dataclass(frozen=True)
class _Cell:
    """Means over the prompts of one class under one edit: refusal score, KL and ``(d,)`` float64 activation."""

    score: float
    kl: float
    hidden: Tensor


class _Sums:
    """Running sums of one cell, in float64."""

    def __init__(self, width: int) -> None:
        self.count, self.score, self.kl = 0, 0.0, 0.0
        self.hidden = torch.zeros(width, dtype=torch.float64)

    def add(self, score: float, kl: float, hidden: Tensor) -> None:
        self.count, self.score, self.kl = self.count + 1, self.score + score, self.kl + kl
        self.hidden += hidden

    def mean(self) -> _Cell:
        return _Cell(self.score / self.count, self.kl / self.count, self.hidden / self.count)


def shared_batches(model: ChatModel, rows: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Row indices in batches of at most ``size``, one prompt a batch where the model can read a prompt once for all.

    Rows of one prompt keep their order: sorted by edited block, they share everything below a batch's first one.

    Args:
        model: a loaded model.
        rows: token ids of every row's prompt.
        size: rows a batch.
    """
    if not model.shares_prompts:
        return batches([len(row) for row in rows], model.recurrent, size)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row), []).append(i)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def measure_blocks(
    model: ChatModel,
    directions: RefusalDirections,
    harmful: Sequence[str],
    harmless: Sequence[str],
    refusal_ids: Sequence[int],
    methods: Sequence[str],
    blocks: Sequence[int],
    *,
    batch_size: int = 16,
    progress: Progress = lambda message, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> BlockEffects:
    """Read every prompt without steering and under both edits of every method at every block.

    Each row of a batch is one prompt under one edit at one block, so methods share forward passes, and an edit that two
    methods share is run once. Where the model allows it, what lies below the edited block is computed once a prompt and
    the beginning that prompts share once an edit, see :mod:`ace_core.sweeps.reuse`. Only running sums are kept, and the
    plain logits of harmless prompts.

    Args:
        model: a loaded model.
        directions: fitted on it.
        harmful, harmless: prompts, at least one each.
        refusal_ids: refusal tokens; without any all refusal scores are NaN.
        methods: keys of :data:`ace_core.choosing.effects.STEERING_PAIRS`.
        blocks: which blocks to steer.
        batch_size: rows a forward pass.
        progress: called with a sentence and a fraction.
        cancelled: polled between batches.

    Raises:
        EngineError: for an unusable prompt. Stopped: when ``cancelled`` turns true.
    """
    runner = _Runner(model, directions, {"harmful": harmful, "harmless": harmless}, batch_size, progress, cancelled)
    runner.refusal_ids = tuple(refusal_ids)
    base, separability = runner.unsteered()
    pairs = {name: STEERING_PAIRS[name] for name in methods}
    cells = runner.steered(blocks, list(pairs.values()))

    def effect(block: int, pair: SteeringPair) -> Effect:
        bypass, induce = cells["harmful", pair.bypass, block], cells["harmless", pair.induce, block]
        cosines = (
            torch.cosine_similarity(bypass.hidden, base["harmless"].hidden, dim=0),
            torch.cosine_similarity(induce.hidden, base["harmful"].hidden, dim=0),
        )
        kl = cells["harmless", pair.bypass, block].kl
        return Effect(bypass.score, induce.score, kl, float(cosines[0] + cosines[1]))

    effects = {block: {name: effect(block, pair) for name, pair in pairs.items()} for block in blocks}
    scores = base["harmful"].score, base["harmless"].score
    return BlockEffects(*scores, {block: separability[block] for block in blocks}, effects)


class _Runner:
    """Runs prompts through the model in batches and sums up what their last tokens say."""

    def __init__(
        self,
        model: ChatModel,
        directions: RefusalDirections,
        prompts: Mapping[str, Sequence[str]],
        batch_size: int,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self.model, self.directions = model, directions
        self.batch_size, self.progress, self.cancelled = batch_size, progress, cancelled
        self.ids = {kind: [model.encode(text) for text in texts] for kind, texts in prompts.items()}
        self.refusal_ids: tuple[int, ...] = ()
        self.cosmic = cosmic_blocks(directions)
        self.plain = [torch.empty(0)] * len(self.ids["harmless"])

    @torch.inference_mode()
    def passes(
        self, rows: Sequence[_Row], blocks: Sequence[int], message: str, share: bool
    ) -> Iterator[tuple[list[_Row], Tensor, Tensor]]:
        """Batches of rows with float32 logits ``(B, vocabulary)`` and outputs ``(blocks, B, d)`` at the last token."""
        model, done = self.model, 0
        ids = [self.ids[row.kind][row.prompt] for row in rows]
        recorded = [model.blocks[block] for block in blocks]
        share = share and model.shares_prompts
        alone = batches([len(row) for row in ids], model.recurrent, self.batch_size)
        for indices in shared_batches(model, ids, self.batch_size) if share else alone:
            if self.cancelled():
                raise Stopped("Measuring the blocks was stopped.")
            arms = [Arm(rows[i].method, rows[i].block) for i in indices]
            plan = Plan(self.directions, arms, [len(ids[i]) for i in indices], read=False)
            decoding = Decoding(model.network, [ids[i] for i in indices], model.pad_id, model.device, share)
            with plan.applied(model.blocks, decoding.positions), recording(recorded) as seen:
                logits = decoding.prefill().float().cpu()
            # below the first edited block one row stands for all
            hidden = torch.stack([h.float().cpu().expand(len(indices), -1) for h in seen])
            yield [rows[i] for i in indices], logits, hidden
            done += len(indices)
            self.progress(f"{message}, {done} of {len(rows)} rows", done / len(rows))

    def unsteered(self) -> tuple[dict[str, _Cell], list[Separability]]:
        """Means a class, and how every block separates the classes."""
        directions, every = self.directions, range(self.directions.blocks)
        axes = [directions.axis(block) for block in every]
        unit = torch.stack([axis.unit for axis in axes])
        low, high = (torch.tensor([getattr(axis, end) for axis in axes]).unsqueeze(1) for end in ("low", "high"))
        coordinates = {kind: torch.empty(len(every), len(ids)) for kind, ids in self.ids.items()}
        agreement, length = torch.zeros(2, len(every), dtype=torch.float64)
        sums = {kind: _Sums(directions.width) for kind in self.ids}
        rows = [_Row(kind, i, Baseline(), 0) for kind, ids in self.ids.items() for i in range(len(ids))]
        for batch, logits, hidden in self.passes(rows, every, "Reading prompts without steering", False):
            scores = refusal_score(logits, self.refusal_ids)
            read = (torch.einsum("lbd,ld->lb", hidden, unit) - low) / (high - low)
            difference = hidden - directions.mean_harmless.unsqueeze(1)
            cosines = torch.cosine_similarity(difference, unit.unsqueeze(1), dim=-1).double()
            length += hidden.double().norm(dim=-1).sum(1) / len(rows)
            for k, row in enumerate(batch):
                coordinates[row.kind][:, row.prompt] = read[:, k]
                if row.kind == "harmful":
                    agreement += cosines[:, k] / len(self.ids["harmful"])
                else:
                    self.plain[row.prompt] = logits[k].clone()
                sums[row.kind].add(float(scores[k]), math.nan, hidden[list(self.cosmic), k].double().mean(0))
        apart = directions.separation
        if min(directions.heldout_harmless.shape[1], directions.heldout_harmful.shape[1]) < 2:
            apart = [separation(coordinates["harmless"][b].numpy(), coordinates["harmful"][b].numpy()) for b in every]
        ratio = (directions.gap / length).tolist()
        found = [Separability(a.auroc, a.d_prime, float(agreement[b]), ratio[b]) for b, a in enumerate(apart)]
        return {kind: cell.mean() for kind, cell in sums.items()}, found

    def reused(self, rows: Sequence[_Row]) -> Iterator[tuple[list[_Row], Tensor, Tensor]]:
        """The same as :meth:`passes` at COSMIC's blocks, with nothing computed twice."""
        every = [(kind, k) for kind, ids in self.ids.items() for k in range(len(ids))]
        places = {key: i for i, key in enumerate(every)}
        arms = list(dict.fromkeys(Arm(row.method, row.block) for row in rows))
        numbers = {arm: i for i, arm in enumerate(arms)}
        cells = {(places[row.kind, row.prompt], numbers[Arm(row.method, row.block)]): row for row in rows}
        for found in first_logits(
            self.model,
            self.directions,
            [tuple(self.ids[kind][k]) for kind, k in every],
            arms,
            cells=list(cells),
            recorded=self.cosmic,
            batch_rows=self.batch_size,
            progress=lambda done, total: self.progress(f"{_STEERING}, {done} of {total} rows", done / total),
            should_stop=self.cancelled,
        ):
            yield [cells[cell] for cell in zip(found.prompts, found.arms, strict=True)], found.logits, found.hidden
        if self.cancelled():
            raise Stopped("Measuring the blocks was stopped.")

    def steered(self, blocks: Sequence[int], pairs: Sequence[SteeringPair]) -> dict[tuple[str, Method, int], _Cell]:
        """Means by class, method and block."""
        # a dictionary drops repeats and, unlike a set, keeps the order
        edits = dict.fromkeys(("harmful", pair.bypass) for pair in pairs)
        edits |= dict.fromkeys(("harmless", edit) for pair in pairs for edit in (pair.bypass, pair.induce))
        rows = [
            _Row(kind, i, edit, block) for block in blocks for kind, edit in edits for i in range(len(self.ids[kind]))
        ]
        sums: dict[tuple[str, Method, int], _Sums] = {}
        sparing = ability(self.model) is not None
        passes = self.reused(rows) if sparing else self.passes(rows, self.cosmic, _STEERING, True)
        for batch, logits, hidden in passes:
            scores = refusal_score(logits, self.refusal_ids)
            means = hidden.double().mean(0)
            for k, row in enumerate(batch):
                harmless = row.kind == "harmless"
                kl = float(kl_divergence(self.plain[row.prompt], logits[k])) if harmless else math.nan
                cell = sums.setdefault((row.kind, row.method, row.block), _Sums(self.directions.width))
                cell.add(float(scores[k]), kl, means[k])
        return {key: cell.mean() for key, cell in sums.items()}
