"""How fast sweeps are, as ratios inside one run: ``python tests/benchmarks/bench_sweeps.py``.

Times, on one loaded model, so in the same precision,

* a layer × coefficient map (every block, addition and ACE at nine coefficients, sixteen prompts) by ``first_logits``
  against one hooked forward pass a cell and prompt, with the output head at the last position only;
* a generated sweep (one block, the same methods and coefficients, fifty tokens) by ``answers`` against one
  ``model.generate`` with a hook a cell and prompt.

Of the slow side a random sample of cells is timed, spread evenly over the run so that both sides meet the same load,
and the whole is extrapolated from their mean; ``--sample 0`` times every cell. The sampled cells are compared with what
the sweep gave.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ace_core as ace
from ace_core.arms import Arm
from ace_core.models import ChatModel
from ace_core.prompts import load_builtin
from ace_core.sampling import Sampling
from ace_core.sweeps.ability import ability
from ace_core.sweeps.answers import answers
from ace_core.sweeps.logit_map import first_logits

Cell = tuple[int, int]


def make_arms(blocks: list[int], coefficients: int) -> list[Arm]:
    alphas = [round(2 * k / (coefficients - 1) - 0.5, 3) for k in range(coefficients)]
    return [Arm(kind(alpha), block) for block in blocks for kind in (ace.Addition, ace.ACE) for alpha in alphas]


def make_prompts(model: ChatModel, count: int) -> list[tuple[int, ...]]:
    sets = [load_builtin(name, "test") for name in ("harmful", "harmless")]
    return [model.encode(sets[k % 2][k // 2].text) for k in range(count)]


class Straightforward:
    """One forward pass, or one ``generate``, a cell and prompt."""

    def __init__(self, model: ChatModel, directions: ace.RefusalDirections) -> None:
        self.model, self.directions = model, directions

    @contextmanager
    def hooked(self, arm: Arm) -> Iterator[None]:
        axis = self.directions.axis(arm.layer)
        remove, add = arm.method.affine(axis.low, axis.high, axis.third)

        def hook(_module: Any, _args: Any, out: Any) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            edited = hidden + (add - remove * (hidden.float() @ axis.unit)).unsqueeze(-1) * axis.unit
            edited = edited.to(hidden.dtype)
            return (edited, *out[1:]) if isinstance(out, tuple) else edited

        handle = self.model.blocks[arm.layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.inference_mode()
    def logits(self, ids: tuple[int, ...], arm: Arm) -> torch.Tensor:
        with self.hooked(arm):
            output = self.model.network(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1)
        return output.logits[0, -1].float()

    @torch.inference_mode()
    def answer(self, ids: tuple[int, ...], arm: Arm, tokens: int) -> tuple[int, ...]:
        rows = torch.tensor([ids])
        with self.hooked(arm):
            out = self.model.network.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                do_sample=False,
                max_new_tokens=tokens,
                eos_token_id=sorted(self.model.stop_ids),
                pad_token_id=self.model.pad_id,
            )
        return tuple(out[0, len(ids) :].tolist())


def race(
    chunks: Iterator[tuple[int, Any]], total: int, sample: list[Cell], slow: Callable[[Cell], Any]
) -> tuple[float, float, list[Any], dict[Cell, Any]]:
    """Seconds of the sweep and mean seconds of a slow cell, what the sweep yielded and what the slow cells gave.

    Args:
        chunks: yields (cells in this chunk, result).
        total: cells in all.
        sample: slow cells to run, some after every chunk.
        slow: runs one.
    """
    fast_seconds, slow_seconds, done = 0.0, 0.0, 0
    results, reference, left = [], {}, list(sample)
    while True:
        start = time.perf_counter()
        chunk = next(chunks, None)
        fast_seconds += time.perf_counter() - start
        done += total - done if chunk is None else chunk[0]
        if chunk is not None:
            results.append(chunk[1])
        while left and len(reference) < len(sample) * done / total:
            cell = left.pop()
            start = time.perf_counter()
            reference[cell] = slow(cell)
            slow_seconds += time.perf_counter() - start
        if chunk is None:
            return fast_seconds, slow_seconds / len(reference), results, reference


def drawn(prompts: int, arms: int, sample: int) -> list[Cell]:
    cells = [(p, a) for p in range(prompts) for a in range(arms)]
    return random.Random(0).sample(cells, min(sample or len(cells), len(cells)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--coefficients", type=int, default=9)
    parser.add_argument("--blocks", type=int, nargs="*", help="blocks of the map (default: all)")
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--sample", type=int, default=160, help="cells of the slow side that are timed, 0 for all")
    parser.add_argument("--batch-rows", type=int, help="rows a forward pass, instead of each function's own number")
    parser.add_argument("--only", choices=["map", "answers"])
    arguments = parser.parse_args()
    model = ace.load_model(arguments.model, precision=arguments.precision)
    directions = ace.load_directions(model)
    prompts = make_prompts(model, arguments.prompts)
    way = Straightforward(model, directions)
    size = {"batch_rows": arguments.batch_rows} if arguments.batch_rows else {}
    start = time.perf_counter()
    exact = ability(model) is not None
    measuring = time.perf_counter() - start
    result: dict[str, Any] = {"precision": model.precision, "savings": exact, "measuring them, s": round(measuring, 2)}

    if arguments.only != "answers":
        blocks = arguments.blocks or list(range(len(model.blocks)))
        arms = make_arms(blocks, arguments.coefficients)
        sample = drawn(len(prompts), len(arms), arguments.sample)
        way.logits(prompts[0], arms[0])
        kept: dict[Cell, torch.Tensor] = {}

        def reading() -> Iterator[tuple[int, Any]]:
            for chunk in first_logits(model, directions, prompts, arms, **size):
                cells = list(zip(chunk.prompts, chunk.arms, strict=True))
                kept.update({cell: chunk.logits[k].clone() for k, cell in enumerate(cells) if cell in wanted})
                yield len(cells), None

        wanted, total = set(sample), len(prompts) * len(arms)
        fast, slow, _, reference = race(reading(), total, sample, lambda c: way.logits(prompts[c[0]], arms[c[1]]))
        apart = max(float((kept[c].log_softmax(-1) - reference[c].log_softmax(-1)).abs().max()) for c in reference)
        result["map"] = {
            "cells": total,
            "seconds": round(fast, 1),
            "one forward pass a cell, s": round(slow * total, 1),
            "timed of those": len(reference),
            "times faster": round(slow * total / fast, 2),
            "largest difference of a log-probability": apart,
        }
        print(json.dumps(result["map"]), file=sys.stderr)

    if arguments.only != "map":
        arms = make_arms([directions.recommended_layer], arguments.coefficients)
        sample = drawn(len(prompts), len(arms), arguments.sample and max(1, arguments.sample // 4))
        way.answer(prompts[0], arms[0], 2)
        sampling = Sampling(max_new_tokens=arguments.tokens)

        def writing() -> Iterator[tuple[int, Any]]:
            for cell in answers(model, directions, prompts, arms, sampling, **size):
                yield 1, cell

        total = len(prompts) * len(arms)
        fast, slow, found, spoken = race(
            writing(), total, sample, lambda c: way.answer(prompts[c[0]], arms[c[1]], arguments.tokens)
        )
        given = {(cell.prompt, cell.arm): cell.ids for cell in found}
        result["answers"] = {
            "cells": total,
            "tokens a cell": round(sum(map(len, given.values())) / total, 1),
            "seconds": round(fast, 1),
            "one generate a cell, s": round(slow * total, 1),
            "timed of those": len(spoken),
            "tokens a timed cell": round(sum(map(len, spoken.values())) / len(spoken), 1),
            "times faster": round(slow * total / fast, 2),
            "equal answers": f"{sum(given[c] == spoken[c] for c in spoken)} of {len(spoken)}",
        }
        print(json.dumps(result["answers"]), file=sys.stderr)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
