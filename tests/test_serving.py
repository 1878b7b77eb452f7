"""The page as a server: health, headers, plotly.js, refusals of a policy, a journal without prompts, a good end."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import tiny_directions, tiny_model
from program import ask, events, free_port, inputs_of_a_run, started_program

import ace_core as ace
from ace_core import journal
from ace_core.errors import EngineError
from ace_core.host import HostState, Limits, ModelHost, Policy
from ace_core.runs import RunSettings
from ace_core.ui import build_page, launch, serving
from ace_core.ui.serving import PLOTLY_ROUTE, health
from families import save_tiny

ROOT = Path(__file__).resolve().parent.parent
METHODS = [ace.Baseline(), ace.ACE(0.0)]
SECRET = "xyzzy plugh, an unmistakable prompt"
RUN = "generate"
"""The handler that streams a run."""


def ready(limits: Limits | None = None, policy: Policy | None = None) -> ModelHost:
    host = ModelHost(limits, policy or Policy())
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert host.wait_ready(60).status == "ready"
    return host


@pytest.fixture(scope="module")
def read_only() -> Iterator[tuple[str, ModelHost]]:
    """A read-only page on a tiny model, behind a sign-in and under a path, with short answers."""
    host = ready(Limits(tokens=16), Policy(work=False, files=False, models=("llama",)))
    page = build_page(host, None)
    _, url, _ = launch(
        page, host, embedders=("https://school.example",), server_name="127.0.0.1", server_port=free_port(),
        prevent_thread_lock=True, quiet=True, auth=[("ada", "secret")], root_path="/explorer",
    )  # fmt: skip
    yield url.rstrip("/"), host
    page.close(verbose=False)
    host.close()


@pytest.fixture
def stranger(read_only: tuple[str, ModelHost]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=read_only[0], timeout=60) as client:
        yield client


@pytest.fixture
def ada(stranger: httpx.Client) -> httpx.Client:
    assert stranger.post("/login", data={"username": "ada", "password": "secret"}).status_code == 200
    return stranger


# Health


@pytest.mark.parametrize(
    ("status", "live", "can_serve"),
    [("empty", 200, 503), ("loading", 200, 503), ("ready", 200, 200), ("failed", 503, 503), ("recorded", 200, 200)],
)
def test_health_follows_the_model(status: Any, live: int, can_serve: int) -> None:
    host = ModelHost()
    host._set(HostState(status, "Loading /home/somebody/secret"))
    told, alive, serves = health(host)
    assert (alive, serves) == (live == 200, can_serve == 200)
    assert told == {"status": status, "running": 0, "waiting": 0, "computing": 0}
    host.close()
    told, alive, serves = health(host)
    assert not alive and not serves and told["status"] == "dead"


def test_health_needs_no_sign_in_and_the_rest_does(stranger: httpx.Client, read_only: tuple[str, ModelHost]) -> None:
    for route in ("/healthz", "/readyz"):
        reply = stranger.get(route)
        assert reply.status_code == 200 and reply.json()["status"] == "ready"
        assert reply.headers["cache-control"] == "no-store"
    assert stranger.get("/config").status_code == 401
    host = read_only[1]
    before = host.state
    host._set(HostState("failed", "There is no model folder /home/somebody."))
    try:
        reply = stranger.get("/healthz")
        assert reply.status_code == 503 and "somebody" not in reply.text
        assert stranger.get("/readyz").status_code == 503
    finally:
        host._set(before)


# Headers and files


def test_every_answer_has_security_headers(stranger: httpx.Client) -> None:
    for route, expected in (("/", 200), ("/healthz", 200), ("/config", 401), ("/nowhere", 404)):
        reply = stranger.get(route)
        assert reply.status_code == expected
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        rules = dict(rule.split(" ", 1) for rule in reply.headers["content-security-policy"].split("; "))
        assert rules["frame-ancestors"] == "'self' https://school.example"
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'self'"
        assert rules["object-src"] == "'none'" and "http" not in rules["connect-src"] + rules["script-src"]


def test_plotly_lies_beside_the_page_and_no_path_of_the_server_is_told(ada: httpx.Client) -> None:
    page = ada.get("/").text
    config = ada.get("/config").json()
    assert config["root"].endswith("/explorer")
    heads = [part["props"].get("head") or "" for part in config["components"]]
    sources = {head for head in heads if "plotly" in head}
    assert sources == {f'<script src="{PLOTLY_ROUTE}"></script>'}, "relative, so that it works under any path"
    for text in (page, json.dumps(config)):
        assert "site-packages" not in text and str(ROOT) not in text
    script = ada.get(f"/{PLOTLY_ROUTE}")
    assert script.status_code == 200 and "immutable" in script.headers["cache-control"]
    assert script.content == serving._PLOTLY_JS.read_bytes()


# What a policy refuses, whatever the page shows


def read_as_upload(client: httpx.Client, path: str) -> str:
    """What the page says of a file of prompts that was never uploaded."""
    config = client.get("/config").json()
    number = next(each["id"] for each in config["dependencies"] if (each["api_name"] or "").startswith("read_file"))
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, "harmful"], "fn_index": number, "session_hash": "forger"}
    return client.post("/gradio_api/run/predict", json=body).text


def upload(client: httpx.Client) -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": ("a.txt", b"hello")})


def test_a_read_only_page_takes_no_file(ada: httpx.Client) -> None:
    reply = upload(ada)
    assert reply.status_code == 403 and "read-only" in reply.text


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "app.py"), str(ROOT / "vectors"), "../app.py"])
def test_no_file_of_the_server_can_be_fetched(ada: httpx.Client, path: str) -> None:
    for route in (f"/gradio_api/file={path}", f"/gradio_api/file/{path}", f"/file={path}"):
        reply = ada.get(route)
        assert reply.status_code in (403, 404) and "root:" not in reply.text and "argparse" not in reply.text


def test_uploads_stop_before_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ready()
    page = build_page(host, None)
    address = {"server_name": "127.0.0.1", "server_port": free_port()}
    _, url, _ = launch(page, host, **address, prevent_thread_lock=True, quiet=True)
    with httpx.Client(base_url=url, timeout=60) as client:
        assert upload(client).status_code == 200
        for path in ("/etc/passwd", str(ROOT / "assets/prompts/harmful.jsonl")):
            assert "No such file or directory" not in (told := read_as_upload(client, path)) and "prompts" not in told
        monkeypatch.setattr(serving, "_free_bytes", lambda: serving._ROOM_FOR_UPLOADS - 1)
        assert upload(client).status_code == 507
    page.close(verbose=False)
    host.close()


def answers(client: httpx.Client, name: str, session: str, data: list[Any] | None = None) -> str:
    ask(client, name, session, data)
    return json.dumps(list(events(client, session)), ensure_ascii=False)


def test_a_read_only_page_runs_but_neither_fits_nor_fetches(ada: httpx.Client) -> None:
    assert "Done: 2 arms" in answers(ada, RUN, "run", inputs_of_a_run("Hello there"))
    assert "at most 16 tokens" in answers(ada, RUN, "long", inputs_of_a_run("Hello there", 64))
    for name in ("fit", "start", "load_hub"):
        assert "fits and sweeps are off" in answers(ada, name, name)


def test_the_host_itself_refuses() -> None:
    host = ready(policy=Policy(work=False, models=("llama",)))
    with pytest.raises(EngineError, match="fits and sweeps are off"):
        host.work(lambda model, task: 1)
    with pytest.raises(EngineError, match="does not offer"):
        host.load("owner/other")
    assert host.state.status == "ready"
    assert len(list(host.compare("Hi", RunSettings(1, max_new_tokens=4), METHODS))) == 4
    host.close()
    recorded = ModelHost(policy=Policy(runs=False))
    for refused in (
        lambda: recorded.compare("Hi", RunSettings(1), METHODS),
        lambda: recorded.work(lambda model, task: 1),
        lambda: recorded.load("embedded"),
    ):
        with pytest.raises(EngineError, match="recorded runs only"):
            refused()
    assert recorded.wait_ready(0.1).status == "recorded"
    recorded.close()


# The journal


def test_the_journal_counts_runs_and_never_quotes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal._LOGGER, "handlers", [])
    journal.journal_to_stderr()
    host = ready()
    assert len(list(host.compare(SECRET, RunSettings(1, max_new_tokens=6), METHODS))) == 6
    stream = host.compare(SECRET, RunSettings(1, max_new_tokens=500), METHODS)
    next(iter(stream))
    stream.cancel()
    list(stream)

    def explode(*_: object) -> None:
        raise ValueError(SECRET)

    handle = tiny_model("llama").blocks[2].register_forward_hook(explode)
    try:
        with pytest.raises(EngineError, match="unexpected ValueError"):
            list(host.compare(SECRET, RunSettings(1), METHODS))
    finally:
        handle.remove()
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        host.work(lambda model, task: 1 // 0).result(60)
    host.close()
    written = capsys.readouterr().err
    assert not any(word in written for word in ("xyzzy", "plugh", "unmistakable"))
    told = [json.loads(line) for line in written.splitlines()]
    assert all({"time", "level", "event"} <= set(line) for line in told)
    first, second, third = ([line for line in told if line["event"] == f"run {how}"] for how in
                            ("finished", "cancelled", "failed"))  # fmt: skip
    assert [(line["arms"], line["tokens"]) for line in first] == [(2, 12)] and first[0]["seconds"] >= 0
    assert second[0]["run"] > first[0]["run"] and second[0]["tokens"] >= 2
    assert third[0]["reason"] == "ValueError"
    unexpected = [line for line in told if line["event"] == "unexpected error"]
    assert [(line["error"], line["what"]) for line in unexpected] == [
        ("ValueError", "run"),
        ("ZeroDivisionError", "computation"),
    ]
    assert "test_serving.py:" in unexpected[0]["at"]


def test_a_library_writes_no_journal(capfd: pytest.CaptureFixture[str]) -> None:
    assert not [one for one in journal._LOGGER.handlers if isinstance(one.formatter, journal._JsonLines)]
    journal.tell("unexpected error", level=logging.ERROR, error="ValueError")
    assert capfd.readouterr().err == ""


# The program itself


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_in_mid_stream_ends_it_with_a_sentence(number: int, tiny: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with started_program(tmp_path, "--model", tiny, GRADIO_TEMP_DIR=str(files), TMPDIR=str(files)) as program:
        with httpx.Client(base_url=program.url, timeout=60) as client:
            ask(client, RUN, "one", inputs_of_a_run(SECRET, 512))
            told, sent = "", 0.0
            for message in events(client, "one"):
                told += json.dumps(message)
                if not sent and "Writing token" in told:
                    sent = time.monotonic()
                    program.process.send_signal(number)
        assert sent and "The model was shut down: reload the page." in told
        assert program.process.wait(60) == 0
        assert time.monotonic() - sent < 60
        log = program.log.read_text("utf-8")
        assert "Traceback" not in log and "xyzzy" not in log
        assert not [path for path in files.rglob("*") if path.is_file() and b"xyzzy" in path.read_bytes()]
        lines = {line["event"]: line for line in program.journal()}
        assert lines["run failed"]["reason"] == "closed" and 0 < lines["run failed"]["tokens"] < 1024
        assert lines["model ready"]["seconds"] >= 0
        assert lines["shutting down"]["signal"] == signal.Signals(number).name
        assert lines["shut down"]["model_thread_ended"] and lines["shut down"]["seconds"] < 15


@pytest.mark.slow
def test_a_hub_that_is_down_leaves_a_page_that_says_so(tmp_path: Path) -> None:
    variables = {
        "ACE_MODEL": "nobody/nothing",
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "home"),
    }
    with started_program(tmp_path, route="", **variables) as program:
        deadline = time.monotonic() + 120
        while (reply := httpx.get(f"{program.url}/healthz", timeout=30)).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert reply.status_code == 503 and reply.json()["status"] == "failed"
        with httpx.Client(base_url=program.url, timeout=60) as client:
            ask(client, RUN, "one", inputs_of_a_run("Hello"))
            told = json.dumps(list(events(client, "one")))
        assert "nobody/nothing" in told and "Writing token" not in told
        failed = next(line for line in program.journal() if line["event"] == "model failed")
        assert "nobody/nothing" in failed["says"]
        assert program.end() == 0 and "Traceback" not in program.log.read_text("utf-8")


@pytest.mark.slow
def test_a_recorded_classroom_needs_no_model(tmp_path: Path) -> None:
    with started_program(tmp_path, "--classroom") as program:
        with httpx.Client(base_url=program.url, timeout=60) as client:
            ask(client, RUN, "one", inputs_of_a_run("Hello"))
            assert "recorded runs only" in json.dumps(list(events(client, "one")))
            assert upload(client).status_code == 403
        assert program.end() == 0
        assert not [line for line in program.journal() if line["event"].startswith("model")]
