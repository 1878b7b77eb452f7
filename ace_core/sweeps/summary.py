"""What a sweep found, from its plan and finished cells; works on half a sweep as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from ace_core.sweeps.findings import KL_BUDGETS, Agreement, AtEqualKL, ConditionRow, Gap, WrongWay
from ace_core.sweeps.plan import KINDS, SYSTEM_PROMPTS, Condition, Kind, Place, SweepPlan
from ace_core.sweeps.records import Record
from ace_core.sweeps.statistics import (
    Estimate,
    best_within,
    bootstrap_mean,
    cohen_kappa,
    gap_difference,
    rates,
    standardisation_gap,
    wilson,
    wrong_way_share,
)

__all__ = ["SweepSummary", "mean_map", "steered_curve", "unsteered"]

_REFERENCE = "addition"


class SweepSummary:
    """Tables of a sweep.

    Args:
        plan: what was to be run.
        records: finished cells.
    """

    def __init__(self, plan: SweepPlan, records: Iterable[Record]) -> None:
        self.plan = plan
        self._cells: dict[tuple[str, int], list[Record]] = {}
        self.count = 0
        for record in records:
            self._cells.setdefault((record["condition"], record["prompt"]), []).append(record)
            self.count += 1

    @property
    def scorer(self) -> str:
        """What refusal is told by: the judge, else phrases, else logits."""
        return next((name for name in ("judge", "phrase") if name in self.plan.scorers), "logit")

    @property
    def scaled(self) -> tuple[str, ...]:
        """Methods that have a coefficient, and so a curve."""
        return tuple(
            m for m in self.plan.methods if any(c.method == m and c.alpha is not None for c in self._conditions)
        )

    @property
    def _conditions(self) -> tuple[Condition, ...]:
        return self.plan.conditions

    def prompts(self, kind: Kind) -> list[int]:
        """Numbers of the prompts of a class."""
        return [i for i, prompt in enumerate(self.plan.prompts) if prompt.kind == kind]

    def values(self, condition: str, kind: Kind, read: Callable[[Record], float | None]) -> np.ndarray:
        """``(prompts,)``, each the mean over its answers of what ``read`` says; NaN where nothing is known."""
        out = []
        for prompt in self.prompts(kind):
            found = [
                value for record in self._cells.get((condition, prompt), ()) if (value := read(record)) is not None
            ]
            out.append(math.fsum(found) / len(found) if found else math.nan)
        return np.array(out, np.float64)

    def refusals(self, record: Record) -> float | None:
        """Whether a cell refused, 0 to 1, by :attr:`scorer`; None if it was not scored."""
        if self.scorer == "logit":
            score = record.get("refusal_score")
            return None if score is None else 1 / (1 + math.exp(-min(max(score, -700.0), 700.0)))
        label = record.get("judge" if self.scorer == "judge" else "verdict")
        return None if label is None else float(label == "refused" and record.get("verdict") != "incoherent")

    def _answered(self, record: Record) -> float | None:
        label = record.get("judge" if self.scorer == "judge" else "verdict")
        return None if label is None else float(label == "answered" and record.get("verdict") != "incoherent")

    def curve(self, method: str, place: Place, kind: Kind) -> np.ndarray:
        """Outcomes ``(coefficients, prompts)`` of a method that has a coefficient."""
        keys = [Condition(method, alpha, place).key for alpha in self.plan.alphas]
        return np.stack([self.values(key, kind, self.refusals) for key in keys])

    def share(self, outcomes: np.ndarray) -> Estimate:
        """Share with its interval: Wilson's where outcomes are yes or no, else a bootstrap over prompts."""
        known = outcomes[np.isfinite(outcomes)]
        if bool(np.isin(known, (0.0, 1.0)).all()):
            return wilson(float(known.sum()), len(known))
        return bootstrap_mean(known, self.plan.seed)

    @cached_property
    def rows(self) -> tuple[ConditionRow, ...]:
        """Every condition on every class, what has no cells yet left out."""
        out = [self._row(condition, kind) for condition in self._conditions for kind in KINDS]
        return tuple(row for row in out if row.cells)

    def _row(self, condition: Condition, kind: Kind) -> ConditionRow:
        key = condition.key
        records = [r for prompt in self.prompts(kind) for r in self._cells.get((key, prompt), ())]

        def mean(read: Callable[[Record], float | None]) -> float | None:
            found = self.values(key, kind, read)
            found = found[np.isfinite(found)]
            return float(found.mean()) if len(found) else None

        def number(name: str) -> Callable[[Record], float | None]:
            return lambda record: record.get(name)

        perplexities = [r["perplexity"] for r in records if r.get("perplexity") is not None]
        judged = any("verdict" in r for r in records)
        return ConditionRow(
            condition=key,
            method=condition.method,
            alpha=condition.alpha,
            place=None if condition.place is None else condition.place.key,
            kind=kind,
            cells=len(records),
            unscored=sum(self.refusals(record) is None for record in records),
            refused=self.share(self.values(key, kind, self.refusals)),
            answered=mean(self._answered),
            incoherent=mean(lambda r: float(r["verdict"] == "incoherent") if "verdict" in r else None)
            if judged
            else None,
            refusal_score=mean(number("refusal_score")),
            kl=mean(number("kl")),
            first_kl=mean(number("first_kl")),
            perplexity=float(np.median(perplexities)) if perplexities else None,
            length=mean(number("length")),
        )

    @cached_property
    def gaps(self) -> tuple[Gap, ...]:
        """Standardisation gaps; NaN until two coefficients are known of both classes."""
        alphas, seed = np.array(self.plan.alphas), self.plan.seed
        out = []
        for place in self.plan.places:
            curves = {m: tuple(self.curve(m, place, kind) for kind in KINDS) for m in self.scaled}
            for method, (harmful, harmless) in curves.items():
                beyond = None
                if method != _REFERENCE and _REFERENCE in curves:
                    other = curves[_REFERENCE]
                    beyond = gap_difference(alphas, (harmful, harmless), (other[0], other[1]), seed)
                gap = standardisation_gap(alphas, harmful, harmless, seed)
                broken = [r.incoherent for r in self.rows if (r.method, r.place) == (method, place.key)]
                known = [share for share in broken if share is not None]
                out.append(Gap(method, place.key, gap, beyond, float(np.mean(known)) if known else None))
        return tuple(out)

    @cached_property
    def wrong_way(self) -> tuple[WrongWay, ...]:
        """Prompts steered the wrong way, by refusal score where there is one."""
        alphas = np.array(self.plan.alphas)
        read: Callable[[Record], float | None] = (
            (lambda record: record.get("refusal_score")) if "logit" in self.plan.scorers else self.refusals
        )
        out = []
        for place in self.plan.places:
            for method in self.scaled:
                for kind in KINDS:
                    keys = [Condition(method, alpha, place).key for alpha in self.plan.alphas]
                    scores = np.stack([self.values(key, kind, read) for key in keys])
                    out.append(WrongWay(method, place.key, kind, wrong_way_share(alphas, scores)))
        return tuple(out)

    @cached_property
    def equal_kl(self) -> tuple[AtEqualKL, ...]:
        """Methods at equal side effects; system prompts have no place and are not compared."""
        by_key = {(row.condition, row.kind): row for row in self.rows}
        out = []
        for place in self.plan.places:
            for method in self.plan.methods:
                costs, bypass, induce = [], [], []
                for condition in self._conditions:
                    if condition.method != method or condition.place != place:
                        continue
                    harmful, harmless = (by_key.get((condition.key, kind)) for kind in KINDS)
                    if harmful is None or harmless is None:
                        continue
                    cost = harmless.kl if harmless.kl is not None else harmless.first_kl
                    done = harmful.answered if harmful.answered is not None else 1 - harmful.refused.value
                    costs.append(math.nan if cost is None else cost)
                    bypass.append(done)
                    induce.append(harmless.refused.value)
                best = [best_within(np.array(costs), np.array(effect), KL_BUDGETS) for effect in (bypass, induce)]
                out += [
                    AtEqualKL(method, place.key, budget, float(a), float(b))
                    for budget, a, b in zip(KL_BUDGETS, *best, strict=True)
                ]
        return tuple(out)

    @cached_property
    def agreement(self) -> tuple[Agreement, ...]:
        """Agreement of every two scorers on whether an answer refuses; logits do where the refusal score is above 0."""
        labels: dict[str, Callable[[Record], str | None]] = {
            "phrase": lambda r: r.get("verdict") and ("refused" if r["verdict"] == "refused" else "not"),
            "judge": lambda r: r.get("judge") and ("refused" if r["judge"] == "refused" else "not"),
            "logit": lambda r: (
                None if r.get("refusal_score") is None else "refused" if r["refusal_score"] > 0 else "not"
            ),
        }
        names = [name for name in labels if name in self.plan.scorers]
        records = [record for found in self._cells.values() for record in found]
        out = []
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                kappa, count = cohen_kappa([labels[first](r) for r in records], [labels[second](r) for r in records])
                out.append(Agreement(first, second, kappa, count))
        return tuple(out)

    @property
    def headline(self) -> str:
        """Whether the paper's claim holds here, in words."""
        gaps = {(gap.method, gap.place): gap for gap in self.gaps}
        pairs = [
            (gaps["ace", place.key], gaps[_REFERENCE, place.key])
            for place in self.plan.places
            if ("ace", place.key) in gaps and (_REFERENCE, place.key) in gaps
        ]
        pairs = [
            (ace, other) for ace, other in pairs if math.isfinite(ace.gap.value) and math.isfinite(other.gap.value)
        ]
        if not pairs:
            return (
                "ACE and activation addition are not both measured yet, so nothing can be said about the paper's claim."
            )
        if len(pairs) > 1:
            below = sum(ace.gap.value < other.gap.value for ace, other in pairs)
            return (
                f"ACE's standardisation gap is below activation addition's at {below} of {len(pairs)} places "
                f"(told by {self.scorer})."
            )
        ace, other = pairs[0]
        assert ace.beyond is not None
        numbers = (
            f"ACE's standardisation gap at block {ace.place} is {_interval(ace.gap)}, activation addition's "
            f"{_interval(other.gap)}; the difference is {_interval(ace.beyond)} on the same prompts"
        )
        if ace.beyond.low > 0:
            claim = "ACE controls both classes more alike, as the paper claims"
        elif ace.beyond.high < 0:
            claim = "activation addition controls both classes more alike, against the paper's claim"
        else:
            claim = "the interval holds 0, so these prompts do not decide the paper's claim"
        share = ""
        if ace.incoherent is not None and other.incoherent is not None:
            share = f" {ace.incoherent:.0%} of ACE's answers and {other.incoherent:.0%} of addition's are incoherent."
        return f"{numbers}: {claim}.{share}"

    def to_json(self) -> dict[str, Any]:
        """All tables, NaN as None."""
        tables = {
            name: [asdict(row) for row in getattr(self, name)]
            for name in ("rows", "gaps", "wrong_way", "equal_kl", "agreement")
        }
        return _plain({"headline": self.headline, "scorer": self.scorer, "cells": self.count, **tables})


def steered_curve(summary: SweepSummary, method: str, place: Place, kind: Kind) -> list[Estimate]:
    """Refusal rates with intervals, one a coefficient."""
    return [summary.share(row) for row in summary.curve(method, place, kind)]


def mean_map(summary: SweepSummary, method: str, kind: Kind) -> np.ndarray:
    """Refusal rates ``(places, coefficients)``; NaN where nothing is known yet."""
    return np.stack([rates(summary.curve(method, place, kind)) for place in summary.plan.places])


def unsteered(summary: SweepSummary, kind: Kind) -> dict[str, Estimate]:
    """Refusal rates without steering: the baseline's and those under system prompts, as far as they were run."""
    names: Sequence[str] = ("baseline", *SYSTEM_PROMPTS)
    found = {row.method: row.refused for row in summary.rows if row.kind == kind and row.method in names}
    return {name: found[name] for name in names if name in found}


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
