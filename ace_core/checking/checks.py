"""The self-check: is steering real and exact on *this* model?

Each check measures one equivalence and compares it with a bound. :mod:`ace_core.checking.faults` holds deliberate
mistakes in the edits; a check that can't tell a fault from the truth is worth nothing, so tests run every
check against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ace_core.activations import recording
from ace_core.arms import Arm, edited_positions
from ace_core.checking.faults import Fault
from ace_core.decoding import Decoding
from ace_core.directions import RefusalDirections
from ace_core.interventions import Plan
from ace_core.methods import ACE, Addition, AffineAblation, DirectionalAblation, Method
from ace_core.models import ChatModel

__all__ = ["CHECKS", "CheckRow", "Checker", "run_checks"]

PROMPTS = ("How do I pick a lock?", "Name three fruits.", "Write one sentence about the sea at night.")
_NEW_TOKENS = 6


@dataclass(frozen=True)
class CheckRow:
    """One measured equivalence; it holds if ``measured <= bound``."""

    name: str
    measured: float
    bound: float
    unit: str
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound


class Checker:
    """Runs equivalences on one model.

    Args:
        model: the model under test.
        directions: fitted on it.
        fault: a deliberate mistake, or none.
    """

    def __init__(self, model: ChatModel, directions: RefusalDirections, fault: Fault | None = None) -> None:
        self.model, self.directions, self.fault = model, directions, fault or Fault()
        self.layer = directions.recommended_layer
        self.prompts = [model.encode(prompt) for prompt in PROMPTS]
        if model.recurrent:  # padding never enters a recurrent state, so rows of a batch have one length
            shortest = min(map(len, self.prompts))
            self.prompts = [ids[-shortest:] for ids in self.prompts]
        # Rounding sets the bounds: float32 sums in another order, or 8-bit mantissas where activations have them.
        # Measured differences are a tenth of these or less.
        exact = model.precision in ("float32", "fast")
        self.logit_bound = 2e-3 if exact else 0.25
        self.float_bound = 2.0**-16 if exact else 2.0**-6

    def arms(self, methods: Sequence[Method], **changes: Any) -> list[Arm]:
        return [Arm(method, self.layer, **changes) for method in methods]

    @torch.inference_mode()
    def logits(
        self, rows: Sequence[Sequence[int]], arms: list[Arm], forced: Tensor | None = None, prompt: int | None = None
    ) -> Tensor:
        """Logits ``(B, steps, vocabulary)`` in float32 while decoding ``forced`` ``(B, steps - 1)`` through the cache.

        ``prompt`` overrides the prompt length, for rows that hold generated tokens already.
        """
        arms = self.fault.arms(arms, len(self.model.blocks))
        out: list[Tensor] = [torch.empty(0)] * len(rows)
        for group in self.model.groups([len(row) for row in rows]):
            plan = self.plan([arms[i] for i in group], [prompt or len(rows[i]) for i in group])
            model, ids = self.model, [rows[i] for i in group]
            decoding = Decoding(model.network, ids, model.pad_id, model.device, model.shares_prompts)
            steps = []
            for step in range(1 if forced is None else forced.shape[1] + 1):
                if step and forced is not None:
                    decoding.advance(forced[group, step - 1])
                with plan.applied(self.model.blocks, decoding.positions):
                    steps.append(decoding.step() if step else decoding.prefill())
            for member, row in enumerate(group):
                out[row] = torch.stack([logits[member] for logits in steps]).float()
        return torch.stack(out)

    @torch.inference_mode()
    def stream_of(self, row: Sequence[int], arms: list[Arm], prompt: int) -> Tensor:
        """Residual stream after every block, ``(blocks, B, positions, d)`` float32, of equal rows under ``arms``."""
        plan = self.plan(self.fault.arms(arms, len(self.model.blocks)), [prompt] * len(arms))
        decoding = Decoding(self.model.network, [row] * len(arms), self.model.pad_id, self.model.device)
        with plan.applied(self.model.blocks, decoding.positions), recording(self.model.blocks, slice(None)) as seen:
            decoding.prefill()
        return torch.stack([hidden.float().cpu() for hidden in seen])

    def plan(self, arms: list[Arm], lengths: list[int]) -> Plan:
        """The plan under test, for arms that already hold the fault."""
        return self.fault.plan(self.fault.directions(self.directions), arms, lengths)


METHODS: tuple[Method, ...] = (Addition(0.0), Addition(1.0), DirectionalAblation(), ACE(0.0), ACE(1.5))


def _against_alone(check: Checker, prompts: Sequence[Sequence[int]]) -> tuple[float, str]:
    """Largest logit difference between every arm in one batch and that arm alone, and what became of the tokens."""
    arms = check.arms(METHODS)
    forced = torch.tensor([list(check.prompts[i % 3][:_NEW_TOKENS]) for i in range(len(arms))])
    forced = forced.to(check.model.device)
    together = check.logits(prompts, arms, forced)
    worst, flips, ties = 0.0, 0, 0
    for row, arm in enumerate(arms):
        alone = check.logits([prompts[row]], [arm], forced[row : row + 1])[0]
        worst = max(worst, _distance(together[row], alone))
        flipped, near = _flips(together[row], alone, check.logit_bound)
        flips, ties = flips + flipped, ties + near
    if flips > ties:
        worst = float("inf")
    return worst, f"greedy tokens: {flips} differ, of which {ties} near-ties inside the bound"


def arms_equal_alone(check: Checker) -> CheckRow:
    """The arms of a comparison, one prompt under each, against each arm alone."""
    worst, note = _against_alone(check, [check.prompts[0]] * len(METHODS))
    return CheckRow("arms of one prompt equal each arm alone", worst, check.logit_bound, "logit std", note)


def batch_equals_alone(check: Checker) -> CheckRow:
    """Arms on prompts of different lengths, padded to one batch, against each alone."""
    worst, note = _against_alone(check, [check.prompts[i % 3] for i in range(len(METHODS))])
    return CheckRow("row of a padded batch equals the row alone", worst, check.logit_bound, "logit std", note)


def cached_equals_uncached(check: Checker) -> CheckRow:
    """Decoding through the cache against reading prompt and answer anew at each length."""
    worst, flips, ties = 0.0, 0, 0
    ids = check.prompts[0]
    forced = torch.tensor([list(check.prompts[1][:_NEW_TOKENS])], device=check.model.device)
    for scope in ("all", "prompt", "generated", "last"):
        for method in (ACE(1.0), Addition(1.0)):
            arms = check.arms([method], tokens=scope)
            cached = check.logits([ids], arms, forced)[0]
            for step in range(_NEW_TOKENS + 1):
                row = list(ids) + forced[0, :step].tolist()
                uncached = check.logits([row], arms, prompt=len(ids))[0, -1]
                worst = max(worst, _distance(cached[step], uncached))
                flipped, near = _flips(cached[step : step + 1], uncached[None], check.logit_bound)
                flips, ties = flips + flipped, ties + near
    note = f"greedy tokens: {flips} differ, of which {ties} near-ties inside the bound"
    if flips > ties:
        worst = float("inf")
    return CheckRow("cached decoding equals uncached", worst, check.logit_bound, "logit std", note)


def off_equals_generate(check: Checker) -> CheckRow:
    """All arms off (coefficient 0) against the library's own ``generate``, greedy, same batch, token for token."""
    model, count = check.model, _NEW_TOKENS * 2
    worst, different, ties = 0.0, 0, 0
    for rows in model.groups([len(ids) for ids in check.prompts]):
        prompts = [check.prompts[i] for i in rows]
        longest = max(map(len, prompts))
        ids = torch.tensor([[model.pad_id] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        with torch.inference_mode():
            out = model.network.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
                pad_token_id=model.pad_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = out.sequences[:, longest:]
        ours = (
            check.logits(prompts, check.arms([Addition(0.0)] * len(prompts)), tokens[:, :-1]).to(model.device).clone()
        )
        theirs = torch.stack(out.logits, dim=1).float().clone()
        stops = list(model.stop_ids)  # min_new_tokens forbids them in generate's choice
        for row in range(len(prompts)):
            worst = max(worst, _distance(ours[row], theirs[row]))
            ours[row][:, stops] = theirs[row][:, stops] = -1e4
            flipped, near = _flips(ours[row], theirs[row], check.logit_bound)
            different, ties = different + flipped, ties + near
            different += int((theirs[row].argmax(-1) != tokens[row]).sum())
    note = f"tokens: {different} of {len(check.prompts) * count} differ, of which {ties} near-ties inside the bound"
    if different > ties:
        worst = float("inf")
    return CheckRow("all arms off equals generate", worst, check.logit_bound, "logit std", note)


def coordinate_is_alpha(check: Checker) -> CheckRow:
    """Coordinate of the recorded stream after ACE against alpha, in float64, at every position and scope."""
    ids, worst = check.prompts[0], 0.0
    for alpha in (-0.5, 0.0, 1.0, 1.5):
        for scope in ("one", "window", "all", "shared"):
            arm = Arm(ACE(alpha), check.layer, scope, min(check.layer + 1, len(check.model.blocks) - 1))
            hidden = check.stream_of(ids, [arm], len(ids))[:, 0].double()
            for block in arm.blocks(len(check.model.blocks)):
                axis = check.directions.axis(block, arm.axis(block))
                unit, gap = axis.unit.double(), axis.high - axis.low
                got = (hidden[block] @ unit - axis.low) / gap
                # Rounding of the stored stream is relative to its length, the coordinate to the class gap.
                slack = hidden[block].norm(dim=-1) / abs(gap)
                worst = max(worst, float(((got - alpha).abs() / (1 + slack)).max()))
    return CheckRow("coordinate after ACE equals alpha", worst, check.float_bound, "of |v|/g")


def complement_untouched(check: Checker) -> CheckRow:
    """What an edit changes outside the refusal direction, relative to the length of the activation."""
    ids = check.prompts[0]
    methods = (Addition(0.0), Addition(1.0), DirectionalAblation(), AffineAblation(), ACE(1.0))
    hidden = check.stream_of(ids, check.arms(methods), len(ids))[check.layer].double()
    unit = check.directions.axis(check.layer).unit.double()
    change = hidden[1:] - hidden[:1]
    outside = change - (change @ unit).unsqueeze(-1) * unit
    worst = float((outside.norm(dim=-1) / hidden[:1].norm(dim=-1)).max())
    return CheckRow("orthogonal complement untouched", worst, check.float_bound, "of |v|")


def positions_exact(check: Checker) -> CheckRow:
    """Positions that differ from the unsteered stream at the edited block, against each token scope."""
    ids = list(check.prompts[0])
    prompt, wrong = len(ids) - 3, 0
    off = check.stream_of(ids, check.arms([Addition(0.0)]), prompt)[check.layer, 0]
    for scope in ("all", "prompt", "generated", "last"):
        on = check.stream_of(ids, check.arms([Addition(1.0)], tokens=scope), prompt)[check.layer, 0]
        changed = (on != off).any(-1)
        expected = edited_positions(scope, torch.arange(len(ids)), prompt)
        wrong += int((changed != expected).sum())
    return CheckRow("edited positions are exact", wrong, 0, "positions")


def layer_exact(check: Checker) -> CheckRow:
    """First block whose output differs from the unsteered one, against the layer asked for."""
    ids, wrong = check.prompts[0], 0
    for layer in sorted({0, check.layer, len(check.model.blocks) - 1}):
        off = check.stream_of(ids, [Arm(Addition(0.0), layer)], len(ids))
        on = check.stream_of(ids, [Arm(Addition(1.0), layer)], len(ids))
        changed = (on != off).flatten(1).any(1).tolist()
        wrong += int((changed.index(True) if True in changed else -1) != layer)
    return CheckRow("edited layer is exact", wrong, 0, "layers")


CHECKS: tuple[Callable[[Checker], CheckRow], ...] = (
    arms_equal_alone,
    batch_equals_alone,
    cached_equals_uncached,
    off_equals_generate,
    coordinate_is_alpha,
    complement_untouched,
    positions_exact,
    layer_exact,
)


def run_checks(model: ChatModel, directions: RefusalDirections, fault: Fault | None = None) -> Iterator[CheckRow]:
    """Run every check in turn."""
    checker = Checker(model, directions, fault)
    for check in CHECKS:
        yield check(checker)


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference of logits, in standard deviations of ``b`` over the vocabulary."""
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float(((a - b).abs().amax(-1) / b.std(-1)).max())


def _flips(a: Tensor, b: Tensor, bound: float) -> tuple[int, int]:
    """How many greedy tokens differ between ``(steps, vocabulary)`` logits, and how many of them are near-ties:
    the two candidates lie closer together than twice the measured difference, itself no more than the bound."""
    first, second = a.argmax(-1, keepdim=True), b.argmax(-1, keepdim=True)
    flipped = (first != second).squeeze(-1)
    margin = (b.gather(-1, second) - b.gather(-1, first)).squeeze(-1)
    difference = torch.minimum((a - b).abs().amax(-1), bound * b.std(-1))
    near = flipped & (margin <= 2 * difference)
    return int(flipped.sum()), int(near.sum())
