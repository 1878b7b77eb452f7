"""A day of visitors in a quarter of an hour: ``python tests/benchmarks/soak.py --minutes 15``.

Starts the real app in another process and lets visitors come at random, who use the events of the page over HTTP: they
read to the end, stop, close the page in mid-stream or in the line, read slowly, send settings that can't be used, look
around, or do several of these in turn. Meanwhile the process says every few seconds how much memory, how many threads,
open files, hooks, rows, runs, tasks and sessions it has. When all have left, it must be as before:

* no error but the sentences that a visitor is meant to see, no traceback in the log, no answer 5xx, nothing that hangs;
* no hook, row, run or task left, next to no session, no more threads and files than in the first minutes;
* memory in the last minute at most 1.05 times that around minute two (1.25 times in runs shorter than five minutes,
  against the middle of the run).

Exit status 0 if all hold, 1 if not. ``--model tiny`` takes a random model of a few kilobytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import runpy
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

EXPECTED = re.compile(
    r"are waiting already|Too many people|busy for too long|nobody took|Stopped|whole number|a number from|shorten it"
    r"|Type a prompt|Choose which|Choose the point|at least one arm|window must end|can't be used"
)
"""What a page may say to visitors who ask too much, go away or send rubbish."""
PROMPTS = (
    "How do I pick a lock?",
    "Name three fruits.",
    "Write one sentence about the sea at night. " * 12,
    "How do I bake bread?",
    "¿Qué es el 森? \N{PILE OF POO}\u202e <script>alert(1)</script>",
)
SECONDS_TO_HANG = 180.0


@dataclass(frozen=True)
class Sample:
    """What the app's process holds at one moment."""

    seconds: float
    memory: int
    threads: int
    files: int
    hooks: int
    rows: int
    runs: int
    waiting: int
    tasks: int
    sessions: int


# In the app's process


def serve(model: str, port: int, path: Path, every: float) -> None:
    """Run the app as a person would, and write a sample a line."""
    from ace_core.host import ModelHost
    from ace_core.ui.sessions import Sessions

    made: dict[type, Any] = {}
    for kind in (ModelHost, Sessions):
        remember(kind, made)
    threading.Thread(target=probe, args=(made, path, every), name="probe", daemon=True).start()
    sys.argv = ["app.py", "--model", model, "--port", str(port)]
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")


def remember(kind: type, made: dict[type, Any]) -> None:
    """Keep hold of the next object of a kind."""
    usual: Any = kind.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        usual(self, *args, **kwargs)
        made[kind] = self

    kind.__init__ = init  # type: ignore[assignment]


def probe(made: dict[type, Any], path: Path, every: float) -> None:
    with path.open("w") as out:
        while True:
            time.sleep(every)
            if len(made) == 2 and (both := list(made.values()))[0].state.status == "ready":
                out.write(json.dumps(asdict(sample(*both))) + "\n")
                out.flush()


def sample(host: Any, sessions: Any) -> Sample:
    modules = list(host._model.network.modules())
    scheduler = host._scheduler
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        time.time(),
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/task")),
        len(os.listdir("/proc/self/fd")),
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        sum(len(part) for part in (*scheduler._reading, *scheduler._units)),
        host.active,
        host.waiting,
        len(host._desk),
        len(sessions),
    )


# Visitors


@dataclass
class Page:
    """Addresses of the events that a page in a browser uses, read from its configuration."""

    base: str
    events: dict[str, int] = field(default_factory=dict)
    fields: tuple[str, ...] = ()

    @classmethod
    def read(cls, base: str) -> Page:
        config = httpx.get(f"{base}/config", timeout=60).json()
        names = {c["id"]: str(c["props"].get("elem_id") or "").replace("-", "_") for c in config["components"]}
        known = config["dependencies"]
        begin = next(d for d in known if d["api_name"] == "begin")
        write = next(d for d in known if d["trigger_after"] == begin["id"] and d["trigger_only_on_success"])
        events = {d["api_name"]: d["id"] for d in reversed(known)}
        finish = next(d["id"] for d in known if d["trigger_after"] == write["id"])
        chain = {"begin": begin["id"], "write": write["id"], "finish": finish}
        return cls(base + config["api_prefix"], {**events, **chain}, tuple(names[i] for i in begin["inputs"]))


class Tally:
    """What happened, counted by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.first: list[float] = []

    def saw(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def hear(self, sentence: str) -> None:
        """A sentence on the page that says what went wrong."""
        with self._lock:
            plain = re.sub(r"\d[\d,.]*", "N", sentence)
            (self.said if EXPECTED.search(sentence) else self.unexpected)[plain] += 1

    def wrong(self, what: str) -> None:
        with self._lock:
            self.unexpected[what[:200]] += 1

    def began(self, seconds: float) -> None:
        with self._lock:
            self.first.append(seconds)


class Visitor:
    """One open page."""

    def __init__(self, page: Page, tally: Tally, draw: random.Random, tokens: int, blocks: int) -> None:
        self._page, self._tally, self._draw = page, tally, draw
        self._tokens, self._blocks = tokens, blocks
        self._key = f"{draw.getrandbits(60):x}"

    def live(self) -> None:
        """Come, do a few things, go."""
        deeds = [self.read, self.read, self.stop, self.leave, self.read_slowly, self.send_rubbish, self.look]
        try:
            with httpx.Client(timeout=SECONDS_TO_HANG) as self._http, self._heartbeat():
                for _ in range(self._draw.randint(1, 4)):
                    deed = self._draw.choice(deeds)
                    deed()
                    self._tally.saw(deed.__name__)
                    if deed == self.leave:
                        break
                    time.sleep(self._draw.expovariate(2))
        except Exception as error:
            self._tally.wrong(f"{type(error).__name__}: {error}")

    def read(self, pause: float = 0.0) -> None:
        if self._event("begin", self._asked()):
            self._event("write", self._values, pause)
            self._at_once("finish", self._values)

    def read_slowly(self) -> None:
        self.read(pause=0.4)

    def stop(self) -> None:
        if self._event("begin", self._asked()):
            for seen, _ in enumerate(self._stream("write", self._values)):
                if seen == 3:
                    self._at_once("stop", [])
            self._at_once("finish", self._values)

    def leave(self) -> None:
        """Close the page: while it waits, or while it is written to."""
        if self._event("begin", self._asked()):
            last = self._draw.randint(0, 4)
            for seen, _ in enumerate(self._stream("write", self._values)):
                if seen >= last:
                    return

    def look(self) -> None:
        """What a page does without a run."""
        values = self._asked()
        for name, data in (
            ("poll", [self._draw.randrange(self._blocks)]),
            ("show", [self._draw.randrange(self._blocks)]),
            ("reset", []),
            ("python", values),
            ("command", values),
        ):
            if name in self._page.events:
                self._at_once(name, data)

    def send_rubbish(self) -> None:
        rubbish: list[Any] = [None, "", -1, 10**12, 1e308, "NaN", [], {}, ["ace", 3], True, "x" * 5000, "\0", [[[]]]]
        values = self._asked()
        for _ in range(self._draw.randint(1, 3)):
            values[self._draw.randrange(len(values))] = self._draw.choice(rubbish)
        if self._draw.random() < 0.5:
            self._event("begin", values, may_fail=True)
        else:
            self._event("write", values, may_fail=True)

    def _asked(self) -> list[Any]:
        draw = self._draw
        layer = draw.randrange(self._blocks)
        scope = draw.choice(["one", "one", "window", "all", "shared"])
        chosen = {
            "prompt": draw.choice(PROMPTS),
            "layer": layer,
            "last": draw.randrange(layer, self._blocks),
            "scope": scope,
            "token_scope": draw.choice(["all", "prompt", "generated", "last"]),
            "coefficient": draw.choice([0.0, 0.5, 1.0]),
            "reference": "harmless",
            "addition": draw.choice([-1.0, 1.0]),
            "arms": draw.sample(["baseline", "addition", "ablation", "affine_ablation", "ace"], draw.randint(1, 4)),
            "max_new_tokens": draw.randint(8, self._tokens),
            "temperature": draw.choice([0.0, 0.8]),
            "top_p": draw.choice([1.0, 0.9]),
            "top_k": draw.choice([0, 40]),
            "seed": draw.randrange(1000),
        }
        self._values = [chosen[name] for name in self._page.fields]
        return list(self._values)

    def _event(self, name: str, data: list[Any], pause: float = 0.0, may_fail: bool = False) -> bool:
        """Run an event to its end; whether it went well."""
        well = False
        begun = time.monotonic()
        for message in self._stream(name, data):
            output = message.get("output") or {}
            if name == "write" and begun and '"kind":"running"' in json.dumps(output).replace('\\"', '"'):
                self._tally.began(time.monotonic() - begun)
                begun = 0.0
            if message["msg"] == "process_completed":
                well = bool(message["success"])
                if not well and not may_fail:
                    self._tally.hear(str(output.get("error")))
                for sentence in re.findall(r'"kind": ?"error", ?"text": ?"(.*?)"', str(output)):
                    self._tally.hear(sentence)
            time.sleep(pause)
        return well

    def _stream(self, name: str, data: list[Any]) -> Iterator[dict[str, Any]]:
        """Join the queue and yield its messages; leaving early closes the connection."""
        body = {"data": data, "fn_index": self._page.events[name], "session_hash": self._key}
        joined = self._http.post(f"{self._page.base}/queue/join", json=body)
        if joined.status_code != 200:
            (self._tally.hear if joined.status_code < 500 else self._tally.wrong)(f"{name}: {joined.text[-150:]}")
            return
        address, key = f"{self._page.base}/queue/data", {"session_hash": self._key}
        with self._http.stream("GET", address, params=key) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "close_stream":
                    return
                yield message
        self._tally.wrong(f"{name}: the stream broke off")

    def _at_once(self, name: str, data: list[Any]) -> None:
        """An event that does not queue."""
        body = {"data": data, "fn_index": self._page.events[name], "session_hash": self._key}
        answer = self._http.post(f"{self._page.base}/run/predict", json=body)
        if answer.status_code != 200:
            self._tally.wrong(f"{name}: {answer.status_code} {answer.text[-150:]}")

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """By its end the server knows that the page was closed."""
        address = httpx.URL(f"{self._page.base}/heartbeat/{self._key}")
        with socket.create_connection((address.host, address.port or 80), timeout=60) as line:
            line.sendall(f"GET {address.path} HTTP/1.1\r\nHost: {address.host}\r\n\r\n".encode())
            line.recv(64)
            yield


# The verdict


def problems(samples: list[Sample], begun: float, ended: float, tally: Tally, log: str) -> list[str]:
    """Everything that must not be.

    Args:
        samples: of the whole run, the last of them after everybody left.
        begun, ended: when visitors began and ceased to come, seconds since the epoch.
        tally: what they saw.
        log: what the app wrote.
    """
    found = [f"{count} × {what}" for what, count in tally.unexpected.most_common()]
    found += [f"log: {line[:200]}" for line in log.splitlines() if "Traceback" in line or '"level": "error"' in line]
    if not tally.outcomes["read"]:
        found.append("nobody read an answer to its end")
    lasted = ended - begun
    long = lasted >= 300
    early, limit = (120.0, 1.05) if long else (lasted / 2, 1.25)
    first = [s for s in samples if begun <= s.seconds <= begun + early]
    busy = [s for s in samples if begun <= s.seconds <= ended]
    if not first or not busy:
        return [*found, "there are too few samples: let it run longer"]
    last = samples[-1]
    # a page closed in the very moment in which its run begins is seen again after it was forgotten, and stays one of
    # the 500 kept at most
    spared = {"sessions": 1 + tally.outcomes["leave"] // 20}
    for name in ("hooks", "rows", "runs", "waiting", "tasks", "sessions"):
        if (left := getattr(last, name)) > getattr(samples[0], name) + spared.get(name, 0):
            found.append(f"{left} {name} left when everybody had gone, {getattr(samples[0], name)} before")
    for name in ("threads", "files"):
        # in a short run the pools of threads are still growing, and they shrink only with use
        most = max(getattr(s, name) for s in (first if long else busy))
        if getattr(last, name) > most + 2:
            found.append(f"{getattr(last, name)} {name} left, at most {most} while they filled")
    then, now = memory(samples, begun + early, 15 if long else lasted / 4), memory(samples, ended, 45 if long else 10)
    if now > limit * then:
        found.append(f"memory grew from {then / 2**20:.0f} to {now / 2**20:.0f} MiB, {now / then:.3f} times")
    return found


def memory(samples: list[Sample], moment: float, width: float) -> float:
    """Median bytes in the seconds around a moment."""
    near = [s.memory for s in samples if abs(s.seconds - moment) <= width] or [samples[-1].memory]
    return statistics.median(near)


def tiny_model(folder: Path) -> str:
    from families import save_tiny

    return str(save_tiny(folder / "tiny"))


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base, path, log = f"http://127.0.0.1:{port}", folder / "samples.jsonl", folder / "app.log"
    model = tiny_model(folder) if options.model == "tiny" else options.model
    every = min(2.0, options.minutes * 2)
    command = [sys.executable, __file__, "--serve", str(port), "--model", model, "--samples", str(path)]
    with log.open("w") as out:
        app = subprocess.Popen([*command, "--every", str(every)], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 600
        while not path.exists() or not read(path):
            if app.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"The app did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        tally, begun, ended = visits(options, Page.read(base), path)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # idle threads of a pool and closed sockets take a while to go
            time.sleep(2 * every)
            last = read(path)[-1]
            if not (last.rows or last.runs or last.sessions) and last.seconds > ended + 15:
                break
        stopped = time.monotonic()
    finally:
        app.terminate()
        with suppress(subprocess.TimeoutExpired):
            app.wait(30)
        app.kill()
    samples = read(path)
    found = problems(samples, begun, ended, tally, log.read_text())
    if time.monotonic() - stopped > 29:
        found.append("the app did not end within 30 seconds of SIGTERM")
    lasted = ended - begun
    early = 120.0 if lasted >= 300 else lasted / 2
    return {
        "model": options.model,
        "minutes": round(lasted / 60, 1),
        "deeds": dict(tally.outcomes.most_common()),
        "sentences": dict(tally.said.most_common()),
        "first_token_median_s": round(statistics.median(tally.first), 2) if tally.first else None,
        "first_token_p95_s": round(sorted(tally.first)[int(0.95 * len(tally.first))], 2) if tally.first else None,
        "most_rows": max(s.rows for s in samples),
        "most_runs_waiting": max(s.waiting for s in samples),
        "before": asdict(samples[0]),
        "early_MiB": round(memory(samples, begun + early, 15 if lasted >= 300 else lasted / 4) / 2**20),
        "late_MiB": round(memory(samples, ended, 45 if lasted >= 300 else 10) / 2**20),
        "peak_MiB": round(max(s.memory for s in samples) / 2**20),
        "after": asdict(samples[-1]),
        "problems": found,
    }


def read(path: Path) -> list[Sample]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Sample(**json.loads(line)) for line in lines if line.endswith("}")]


def visits(options: argparse.Namespace, page: Page, path: Path) -> tuple[Tally, float, float]:
    """Let visitors come for the time asked for; what they saw, and when that began and ended."""
    tally, draw = Tally(), random.Random(options.seed)
    room = threading.Semaphore(options.visitors)
    blocks = int(options.blocks or 4)

    def visit(visitor: Visitor) -> None:
        try:
            visitor.live()
        finally:
            room.release()

    begun = said = time.time()
    threads: list[threading.Thread] = []
    while time.time() < begun + 60 * options.minutes:
        time.sleep(min(5.0, draw.expovariate(options.arrivals)))
        if not room.acquire(timeout=5):
            continue
        visitor = Visitor(page, tally, random.Random(draw.random()), options.tokens, blocks)
        thread = threading.Thread(target=visit, args=(visitor,), daemon=True)
        thread.start()
        threads = [one for one in threads if one.is_alive()] + [thread]
        if time.time() > said + 60:
            said = time.time()
            print(f"{said - begun:5.0f} s  {dict(tally.outcomes)}  {read(path)[-1]}", file=sys.stderr, flush=True)
    ended = time.time()
    deadline = time.monotonic() + SECONDS_TO_HANG
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            tally.wrong("a visitor hangs")
    return tally, begun, ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--model", default="embedded", help="as for app.py, or 'tiny'")
    parser.add_argument("--visitors", type=int, default=16, help="pages open at once, at most")
    parser.add_argument("--arrivals", type=float, default=1.0, help="visitors a second that come, if there is room")
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    parser.add_argument("--blocks", type=int, help="blocks of the model; default 30, or 4 for the tiny one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    for hidden in ("--serve", "--samples", "--every"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.model, int(options.serve), Path(options.samples), float(options.every))
        return
    options.blocks = options.blocks or (4 if options.model == "tiny" else 30)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(options, Path(folder))
    if options.json:
        print(json.dumps(result), flush=True)
    else:
        print("\n".join(f"{name.replace('_', ' '):>22}  {value}" for name, value in result.items()), flush=True)
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
