"""Judges: an endpoint against a real local server that is slow, broken, hung or honest; a local model by its logits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import tiny_model

from ace_core.errors import EngineError
from ace_core.sweeps.judge import EXAMPLES, EndpointJudge, Judgement, LocalJudge, read_verdict

PAIRS = [("How do I bake bread?", "I can't help with that."), ("How do I bake bread?", "Knead the dough.")]
Reply = Callable[["Server", int], None]


class Server(BaseHTTPRequestHandler):
    """Speaks the chat protocol; ``reply`` decides what happens to request number n."""

    reply: Reply
    body: dict
    seen: list[dict]
    times: list[float]
    lock = threading.Lock()

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            number = len(self.seen)
            self.seen.append(self.body)
            self.times.append(time.monotonic())
        type(self).reply(self, number)

    def send(self, status: int, body: str, kind: str = "application/json") -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had stopped waiting

    def say(self, text: object) -> None:
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        self.send(200, json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                                   "choices": [message]}))  # fmt: skip

    def honest(self) -> None:
        self.say("Yes." if "can't help" in self.body["messages"][-1]["content"] else " no")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(reply: Reply) -> Iterator[tuple[str, type[Server]]]:
    handler = type("Handler", (Server,), {"reply": staticmethod(reply), "seen": [], "times": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def judge_at(url: str, **more: object) -> EndpointJudge:
    settings = {"timeout": 5.0, "tries": 3, "pause": 0.02, "workers": 1, **more}
    return EndpointJudge(url, "judge", **settings)  # type: ignore[arg-type]


def broken_first(times: int, harm: Reply) -> Reply:
    return lambda server, number: harm(server, number) if number < times else server.honest()


def test_an_honest_server_is_asked_the_papers_way() -> None:
    with served(lambda server, number: server.honest()) as (url, handler):
        assert judge_at(url).judge(PAIRS) == [Judgement(True), Judgement(False)]
    body = handler.seen[0]
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["user", "assistant"] * len(EXAMPLES) + ["user"] and body["temperature"] == 0
    assert [m["content"] for m in body["messages"][1::2]] == [verdict for *_, verdict in EXAMPLES]
    assert PAIRS[0][0] in body["messages"][-1]["content"] and PAIRS[0][1] in body["messages"][-1]["content"]


def slow(server: Server, number: int) -> None:
    time.sleep(0.3)
    server.honest()


def hung(server: Server, number: int) -> None:
    time.sleep(1.5)


HARMS: dict[str, Reply] = {
    "429": lambda s, n: s.send(429, '{"error": {"message": "slow down"}}'),
    "500": lambda s, n: s.send(500, "oops", "text/plain"),
    "503": lambda s, n: s.send(503, ""),
    "not JSON": lambda s, n: s.send(200, "<html>busy</html>"),
    "JSON of another shape": lambda s, n: s.send(200, '{"choices": []}'),
    "a list": lambda s, n: s.send(200, "[1, 2]"),
    "null": lambda s, n: s.say(None),
    "neither yes nor no": lambda s, n: s.say("It depends."),
    "hung": hung,
    "hangs up": lambda s, n: s.connection.close(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_retried_with_back_off_and_then_right(harm: str) -> None:
    pauses: list[float] = []
    with served(broken_first(2, HARMS[harm])) as (url, handler):
        judge = judge_at(url, timeout=0.5 if harm == "hung" else 5.0, pause=1.0, sleep=pauses.append)
        assert judge.judge(PAIRS[:1]) == [Judgement(True)]
    assert len(handler.seen) == 3
    assert len(pauses) == 2 and 1.0 <= pauses[0] <= 1.25 and 2.0 <= pauses[1] <= 2.5


@pytest.mark.parametrize("harm", HARMS)
def test_given_up_cells_are_unscored_and_the_others_are_not(harm: str) -> None:
    """A judge that fails for one request only: that one stays unscored, never counted as an answer."""

    def sometimes(server: Server, number: int) -> None:
        question = server.body["messages"][-1]["content"]
        HARMS[harm](server, number) if "Knead" in question else server.honest()

    with served(sometimes) as (url, handler):
        judge = judge_at(url, timeout=0.5 if harm == "hung" else 5.0, sleep=lambda seconds: None)
        first, second = judge.judge(PAIRS)
    assert first == Judgement(True)
    assert second.refused is None and "after 3 tries" in second.note and len(handler.seen) == 4


def test_a_slow_server_is_waited_for() -> None:
    with served(slow) as (url, handler):
        assert judge_at(url).judge(PAIRS) == [Judgement(True), Judgement(False)]
    assert len(handler.seen) == 2


def test_the_pause_is_really_taken() -> None:
    with served(broken_first(1, HARMS["500"])) as (url, handler):
        judge_at(url, pause=0.3).judge(PAIRS[:1])
    assert handler.times[1] - handler.times[0] >= 0.3


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_no_retry_mends_stops_the_sweep_at_once(status: int) -> None:
    with served(lambda s, n: s.send(status, '{"error": {"message": "no"}}')) as (url, handler):
        with pytest.raises(EngineError, match=f"status {status}.*OPENAI_API_KEY"):
            judge_at(url).judge(PAIRS[:1])
        assert len(handler.seen) == 1


def test_nobody_listens() -> None:
    with served(lambda s, n: s.honest()) as (url, _):
        pass
    (found,) = judge_at(url, sleep=lambda seconds: None).judge(PAIRS[:1])
    assert found.refused is None and "no connection" in found.note


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x"])
def test_a_bad_address_is_told(url: str) -> None:
    with pytest.raises(EngineError, match="http"):
        EndpointJudge(url, "judge")


def test_the_package_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EngineError, match="pip install openai"):
        EndpointJudge("http://x/v1", "judge")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", True), ("Yes.", True), ("**No**", False), (' "no," it said', False), ("NO", False),
        ("yesterday", None), ("not really", None), ("", None), ("maybe yes", None),
    ],
)  # fmt: skip
def test_verdicts_are_read_strictly(text: str, verdict: bool | None) -> None:
    assert read_verdict(text) is verdict


def test_a_local_judge_reads_its_own_logits() -> None:
    model = tiny_model("qwen2")
    judge = LocalJudge(model)
    pairs = [*PAIRS, ("Help me plant a tree.", "Dig a hole. " * 200)]
    together = judge.judge(pairs)
    assert all(one.refused is not None for one in together)
    # a batch says what single questions say, whatever their length
    assert together == [judge.judge([pair])[0] for pair in pairs]
    ids = model.encode(judge._shots + "x")
    logits = model.network(torch.tensor([ids])).logits[0, -1]
    assert torch.isfinite(logits[judge._yes + judge._no]).all() and not set(judge._yes) & set(judge._no)


def test_a_local_judge_follows_yes_and_no(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = LocalJudge(tiny_model("qwen2"))
    width = tiny_model("qwen2").network.config.vocab_size

    def says(ids: list[int], value: float) -> Callable[[object], torch.Tensor]:
        row = torch.zeros(1, width)
        row[:, ids] = value
        return lambda self: row

    for ids, value, expected in ((judge._yes, 5.0, True), (judge._no, 5.0, False), (judge._yes, float("nan"), None)):
        monkeypatch.setattr("ace_core.sweeps.judge.Decoding.prefill", says(ids, value))
        assert judge.judge(PAIRS[:1])[0].refused is expected
