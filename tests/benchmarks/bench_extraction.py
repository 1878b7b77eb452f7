"""What extraction costs beyond the forward passes themselves: ``python tests/benchmarks/bench_extraction.py``.

Prints

* the time of extracting class means from 256 prompts over that of bare forward passes of the same batches, both from
  token ids on and with tokenising, as medians of interleaved repeats;
* peak memory of a process that extracts from 256 and from 4,096 prompts, which should hardly differ.
"""

from __future__ import annotations

import argparse
import inspect
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ace_core as ace
from ace_core.activations import position_activations
from ace_core.fitting.collecting import ClassCollector, collect
from ace_core.models import ChatModel
from ace_core.prompts import load_builtin


def prompts(count: int) -> list[str]:
    """``count`` different prompts of the lengths of the built-in ones."""
    texts = [prompt.text for name in ("harmful", "harmless") for prompt in load_builtin(name)]
    return [f"{texts[i % len(texts)]} ({i})" for i in range(count)]


def extract(model: ChatModel, texts: list[str], batch_size: int) -> None:
    collector = ClassCollector(texts, len(model.blocks), model.width)
    collect(model, [collector], batch_size=batch_size)
    collector.moments.mean()


def batch_inputs(model: ChatModel, texts: list[str], batch_size: int) -> list[dict[str, Any]]:
    """The batches that extraction runs, left-padded, as inputs of the network."""
    accepts = inspect.signature(type(model.network).forward).parameters
    out = []
    for indices, _ in position_activations(model, texts, batch_size=batch_size):
        rows = [list(model.encode(texts[i])) for i in indices]
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        ids = torch.tensor([[model.pad_id] * p + row for p, row in zip(pads, rows, strict=True)], device=model.device)
        mask = torch.tensor([[0] * p + [1] * (longest - p) for p in pads], device=model.device)
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        out.append(inputs | ({"logits_to_keep": 1} if "logits_to_keep" in accepts else {}))
    return out


@torch.inference_mode()
def forward(model: ChatModel, batches: list[dict[str, Any]]) -> None:
    for inputs in batches:
        model.network(**inputs)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def ratios(model: ChatModel, count: int, batch_size: int, repeats: int) -> dict[str, float]:
    texts = prompts(count)
    batches = batch_inputs(model, texts, batch_size)
    tasks = {
        "tokenising": lambda: [model.encode(text) for text in texts],
        "forward passes": lambda: forward(model, batches),
        "extraction": lambda: extract(model, texts, batch_size),
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{statistics.median(values):8.2f} s  {name}, {count} prompts", file=sys.stderr)
    runs = list(zip(times["extraction"], times["forward passes"], times["tokenising"], strict=True))
    return {
        "extraction / bare forward passes": statistics.median(e / f for e, f, _ in runs),
        "extraction / tokenising and bare forward passes": statistics.median(e / (f + t) for e, f, t in runs),
    }


def peak_mib(arguments: argparse.Namespace, count: int) -> float:
    """Peak resident memory of a fresh process that extracts from ``count`` prompts, MiB."""
    command = [sys.executable, __file__, "--model", arguments.model, "--batch-size", str(arguments.batch_size)]
    done = subprocess.run([*command, "--alone", str(count)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--memory", type=int, nargs="*", default=[256, 4096], help="prompts to measure memory at")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        extract(ace.load_model(arguments.model, precision="float32"), prompts(arguments.alone), arguments.batch_size)
        # kilobytes on Linux, bytes on macOS
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2))
        return
    model = ace.load_model(arguments.model, precision="float32")
    result = ratios(model, arguments.prompts, arguments.batch_size, arguments.repeats)
    result |= {f"peak MiB at {count} prompts": peak_mib(arguments, count) for count in arguments.memory}
    print(json.dumps({name: round(value, 3) for name, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()
