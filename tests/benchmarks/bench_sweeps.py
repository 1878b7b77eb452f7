"""How fast sweeps are, as ratios inside one run: ``python tests/benchmarks/bench_sweeps.py``.

Times, on one loaded model, so in the same precision,

* a layer × coefficient map (every block, addition and ACE at nine coefficients, sixteen prompts) by ``first_logits``
  against one hooked forward pass a cell and prompt, with the output head at the last position only;
* a generated sweep (one block, the same methods and coefficients, fifty tokens) by ``answers`` against one
  ``model.generate`` with a hook a cell and prompt.

Of the slow side a random sample of cells is timed, spread evenly over the run so that both sides meet the same load,
and the whole is extrapolated from their mean; ``--sample 0`` times every cell. The sampled cells are compared with what
the sweep gave. Ratios are of wall time and of processor time, which a busy machine disturbs less.

The whole takes about ten minutes on one core in each precision. ``--scale 0.3`` takes three blocks of ten, spread over
the model, three of ten prompts for the answers and as much of the sample; ratios of the map stay about the same.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass
class Clock:
    """Seconds inside the ``with`` blocks, by the wall and of all threads of this process."""

    wall: float = 0.0
    processor: float = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.processor += time.process_time() - self._start[1]


@dataclass(frozen=True)
class Race:
    """Both sides' times, what the sweep yielded, and what the slow cells gave."""

    total: int
    fast: Clock
    slow: Clock
    results: list[Any]
    reference: dict[Cell, Any]

    def figures(self, slow_name: str) -> dict[str, Any]:
        share = self.total / len(self.reference)
        return {
            "cells": self.total,
            "seconds": round(self.fast.wall, 1),
            slow_name: round(self.slow.wall * share, 1),
            "timed of those": len(self.reference),
            "times faster": round(self.slow.wall * share / self.fast.wall, 2),
            "times faster in processor time": round(self.slow.processor * share / self.fast.processor, 2),
        }


def race(chunks: Iterator[tuple[int, Any]], total: int, sample: list[Cell], slow: Callable[[Cell], Any]) -> Race:
    """Run both sides in turn.

    Args:
        chunks: yields (cells in this chunk, result).
        total: cells in all.
        sample: slow cells to run, some after every chunk.
        slow: runs one.
    """
    out, done, left = Race(total, Clock(), Clock(), [], {}), 0, list(sample)
    while True:
        with out.fast:
            chunk = next(chunks, None)
        done += total - done if chunk is None else chunk[0]
        if chunk is not None:
            out.results.append(chunk[1])
        while left and len(out.reference) < len(sample) * done / total:
            cell = left.pop()
            with out.slow:
                out.reference[cell] = slow(cell)
        if chunk is None:
            return out


def spread(count: int, some: int) -> list[int]:
    """So many of 0 to ``count`` - 1, whose mean is the middle."""
    return [int((i + 0.5) * count / some) for i in range(some)]


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
    parser.add_argument("--scale", type=float, default=1.0, help="share of blocks, answered prompts and sample")
    parser.add_argument("--batch-rows", type=int, help="rows a forward pass, instead of each function's own number")
    parser.add_argument("--only", choices=["map", "answers"])
    arguments = parser.parse_args()
    scale = min(max(arguments.scale, 0.0), 1.0)
    size_of = lambda count: max(1, round(count * scale))  # noqa: E731
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
        blocks = arguments.blocks or spread(len(model.blocks), size_of(len(model.blocks)))
        arms = make_arms(blocks, arguments.coefficients)
        sample = drawn(len(prompts), len(arms), arguments.sample and size_of(arguments.sample))
        way.logits(prompts[0], arms[0])
        kept: dict[Cell, torch.Tensor] = {}

        def reading() -> Iterator[tuple[int, Any]]:
            for chunk in first_logits(model, directions, prompts, arms, **size):
                cells = list(zip(chunk.prompts, chunk.arms, strict=True))
                kept.update({cell: chunk.logits[k].clone() for k, cell in enumerate(cells) if cell in wanted})
                yield len(cells), None

        wanted, total = set(sample), len(prompts) * len(arms)
        raced = race(reading(), total, sample, lambda c: way.logits(prompts[c[0]], arms[c[1]]))
        apart = max(
            float((kept[c].log_softmax(-1) - x.log_softmax(-1)).abs().max()) for c, x in raced.reference.items()
        )
        result["map"] = {
            "blocks": len(blocks),
            "prompts": len(prompts),
            **raced.figures("one forward pass a cell, s"),
            "largest difference of a log-probability": apart,
        }
        print(json.dumps(result["map"]), file=sys.stderr)

    if arguments.only != "map":
        arms = make_arms([directions.recommended_layer], arguments.coefficients)
        prompts = prompts[: size_of(len(prompts))]
        sample = drawn(len(prompts), len(arms), arguments.sample and size_of(arguments.sample // 4))
        way.answer(prompts[0], arms[0], 2)
        sampling = Sampling(max_new_tokens=arguments.tokens)

        def writing() -> Iterator[tuple[int, Any]]:
            for cell in answers(model, directions, prompts, arms, sampling, **size):
                yield 1, cell

        total = len(prompts) * len(arms)
        raced = race(writing(), total, sample, lambda c: way.answer(prompts[c[0]], arms[c[1]], arguments.tokens))
        given, spoken = {(cell.prompt, cell.arm): cell.ids for cell in raced.results}, raced.reference
        result["answers"] = {
            "prompts": len(prompts),
            **raced.figures("one generate a cell, s"),
            "tokens a cell": round(sum(map(len, given.values())) / total, 1),
            "tokens a timed cell": round(sum(map(len, spoken.values())) / len(spoken), 1),
            "equal answers": f"{sum(given[c] == spoken[c] for c in spoken)} of {len(spoken)}",
        }
        print(json.dumps(result["answers"]), file=sys.stderr)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
