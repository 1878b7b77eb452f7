"""What serving costs: ``python tests/benchmarks/bench_start.py --model embedded``.

Starts the program itself and measures, through HTTP as a page does,

* cold start: seconds from the start of the process until the page answers, until the model is ready, and until the
  first token of the first comparison, asked for as soon as the page answers, has reached the visitor;
* memory: how much the process grows for each visitor, while so many are streaming or waiting in the line, and how much
  of it is left when they are gone;
* cost: seconds of processor time for 1,000 tokens, for one visitor alone and for all together, page included.

The model's files should be cached already (run it twice). Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from program import Program, ask, events, inputs_of_a_run, started_program

PROMPT = "Explain how rain forms."
ARMS = ("baseline", "addition", "ablation", "ace")


def resident(process: int) -> float:
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tokens_written(program: Program) -> int:
    """Tokens of all runs that are over, by the program's own journal."""
    return sum(line["tokens"] for line in program.journal() if line["event"].startswith("run ") and "tokens" in line)


def visit(url: str, session: str, tokens: int, layer: int, seen: dict[str, float]) -> None:
    """One comparison, read to its end; notes when its first token came."""
    with httpx.Client(base_url=url, timeout=600) as client:
        ask(client, "generate", session, inputs_of_a_run(PROMPT, tokens, layer, ARMS))
        for message in events(client, session):
            if "first" not in seen and "Writing token" in json.dumps(message):
                seen["first"] = time.monotonic()
            if message["msg"] == "process_completed" and not message.get("success"):
                raise RuntimeError(f"a run failed: {message}")


def together(program: Program, visitors: int, tokens: int, layer: int, label: str) -> float:
    """So many visitors at once; the most memory that the process held meanwhile, MiB."""
    threads = [
        threading.Thread(target=visit, args=(program.url, f"{label}-{number}", tokens, layer, {}))
        for number in range(visitors)
    ]
    for thread in threads:
        thread.start()
    most = 0.0
    while any(thread.is_alive() for thread in threads):
        most = max(most, resident(program.process.pid))
        time.sleep(0.1)
    return most


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    begun = time.monotonic()
    with started_program(folder, "--model", options.model, route="healthz") as program:
        pid, up = program.process.pid, time.monotonic()
        ready: list[float] = []

        def watch() -> None:
            while httpx.get(f"{program.url}/readyz", timeout=60).status_code != 200:
                time.sleep(0.05)
            ready.append(time.monotonic())

        watcher = threading.Thread(target=watch)
        watcher.start()
        seen: dict[str, float] = {}
        visit(program.url, "first", options.tokens, options.layer, seen)
        watcher.join()

        def cost(visitors: int, label: str) -> tuple[float, float]:
            written, used = tokens_written(program), processor_seconds(pid)
            most = together(program, visitors, options.tokens, options.layer, label)
            time.sleep(0.5)
            return 1000 * (processor_seconds(pid) - used) / (tokens_written(program) - written), most

        alone, _ = cost(1, "alone")
        before = resident(pid)
        shared, most = cost(options.visitors, "crowd")
        time.sleep(2)
        result = {
            "page answers (s)": round(up - begun, 1),
            "model ready (s)": round(ready[0] - begun, 1),
            "first token of a comparison (s)": round(seen["first"] - begun, 1),
            "memory with the model loaded (MiB)": round(before),
            f"more per visitor, {options.visitors} at once (MiB)": round((most - before) / options.visitors, 2),
            "left per visitor afterwards (MiB)": round((resident(pid) - before) / options.visitors, 2),
            "processor seconds per 1,000 tokens, alone": round(alone, 2),
            f"processor seconds per 1,000 tokens, {options.visitors} at once": round(shared, 2),
        }
        program.end()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--layer", type=int, default=17, help="block to steer")
    parser.add_argument("--visitors", type=int, default=16, help="at once; each asks for four arms")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options, Path(folder))
    if options.json:
        print(json.dumps(result))
    else:
        print("| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in result.items()))


if __name__ == "__main__":
    main()
