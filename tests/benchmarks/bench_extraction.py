"""What extraction costs beyond the forward passes themselves: ``python tests/benchmarks/bench_extraction.py``.

Prints

* the time of extracting class means from 256 prompts over that of bare forward passes of the same batches, both from
  token ids on and with tokenising, as medians of interleaved repeats;
* peak memory of fresh processes that extract from 256 and from 4,096 prompts, which should hardly differ. Unless
  ``--memory-model`` names one, they run a model of the default one's 30 blocks and width but thin inside, since what
  could pile up are its activations: 69 KB a prompt, 265 MiB more at 4,096. A third process does pile them up, to show
  that the measurement would see it.

``--memory-only`` leaves the times out.
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
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ace_core as ace
from ace_core.activations import position_activations
from ace_core.fitting.collecting import ClassCollector, collect
from ace_core.models import ChatModel
from ace_core.prompts import load_builtin
from families import tiny_tokenizer

_THIN = "thin"


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


def thin_model() -> ChatModel:
    """A random model whose residual stream is as large as the default model's, and little else."""
    settings = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "intermediate_size": 16,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": len(tiny_tokenizer()),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings)).eval()
    return ace.wrap(network, tiny_tokenizer(), name="thin", model_id="thin")


def alone(arguments: argparse.Namespace) -> float:
    """Peak resident memory of this process after extracting from so many prompts, MiB."""
    # short, since a byte is a token to the thin model
    name, texts = arguments.memory_model, [f"Say {i}" for i in range(arguments.alone)]
    model = thin_model() if name == _THIN else ace.load_model(name, precision="float32")
    if arguments.hoard:
        kept = [activations for _, activations in position_activations(model, texts, batch_size=arguments.batch_size)]
        assert sum(part.shape[1] for part in kept) == len(texts)
    else:
        extract(model, texts, arguments.batch_size)
    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def peak_mib(arguments: argparse.Namespace, count: int, *more: str) -> float:
    """:func:`alone` in a fresh process."""
    command = [sys.executable, __file__, "--memory-model", arguments.memory_model]
    command += ["--batch-size", str(arguments.batch_size), "--alone", str(count), *more]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--memory", type=int, nargs="*", default=[256, 4096], help="prompts to measure memory at")
    parser.add_argument("--memory-model", default=_THIN, help="model of the memory measurement; default: a thin one")
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hoard", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(alone(arguments))
        return
    result: dict[str, float] = {}
    if not arguments.memory_only:
        model = ace.load_model(arguments.model, precision="float32")
        result = ratios(model, arguments.prompts, arguments.batch_size, arguments.repeats)
    result |= {f"peak MiB at {count} prompts": peak_mib(arguments, count) for count in arguments.memory}
    if arguments.memory:
        most = max(arguments.memory)
        result[f"peak MiB at {most} prompts, all activations kept"] = peak_mib(arguments, most, "--hoard")
    print(json.dumps({name: round(value, 3) for name, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()
