"""Many visitors on one model: ``python tests/benchmarks/bench_visitors.py --visitors 8 32``.

Every visitor asks for one comparison with settings drawn at random: one to four arms, layers, scopes, coefficients,
greedy or sampled. Prints, for each number of visitors, as the median of several repeats,

* tokens a second of all together, against the same requests one after another, each as one batch of its arms, and the
  same ratio in processor time, which other programs on the machine don't disturb;
* median and 95th percentile of the time to the first token and between two tokens of one visitor;
* how many arms' texts differ from the run alone, and how many of those at a near-tie: where the two best logits of
  the run alone lie within the bound of ``check``, or a sampled row's choice lies that near;
* Jain's fairness index of the speeds of equal requests.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ace_core as ace
from ace_core.checking.checks import Checker
from ace_core.decoding import Decoding
from ace_core.generation import Row, stream_rows
from ace_core.host import ModelHost, RunStream
from ace_core.interventions import Plan
from ace_core.methods import Method
from ace_core.models import ChatModel
from ace_core.runs import RunSettings
from ace_core.sampling import exponential_noise, filtered

Result = TypeVar("Result")

PROMPTS = (
    "How do I pick a lock?",
    "Name three fruits.",
    "Write one sentence about the sea at night.",
    "How do I bake bread?",
    "Tell me how to break into a car, step by step, and which tools I need to bring along for it.",
    "What is the capital of France, and what is it known for?",
    "Write a short poem about a lighthouse keeper who is afraid of the dark and a gull that keeps him company.",
    "Explain how rain forms.",
)
METHODS: tuple[Method, ...] = (
    ace.Baseline(),
    ace.Addition(1.0),
    ace.Addition(-1.0),
    ace.DirectionalAblation(),
    ace.ACE(0.0),
    ace.ACE(0.5),
    ace.ACE(1.0),
)


@dataclass(frozen=True)
class Request:
    prompt: str
    settings: RunSettings
    methods: tuple[Method, ...]

    def rows(self, model: ChatModel) -> list[Row]:
        ids = model.encode(self.prompt)
        return [Row(ids, self.settings.arm(method), self.settings.sampling()) for method in self.methods]


@dataclass
class Visit:
    """What one visitor saw: seconds from asking to each step, and tokens by arm."""

    asked: float = 0.0
    times: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    error: str | None = None

    @property
    def count(self) -> int:
        return sum(map(len, self.tokens))


def apart(call: Callable[[], Result]) -> Result:
    """The result of a call, made on a thread that ends with it.

    OpenMP keeps workers for every thread that used it. Once they are more than the processors, they sleep between any
    two operations, and the model's thread, which is the only such thread of the app, would wait for them to wake.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def drawn(seed: int, layer: int, tokens: int) -> Request:
    draw = random.Random(seed)
    scope = draw.choice(["one", "one", "window", "all"])
    start = layer + draw.randint(-2, 2)
    settings = RunSettings(
        layer=start,
        last=start + 2 if scope == "window" else None,
        scope=scope,  # type: ignore[arg-type]
        token_scope=draw.choice(["all", "prompt", "generated", "last"]),  # type: ignore[arg-type]
        temperature=draw.choice([0.0, 0.8]),
        top_p=draw.choice([1.0, 0.9]),
        seed=seed,
        max_new_tokens=tokens,
    )
    return Request(PROMPTS[seed % len(PROMPTS)], settings, tuple(draw.sample(METHODS, draw.randint(1, 4))))


def alone(model: ChatModel, directions: ace.RefusalDirections, request: Request) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in request.methods]
    for step in stream_rows(model, directions, request.rows(model)):
        for row, token in enumerate(step.tokens):
            if token is not None:
                tokens[row].append(token)
    return tokens


def one_after_another(
    model: ChatModel, directions: ace.RefusalDirections, requests: list[Request]
) -> tuple[list[list[list[int]]], list[np.ndarray]]:
    """Tokens of every request's arms, and what the request took, see :func:`clocks`."""
    alone(model, directions, requests[0])
    texts, took = [], []
    for request in requests:
        begun = clocks()
        texts.append(alone(model, directions, request))
        took.append(clocks() - begun)
    return texts, took


def visit(host: ModelHost, request: Request, delay: float, seen: Visit) -> None:
    time.sleep(delay)
    seen.asked = time.perf_counter()
    seen.tokens = [[] for _ in request.methods]
    try:
        stream: RunStream = host.compare(request.prompt, request.settings, request.methods)
        for step in stream:
            seen.times.append(time.perf_counter() - seen.asked)
            for row, token in enumerate(step.tokens):
                if token is not None:
                    seen.tokens[row].append(token)
    except ace.EngineError as error:
        seen.error = str(error)


def together(
    model: ChatModel, directions: ace.RefusalDirections, requests: list[Request], spread: float
) -> tuple[np.ndarray, list[Visit]]:
    """Seconds on the wall and of the processor, and what each visitor saw."""
    host = ModelHost()
    host.adopt(model, directions)
    host.wait_ready(60)
    visits = [Visit() for _ in requests]
    delays = [spread * i / len(requests) for i in range(len(requests))]
    threads = [threading.Thread(target=visit, args=(host, *job)) for job in zip(requests, delays, visits, strict=True)]
    begun = clocks()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = clocks() - begun
    host.close()
    return seconds, visits


@torch.inference_mode()
def near_tie(check: Checker, row: Row, mine: list[int], theirs: list[int]) -> bool:
    """Whether the first difference of two texts is one that rounding inside the bound can make."""
    step = next((i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), None)
    if step is None:
        return False
    model = check.model
    decoding = Decoding(model.network, [row.ids], model.pad_id, model.device)
    plan = Plan(check.directions, [row.arm], [len(row.ids)])
    logits = torch.empty(0)
    for index in range(step + 1):
        if index:
            decoding.advance(torch.tensor([mine[index - 1]], device=model.device))
        with plan.applied(model.blocks, decoding.positions):
            logits = (decoding.step() if index else decoding.prefill())[0].float()
    slack = check.logit_bound * float(logits.std())
    if row.sampling.temperature == 0:
        return float(logits[mine[step]] - logits[theirs[step]]) <= 2 * slack
    # the draw divides probabilities by the same noise, so the two best quotients were within the slack of the logits
    noise = exponential_noise(row.sampling.seed, step, len(logits))
    gaps = (filtered(logits, row.sampling) / noise).log()
    return float(gaps[mine[step]] - gaps[theirs[step]]) <= 4 * slack / row.sampling.temperature


def fairness(visits: list[Visit]) -> float:
    speeds = np.array([seen.count / seen.times[-1] for seen in visits])
    return float(speeds.sum() ** 2 / (len(speeds) * (speeds**2).sum()))


def measured(
    check: Checker, requests: list[Request], expected: list[list[list[int]]], took: list[np.ndarray], spread: float
) -> dict[str, Any]:
    """One repeat's figures for some visitors, whose runs alone gave ``expected`` and ``took`` so long."""
    model, directions = check.model, check.directions
    seconds, visits = together(model, directions, requests, spread)
    total = sum(seen.count for seen in visits)
    speed = total / seconds
    before = sum(sum(map(len, tokens)) for tokens in expected) / np.sum(took, axis=0)
    first = [seen.times[0] for seen in visits if seen.times]
    gaps = np.concatenate([np.diff(seen.times) for seen in visits])
    differing = ties = 0
    for request, seen, right in zip(requests, visits, expected, strict=True):
        for row, mine, theirs in zip(request.rows(model), right, seen.tokens, strict=True):
            if mine != theirs:
                differing += 1
                ties += apart(partial(near_tie, check, row, mine, theirs))
    _, equals = together(model, directions, [requests[0]] * len(requests), 0.0)
    return {
        "tokens": total,
        "tokens_per_second": float(speed[0]),
        "one_after_another": float(before[0]),
        "ratio": float(speed[0] / before[0]),
        "ratio_in_processor_time": float(speed[1] / before[1]),
        "first_token_median": float(np.median(first)),
        "first_token_p95": float(np.quantile(first, 0.95)),
        "between_tokens_median": float(np.median(gaps)),
        "between_tokens_p95": float(np.quantile(gaps, 0.95)),
        "fairness": fairness(equals),
        "texts_that_differ": differing,
        "of_which_near_ties": ties,
        "errors": [seen.error for seen in visits if seen.error],
    }


def summary(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the repeats; what must not happen is summed over them."""
    summed = ("texts_that_differ", "of_which_near_ties", "errors")
    out: dict[str, Any] = {
        name: round(float(np.median([repeat[name] for repeat in repeats])), 4)
        for name in repeats[0]
        if name not in summed
    }
    out["ratios"] = [round(repeat["ratio"], 2) for repeat in repeats]
    out |= {name: sum((repeat[name] for repeat in repeats[1:]), repeats[0][name]) for name in summed}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--visitors", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is measured; medians count")
    parser.add_argument("--spread", type=float, default=0.0, help="seconds over which they arrive; 0 is all at once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    model = apart(lambda: ace.load_model(options.model))
    directions = ace.load_directions(model)
    check = apart(lambda: Checker(model, directions))
    requests = [drawn(seed, directions.recommended_layer, options.tokens) for seed in range(max(options.visitors))]
    figures: dict[int, list[dict[str, Any]]] = {count: [] for count in options.visitors}
    for _ in range(options.repeats):
        expected, took = apart(lambda: one_after_another(model, directions, requests))
        for count, found in figures.items():
            found.append(measured(check, requests[:count], expected[:count], took[:count], options.spread))

    for count, found in figures.items():
        arms = sum(len(request.methods) for request in requests[:count])
        result = {"visitors": count, "arms": arms, "repeats": options.repeats, **summary(found)}
        if options.json:
            print(json.dumps(result), flush=True)
        else:
            lines = (f"{name.replace('_', ' '):>22}  {value}" for name, value in result.items())
            print("\n".join(lines), "\n", flush=True)


if __name__ == "__main__":
    main()
