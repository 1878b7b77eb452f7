"""What the unsteered model gives, computed once a sweep: what its cells are measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ace_core.choosing.refusal_score import find_refusal_tokens
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.models import ChatModel
from ace_core.prompts import evenly, load_builtin
from ace_core.sampling import Sampling
from ace_core.sweeps.answers import CellAnswer, answers
from ace_core.sweeps.logit_map import first_logits
from ace_core.sweeps.plan import Condition, SweepPlan

__all__ = ["Unsteered", "encoded", "refusal_tokens"]

_TOKEN_PROMPTS = 24


@dataclass(frozen=True)
class Unsteered:
    """Readings of the unsteered model, by the prompt's number in the plan; empty where no scorer needs them.

    Args:
        logits: float32 ``(vocabulary,)`` at the last prompt position.
        answers: to harmless prompts, along which KL is measured: greedy, whatever the plan's sampling.
    """

    logits: dict[int, Tensor]
    answers: dict[int, CellAnswer]

    @classmethod
    def of(
        cls,
        model: ChatModel,
        directions: RefusalDirections,
        plan: SweepPlan,
        prompts: Sequence[tuple[int, ...]],
        batch_rows: int,
        should_stop: Callable[[], bool],
    ) -> Unsteered:
        """Read the plan's prompts, given as token ids; some are missing once ``should_stop`` is true."""
        arm = Condition("baseline").arm
        logits: dict[int, Tensor] = {}
        if "logit" in plan.scorers:
            for chunk in first_logits(
                model, directions, prompts, [arm], batch_rows=batch_rows, should_stop=should_stop
            ):
                logits.update(zip(chunk.prompts, chunk.logits, strict=True))
        if "kl" not in plan.scorers:
            return cls(logits, {})
        harmless = [i for i, prompt in enumerate(plan.prompts) if prompt.kind == "harmless"]
        found = answers(
            model, directions, [prompts[i] for i in harmless], [arm], Sampling(max_new_tokens=plan.tokens),
            batch_rows=batch_rows, should_stop=should_stop,
        )  # fmt: skip
        return cls(logits, {harmless[answer.prompt]: answer for answer in found})


def refusal_tokens(
    model: ChatModel, plan: SweepPlan, batch_rows: int, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Tokens that open refusals, as a manifest holds them.

    Raises:
        Stopped: once ``should_stop`` is true.
    """
    if "logit" not in plan.scorers:
        return {"ids": [], "note": "No refusal scores were asked for."}
    if plan.refusal_ids is not None:
        return {"ids": list(plan.refusal_ids), "note": "Refusal tokens were given."}
    sets = [
        evenly([p.text for p in load_builtin(kind, "validation")], _TOKEN_PROMPTS) for kind in ("harmful", "harmless")
    ]
    found = find_refusal_tokens(model, *sets, max_new_tokens=16, batch_size=batch_rows, cancelled=should_stop)
    return {"ids": list(found.ids), "texts": list(found.texts), "note": found.note}


def encoded(model: ChatModel, prompt: str, system: str | None) -> tuple[int, ...]:
    """Token ids of a prompt; a template that takes no system turn gets the system prompt before the request."""
    try:
        return model.encode(prompt, system)
    except EngineError:
        raise
    except Exception:
        if system is None:
            raise
        return model.encode(f"{system}\n\n{prompt}")
