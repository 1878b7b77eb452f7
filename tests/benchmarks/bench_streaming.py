"""How fast four arms stream, as ratios inside one run: ``python tests/benchmarks/bench_streaming.py``.

Prints the median of several interleaved repeats of

* four arms in one batch, float32 and the CPU's fast mode, against the same four run one after another through
  float32 ``model.generate`` with a hook;
* hooks and read-outs at every block on against off. Both read the prompt once an arm: usually it is read once up
  to the edited block, which unedited arms would share to the end and edited ones can't;
* the decode loop against ``model.generate`` at the same batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ace_core as ace
from ace_core.arms import Arm
from ace_core.generation import Row, stream_rows
from ace_core.methods import Method
from ace_core.models import ChatModel
from ace_core.sampling import Sampling

PROMPT = "How do I pick a lock?"
METHODS: list[Method] = [ace.Baseline(), ace.Addition(1.0), ace.DirectionalAblation(), ace.ACE(0.0)]


class Bench:
    def __init__(self, model: ChatModel, directions: ace.RefusalDirections, tokens: int) -> None:
        # nothing may stop early, or the arms would do different amounts of work
        self.model = replace(model, stop_ids=frozenset(), stop_strings=())
        self.directions, self.tokens = directions, tokens
        self.ids = model.encode(PROMPT)
        self.layer = directions.recommended_layer

    def rows(self, methods: list[Method]) -> list[Row]:
        return [Row(self.ids, Arm(m, self.layer), Sampling(max_new_tokens=self.tokens)) for m in methods]

    def batch(self, share: bool = True) -> None:
        model = self.model if share else replace(self.model, shares_prompts=False)
        for _ in stream_rows(model, self.directions, self.rows(METHODS)):
            pass

    def unread(self, share: bool = True) -> None:
        """The same loop with no hook at all: four unedited rows, nothing read."""
        model = self.model if share else replace(self.model, shares_prompts=False)
        for _ in stream_rows(model, self.directions, self.rows([ace.Baseline()] * 4), read=False):
            pass

    def generate(self, batch: int = 4) -> None:
        ids = torch.tensor([self.ids] * batch)
        with torch.inference_mode():
            self.model.network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self.tokens,
                min_new_tokens=self.tokens,
                pad_token_id=self.model.pad_id,
            )

    def one_after_another(self) -> None:
        axis = self.directions.axis(self.layer)
        unit = axis.unit
        for method in METHODS:
            remove, add = method.affine(axis.low, axis.high)

            def hook(_module: Any, _args: Any, out: Any, remove: float = remove, add: float = add) -> Any:
                return out + (add - remove * (out @ unit)).unsqueeze(-1) * unit

            handle = self.model.blocks[self.layer].register_forward_hook(hook)
            try:
                self.generate(1)
            finally:
                handle.remove()


def interleaved(tasks: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    plain = ace.load_model(arguments.model, precision="float32", packed=False)
    exact = ace.load_model(arguments.model, precision="float32")
    fast = ace.load_model(arguments.model, precision="fast")
    directions = ace.load_directions(exact)
    usual, slow, quick = (Bench(model, directions, arguments.tokens) for model in (plain, exact, fast))
    times = interleaved(
        {
            "float32: four arms one after another through generate": usual.one_after_another,
            "float32: four arms in one batch": slow.batch,
            "fast mode: four arms in one batch": quick.batch,
            "float32: hooks and read-outs on": partial(slow.batch, share=False),
            "float32: hooks and read-outs off": partial(slow.unread, share=False),
            "fast mode: hooks and read-outs on": partial(quick.batch, share=False),
            "fast mode: hooks and read-outs off": partial(quick.unread, share=False),
            "float32: our loop": slow.unread,
            "fast mode: our loop": quick.unread,
            "float32: generate, batch of four": slow.generate,
            "fast mode: generate, batch of four": quick.generate,
        },
        arguments.repeats,
    )

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    serial = "float32: four arms one after another through generate"
    result = {
        "speed-up of one batch, float32": ratio(serial, "float32: four arms in one batch"),
        "speed-up of one batch, fast mode": ratio(serial, "fast mode: four arms in one batch"),
        "cost of hooks and read-outs, float32": ratio(
            "float32: hooks and read-outs on", "float32: hooks and read-outs off"
        ),
        "cost of hooks and read-outs, fast mode": ratio(
            "fast mode: hooks and read-outs on", "fast mode: hooks and read-outs off"
        ),
        "loop against generate, float32": ratio("float32: our loop", "float32: generate, batch of four"),
        "loop against generate, fast mode": ratio("fast mode: our loop", "fast mode: generate, batch of four"),
    }
    for name, values in times.items():
        print(f"{statistics.median(values) / arguments.tokens * 1000:8.1f} ms a token  {name}", file=sys.stderr)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()
