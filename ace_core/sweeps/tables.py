"""Tables of a sweep, numbers rounded for reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ace_core.sweeps.findings import ConditionRow, title_of
from ace_core.sweeps.summary import SweepSummary

__all__ = ["Table", "sweep_tables"]


@dataclass(frozen=True)
class Table:
    """A table of text with a title and what it shows."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sweep_tables(summary: SweepSummary) -> list[Table]:
    """Tables of a sweep, numbers rounded for reading."""
    out = [
        Table(
            "Standardisation gaps",
            "95 % bootstrap intervals over prompts; the difference is taken on the same resampled prompts.",
            ("method", "block", "gap", "from", "to", "addition's minus this", "from", "to", "incoherent"),
            tuple(
                (
                    title_of(g.method),
                    g.place,
                    *_three(g.gap),
                    *(_three(g.beyond) if g.beyond is not None else ("", "", "")),
                    _share(g.incoherent),
                )
                for g in summary.gaps
            ),
        ),
        Table(
            "All conditions",
            "Refused with 95 % intervals (Wilson, or a bootstrap over prompts where several answers were drawn). KL is "
            "a token's on harmless prompts, nats; perplexity is the answers' median under the unsteered model.",
            ("condition", "α", "block", "prompts", "cells", "unscored", "refused", "from", "to", "answered",
             "incoherent", "refusal score", "KL", "first KL", "perplexity", "tokens"),
            tuple(_condition(row) for row in summary.rows),
        ),
        Table(
            "At equal side effects",
            "The most each method does for at most so much KL on harmless prompts: harmful prompts answered, harmless "
            "prompts refused.",
            ("method", "block", "KL at most", "harmful answered", "harmless refused"),
            tuple(
                (title_of(r.method), r.place, f"{r.budget:g}", _share(r.bypass), _share(r.induce))
                for r in summary.equal_kl
            ),
        ),
        Table(
            "Prompts steered the wrong way",
            "Share of prompts whose refusal falls as the coefficient rises (arXiv 2407.12404), Wilson's intervals.",
            ("method", "block", "prompts", "share", "from", "to"),
            tuple((title_of(w.method), w.place, w.kind, *_three(w.share)) for w in summary.wrong_way),
        ),
        Table(
            "Agreement of scorers",
            "Cohen's κ on whether a cell refuses: 1 is full agreement, 0 what chance gives.",
            ("scorers", "κ", "cells"),
            tuple((f"{a.first} and {a.second}", _two(a.kappa), str(a.cells)) for a in summary.agreement),
        ),
    ]  # fmt: skip
    return [table for table in out if table.rows]


def _condition(row: ConditionRow) -> tuple[str, ...]:
    return (
        title_of(row.method),
        "" if row.alpha is None else f"{row.alpha:g}",
        row.place or "",
        row.kind,
        str(row.cells),
        str(row.unscored),
        *_three(row.refused),
        _share(row.answered),
        _share(row.incoherent),
        _two(row.refusal_score),
        _two(row.kl),
        _two(row.first_kl),
        _two(row.perplexity),
        _two(row.length),
    )


def _three(estimate: Any) -> tuple[str, str, str]:
    return _two(estimate.value), _two(estimate.low), _two(estimate.high)


def _two(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.0%}"
