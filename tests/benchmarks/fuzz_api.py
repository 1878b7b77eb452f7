"""Calls of the API that no program should make: ``python tests/benchmarks/fuzz_api.py --calls 2000``.

Hypothesis draws requests, right ones, slightly wrong ones and nonsense, and sends each to a server with a tiny model in
another process. Every call must end in time with a result or with one sentence, never with a status from 500 on; right
comparisons and readings must end with a result. All the while another visitor repeats one greedy comparison, whose
texts must never change. At the end the server must be ready and its log without a traceback. Exit status 1 says that
one of these failed, with the smallest request that makes it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serving import Reply, call, tiny_server

DEADLINE = 120.0
CANARY = {"prompt": "Tell me about canaries.", "max_new_tokens": 12}
LONGEST_SENTENCE = 400

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
REMOTE = {"path": "http://127.0.0.1:9/x", "url": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


BAD_METHODS = ["ace", "ace:nan", "ace:1e9", "baseline:1", "ace:1:2", "ace:0@third", "ace:0@", "nonsense", ":", ""]
LETTERS = st.text(st.characters(), max_size=30)  # lone surrogates as well
JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**400), 2**63, 1e308, -1e308, 0.5, 3.0]),
    st.floats(allow_nan=True, allow_infinity=True),
    LETTERS,
    st.sampled_from(
        ["", " ", "\x00", "\ud800", "x" * 5_000, "🧭" * 4_001, "<script>alert(1)</script>", "${7*7}{{7*7}}"]
    ),
    st.sampled_from([FILE, REMOTE, {}, {"__type__": "update"}, [], [[]], [FILE], nested(10), nested(200), nested(900)]),
    st.lists(st.one_of(LETTERS, st.integers(), st.floats(), st.none(), st.sampled_from(BAD_METHODS)), max_size=5),
    st.recursive(st.none() | st.booleans(), lambda part: st.lists(part) | st.dictionaries(LETTERS, part), max_leaves=9),
)
PROMPT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).map("{}?".format)
COEFFICIENT = st.floats(-3, 3).map("{:.3f}".format)
METHOD = st.one_of(
    st.sampled_from(["baseline", "ablation", "affine_ablation", "ace:0@pooled", "ace:1@origin", "ACE:0.5 "]),
    COEFFICIENT.map("ace:{}".format),
    COEFFICIENT.map("addition:{}".format),
)
SETS = st.integers(0, 9).map(lambda k: [f"Tell me number {i} of {k}." for i in range(5 + k)])
GOOD: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "compare": {
        "prompt": PROMPT,
        "methods": st.none() | st.lists(METHOD, min_size=1, max_size=4),
        "layer": st.none() | st.integers(0, 3),
        "scope": st.sampled_from(["one", "all", "shared"]),
        "last": st.none() | st.integers(0, 3),
        "tokens": st.sampled_from(["all", "prompt", "generated", "last"]),
        "max_new_tokens": st.integers(1, 8),
        "temperature": st.floats(0, 5),
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(0, 300),
        "seed": st.integers(0, 2**31 - 1),
        "directions": st.just(""),
    },
    "extract": {
        "harmful": SETS,
        "harmless": SETS.map(lambda texts: [text.replace("Tell", "Sing") for text in texts]),
        "variant": st.sampled_from(["mean_difference", "median_difference", "leace", "logistic_probe"]),
        "position": st.sampled_from(["last", "mean", "instruction", "-2"]),
        "seed": st.integers(0, 2**31 - 1),
    },
    "project": {
        "prompt": PROMPT,
        "layers": st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=4),
        "directions": st.just(""),
    },
}
NEEDED = {"compare": {"prompt"}, "extract": {"harmful", "harmless"}, "project": {"prompt"}}


@dataclass(frozen=True)
class Request:
    """One call: where to, and what; ``most`` events are listened to if it is not 0, ``right`` ones must succeed."""

    route: str
    body: bytes
    most: int = 0
    right: bool = False


def encoded(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 3_000


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request in which none, some or all of it is wrong."""
    name = draw(st.sampled_from(["compare", "compare", "project", "extract"]))
    wrong = draw(st.sampled_from(["nothing", "nothing", "nothing", "one", "one", "many", "shape", "bytes"]))
    right = wrong == "nothing" and name != "extract"
    most = draw(st.sampled_from([0, 0, 0, 0, 0, 1]))
    if wrong == "bytes":
        body = draw(
            st.binary(max_size=40)
            | st.sampled_from([b"", b"{", b"[" * 100_000, b"9" * 10_000, b'{"data":' + b"[" * 5_000, b"\xff\xfe"])
            | JUNK.map(encoded)
            | st.just(b'{"data": ["' + b"x" * 1_100_000 + b'"]}')
        )
        return Request(f"{draw(st.sampled_from(['call', 'call/v2', 'run', 'api']))}/{name}", body)
    arguments: dict[str, Any] = {
        argument: draw(good) for argument, good in GOOD[name].items() if argument in NEEDED[name] or draw(st.booleans())
    }
    if name == "compare" and draw(st.integers(0, 3)) == 0:
        arguments |= {"layer": draw(st.integers(0, 2)), "scope": "window", "last": draw(st.integers(2, 3))}
    if wrong == "one":
        arguments[draw(st.sampled_from(list(GOOD[name])))] = draw(JUNK)
    elif wrong == "many":
        arguments = {argument: draw(JUNK) for argument in GOOD[name] if draw(st.booleans())}
    elif wrong == "shape":
        name = draw(st.sampled_from([name, "predict", "compare_1", "begin", "%2e%2e", "compare%00"]))
        arguments = {**arguments, **draw(st.dictionaries(LETTERS, JUNK, max_size=3))}
    if draw(st.booleans()):
        return Request(f"call/v2/{name}", encoded(arguments), most, right)
    order = list(GOOD.get(name, arguments))
    used = max((order.index(argument) + 1 for argument in arguments if argument in order), default=0)
    defaults = {"scope": "one", "tokens": "all", "max_new_tokens": 4, "temperature": 0, "top_p": 1, "top_k": 0}
    defaults |= {"seed": 0, "directions": "", "variant": "mean_difference", "position": "last"}
    data: Any = [arguments.get(argument, defaults.get(argument)) for argument in order[:used]]
    body = {"data": data}
    if wrong == "shape":
        body["data"] = draw(st.just(data) | JUNK | st.just(data * 5))
        body |= draw(st.dictionaries(st.sampled_from(["session_hash", "fn_index", "event_data", "batched"]), JUNK))
        if draw(st.integers(0, 4)) == 0:
            return Request("queue/join", encoded({"fn_index": 0, **body}))
    return Request(f"call/{name}", encoded(body), most, right)


def problem(reply: Reply) -> str | None:
    """What is wrong with the way a call ended, None if nothing is."""
    if reply.status >= 500:
        return f"status {reply.status}"
    if reply.outcome in ("complete", "left"):
        return None
    sentence = reply.sentence
    if reply.status == 422 and isinstance(sentence, list):  # FastAPI's own list, for a body of the wrong shape
        return None
    if not isinstance(sentence, str) or not sentence.strip() or len(sentence) > LONGEST_SENTENCE:
        return f"no sentence: {sentence!r:.200}"
    if "\n" in sentence or "Traceback" in sentence or "unexpected" in sentence:
        return f"not a clean sentence: {sentence:.200}"
    return None


@dataclass
class Canary(threading.Thread):
    """A visitor who asks the same again and again, greedily."""

    url: str
    runs: int = 0
    changes: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(name="canary", daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        first: list[str] | None = None
        with httpx.Client() as client:
            while not self.over.is_set():
                try:
                    reply = call(client, self.url, "call/v2/compare", CANARY, seconds=DEADLINE)
                    texts = [arm["text"] for arm in reply.result["arms"]] if reply.result else [str(reply.sentence)]
                except Exception as error:
                    texts = [repr(error)]
                if reply_differs(first, texts):
                    self.changes.append(f"{first} became {texts}")
                first = texts if first is None else first
                self.runs += 1


def reply_differs(first: list[str] | None, texts: list[str]) -> bool:
    return len(texts) != 4 if first is None else texts != first


def fuzz(url: str, calls: int, chosen: int) -> tuple[Counter[str], list[float]]:
    """Make the calls; outcomes by kind, and seconds a call.

    Raises:
        AssertionError: for the smallest request that ends badly.
    """
    counts: Counter[str] = Counter()
    seconds: list[float] = []
    with httpx.Client() as client:

        @seed(chosen)
        @settings(
            max_examples=calls,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(requests())
        def ends_well(request: Request) -> None:
            begun = time.monotonic()
            reply = call(client, url, request.route, request.body, seconds=DEADLINE, most=request.most)
            seconds.append(time.monotonic() - begun)
            counts[f"{request.route}: {reply.outcome} {reply.status}"] += 1
            if len(seconds) % 100 == 0:
                print(f"{len(seconds)} of {calls} calls", file=sys.stderr, flush=True)
            bad = problem(reply) or ("no result" if request.right and reply.sentence else None)
            assert bad is None, f"{bad} after {request.route} {request.body[:300]!r}"

        ends_well()
    return counts, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--address", help="of a running server; default: one is started, with a tiny model")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with nullcontext() if options.address else tiny_server(Path(folder)) as server:
            url = options.address or server.url
            canary = Canary(url)
            canary.start()
            begun = time.monotonic()
            try:
                counts, seconds = fuzz(url, options.calls, options.seed)
            finally:
                canary.over.set()
                canary.join(DEADLINE)
            lasted = time.monotonic() - begun
            ready = httpx.get(f"{url}/readyz", timeout=30).status_code == 200
            complaints = server.complaints if server else []
        result = {
            "calls": counts.total(),
            "seed": options.seed,
            "seconds": round(lasted, 1),
            "slowest_call": round(max(seconds), 2),
            "outcomes": dict(sorted(counts.items())),
            "canary_runs": canary.runs,
            "canary_changes": canary.changes,
            "server_ready": ready,
            "complaints_in_log": complaints,
        }
    print(json.dumps(result, ensure_ascii=False) if options.json else json.dumps(result, ensure_ascii=False, indent=2))
    return int(bool(canary.changes or complaints or not ready or not canary.runs))


if __name__ == "__main__":
    sys.exit(main())
