"""The endpoints for programs, called over HTTP in a server of its own with a tiny model."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from conftest import tiny_directions, tiny_model
from gradio_client import Client
from gradio_client.exceptions import AppError
from program import free_port
from serving import ROOT, Reply, Server, call, tiny_server

from ace_core import lab
from ace_core.arms import SCOPES, TOKEN_SCOPES
from ace_core.errors import EngineError
from ace_core.host import ModelHost, Policy
from ace_core.methods import parse_method
from ace_core.prompts import Prompt
from ace_core.runs import Run, RunSettings
from ace_core.scheduling.limits import Limits
from ace_core.ui.api import arguments, attach, guarded
from ace_core.ui.api.endpoints import Endpoints
from ace_core.ui.api.fits import Fits

pytestmark = pytest.mark.slow
SOME = [f"Tell me about number {i}." for i in range(6)]
OTHER = [f"Sing about number {i}." for i in range(6)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tiny_server(tmp_path_factory.mktemp("server")) as made:
        yield made
        assert made.complaints == []


@pytest.fixture(scope="module")
def host(server: Server) -> Iterator[ModelHost]:
    """The same model and vectors in this process."""
    made = ModelHost()
    made.load(str(server.model), precision="float32", vectors=server.vectors)
    assert made.wait_ready(60).status == "ready"
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as made:
        yield made


def expected(host: ModelHost, prompt: str, settings: RunSettings, methods: list[str]) -> Run:
    stream = host.compare(prompt, settings, [parse_method(text) for text in methods])
    for _ in stream:
        pass
    assert stream.builder is not None
    return stream.builder.snapshot()


CASES: list[tuple[dict[str, Any], RunSettings]] = [
    ({}, RunSettings(layer=2, max_new_tokens=64)),
    (
        {"layer": 1, "scope": "window", "last": 3, "tokens": "generated", "max_new_tokens": 20},
        RunSettings(layer=1, scope="window", last=3, token_scope="generated", max_new_tokens=20),
    ),
    (
        {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 7, "max_new_tokens": 24, "scope": "shared"},
        RunSettings(layer=2, scope="shared", temperature=0.8, top_p=0.9, top_k=50, seed=7, max_new_tokens=24),
    ),
]


@pytest.mark.parametrize(("given", "settings"), CASES)
def test_compare_says_what_the_host_says(
    server: Server, host: ModelHost, client: Client, http: httpx.Client, given: dict[str, Any], settings: RunSettings
) -> None:
    methods = ["baseline", "addition:-1", "ablation", "ace:0"]
    right = expected(host, "How do I pick a lock?", settings, methods)
    by_client = client.predict("How do I pick a lock?", **given, api_name="/compare")
    by_http = call(http, server.url, "call/v2/compare", {"prompt": "How do I pick a lock?", **given}).result
    for result in (by_client, by_http):
        assert [arm["text"] for arm in result["arms"]] == [arm.text for arm in right.arms]
        run = Run.from_json(result["run"])
        assert run.settings == settings and run.prompt_tokens == right.prompt_tokens
        for arm, shown, true in zip(run.arms, result["arms"], right.arms, strict=True):
            assert arm.token_ids == true.token_ids and arm.stop == true.stop == shown["stop"]
            assert np.allclose(arm.before, true.before, atol=1e-3) and np.allclose(arm.after, true.after, atol=1e-3)
            assert np.allclose(shown["coordinates"], true.after[settings.layer, len(run.prompt_tokens) :], atol=1e-3)


def test_compare_streams_texts_that_only_grow(client: Client) -> None:
    job = client.submit("Tell me a story", methods=["ace:0.5@pooled", "ace:1"], max_new_tokens=200, api_name="/compare")
    updates = list(job)
    assert len(updates) > 3 and [update["status"] for update in updates[:-1]] == ["running"] * (len(updates) - 1)
    last = updates[-1]
    assert last["status"] == "done" and set(last) - set(updates[0]) == {"run"}
    for before, after in itertools.pairwise(updates):
        for old, new in zip(before["arms"], after["arms"], strict=True):
            assert new["text"].startswith(old["text"]) and new["tokens"] >= old["tokens"]
            assert new["coordinates"][: len(old["coordinates"])] == old["coordinates"]
    assert {tuple(arm["coordinates"]) for arm in last["arms"]} == {(1.0,) * 199}


def test_arguments_by_place_or_by_name_mean_the_same(server: Server, http: httpx.Client) -> None:
    by_place = call(http, server.url, "call/compare", {"data": ["Hi", ["ace:0"], 1, "one", None, "all", 9]}).result
    named = {"prompt": "Hi", "methods": ["ace:0"], "layer": 1, "max_new_tokens": 9}
    by_name = call(http, server.url, "call/v2/compare", named).result
    assert by_place["arms"] == by_name["arms"] and by_place["arms"][0]["tokens"] == 9


def test_project_is_the_baselines_reading(host: ModelHost, client: Client) -> None:
    right = expected(host, "How do I pick a lock?", RunSettings(layer=0, max_new_tokens=1), ["baseline"])
    result = client.predict("How do I pick a lock?", layers=[0, 3, 0], api_name="/project")
    assert tuple(result["tokens"]) == right.prompt_tokens
    assert [entry["layer"] for entry in result["layers"]] == [0, 3]
    for entry in result["layers"]:
        assert np.allclose(entry["coordinates"], right.arms[0].before[entry["layer"]], atol=1e-3)
    (own,) = client.predict("Hi", api_name="/project")["layers"]
    assert own["layer"] == result["recommended_layer"]


def test_extract_fits_what_the_lab_fits_and_its_name_can_be_used(host: ModelHost, client: Client) -> None:
    updates = list(client.submit(SOME, OTHER, variant="median_difference", api_name="/extract"))
    fitted = updates[-1]
    assert fitted["status"] == "done" and len(fitted["layers"]) == 4
    sets = [lab.LabSet(tuple(map(Prompt, texts)), "a test", "none") for texts in (SOME, OTHER)]
    request = lab.LabRequest(lab.split_sets(*sets, seed=0, limit=100), lab.LabOptions(variant="median_difference"))
    fit = host.work(lambda model, task: lab.fit_lab(model, task, request)).result(60)
    assert fitted["recommended_layer"] == fit.directions.recommended_layer
    assert np.allclose([entry["origin"] for entry in fitted["layers"]], fit.directions.origin.numpy(), atol=1e-3)
    layers = list(range(4))
    theirs = client.predict("Hello", layers, fitted["directions"], api_name="/project")
    stream = host.compare("Hello", lab.READING, lab.READING_METHODS, fit.directions)
    list(stream)
    assert stream.builder is not None
    mine = stream.builder.snapshot().arms[0].before
    assert np.allclose([entry["coordinates"] for entry in theirs["layers"]], mine, atol=2e-3)
    own = client.predict("Hello", layers, api_name="/project")
    assert not np.allclose([entry["coordinates"] for entry in own["layers"]], mine, atol=2e-3)
    compared = client.predict(
        "Hello", ["ace:0.25"], layer=1, max_new_tokens=5, directions=fitted["directions"], api_name="/compare"
    )
    assert compared["arms"][0]["coordinates"] == [0.25] * 4


def deep(depth: int) -> Any:
    return [deep(depth - 1)] if depth else []


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("compare", {"prompt": ""}, "'prompt' must be a text"),
        ("compare", {"prompt": 3}, "'prompt' must be a text"),
        ("compare", {"prompt": "x" * 4_001}, "4,001 characters: shorten"),
        ("compare", {"prompt": "Hi", "methods": []}, "'methods' must be a list of 1 to 8"),
        ("compare", {"prompt": "Hi", "methods": ["baseline"] * 9}, "'methods' must be a list of 1 to 8"),
        ("compare", {"prompt": "Hi", "methods": "ace:0"}, "'methods' must be a list of 1 to 8"),
        ("compare", {"prompt": "Hi", "methods": [["ace:0"]]}, "must be a short text"),
        ("compare", {"prompt": "Hi", "methods": ["magic"]}, "Unknown method 'magic'"),
        ("compare", {"prompt": "Hi", "methods": ["ace:nan"]}, "out of range"),
        ("compare", {"prompt": "Hi", "methods": ["ace:0@third"]}, "no third set's mean"),
        ("compare", {"prompt": "Hi", "layer": 4}, "'layer' must be a whole number from 0 to 3"),
        ("compare", {"prompt": "Hi", "layer": True}, "'layer' must be a whole number"),
        ("compare", {"prompt": "Hi", "layer": 1.5}, "'layer' must be a whole number"),
        ("compare", {"prompt": "Hi", "layer": 10**30}, "'layer' must be a whole number"),
        ("compare", {"prompt": "Hi", "scope": "everything"}, "'scope' must be one of one, window, all, shared"),
        ("compare", {"prompt": "Hi", "scope": "window"}, "'last' must be a whole number from 2 to 3"),
        ("compare", {"prompt": "Hi", "tokens": None}, "'tokens' must be one of"),
        ("compare", {"prompt": "Hi", "max_new_tokens": 513}, "from 1 to 512"),
        ("compare", {"prompt": "Hi", "temperature": -1}, "'temperature' must be a number from 0 to 5"),
        ("compare", {"prompt": "Hi", "top_p": 0}, "Top-p must be above 0"),
        ("compare", {"prompt": "Hi", "seed": -1}, "'seed' must be a whole number"),
        ("compare", {"prompt": "Hi", "directions": "mine"}, "'directions' must be empty"),
        ("compare", {"prompt": "Hi", "directions": ["mine"]}, "'directions' must be empty"),
        ("extract", {"harmful": SOME[:4], "harmless": OTHER}, "'harmful' must be a list of 5 to 100"),
        ("extract", {"harmful": SOME, "harmless": [*OTHER, 1]}, "'harmless[6]' must be a text"),
        ("extract", {"harmful": SOME, "harmless": SOME}, "in both sets"),
        ("extract", {"harmful": SOME, "harmless": ["same"] * 6}, "different prompts"),
        ("extract", {"harmful": SOME, "harmless": OTHER, "variant": "best"}, "'variant' must be one of"),
        ("extract", {"harmful": SOME, "harmless": OTHER, "position": "first"}, "Unknown position"),
        ("extract", {"harmful": SOME, "harmless": OTHER, "position": "-999"}, "before the start"),
        ("project", {"prompt": "Hi", "layers": [0, 4]}, "'layers[1]' must be a whole number"),
        ("project", {"prompt": "Hi", "layers": 2}, "'layers' must be a list"),
    ],
)
def test_bad_arguments_get_a_sentence(
    server: Server, http: httpx.Client, name: str, given: dict[str, Any], sentence: str
) -> None:
    reply = call(http, server.url, f"call/v2/{name}", given)
    assert reply.outcome == "error" and sentence in reply.sentence
    assert len(reply.sentence) < 400 and "\n" not in reply.sentence and "unexpected" not in reply.sentence


@pytest.mark.parametrize(
    ("route", "body", "status", "sentence"),
    [
        ("call/compare", {"data": []}, 400, "compare needs 'prompt'"),
        ("call/compare", {"data": ["Hi"] * 13}, 400, "at most 12 arguments"),
        ("call/compare", {"data": "Hi"}, 400, "must hold 'data'"),
        ("call/compare", {"data": [FILE]}, 400, "'prompt' holds an object"),
        ("call/v2/extract", {"harmful": [FILE], "harmless": []}, 400, "'harmful' holds an object"),
        ("call/v2/compare", {"prompt": "Hi", "model": "gpt2"}, 400, "no argument 'model'"),
        ("call/v2/compare", {}, 400, "compare needs 'prompt'"),
        ("call/compare", b"", 400, "not JSON"),
        ("call/compare", b"\xff", 400, "not JSON"),
        ("call/compare", b'{"data": [' + b"9" * 5_000 + b"]}", 400, "not JSON"),
        ("call/compare", b"[" * 100_000, 400, "not JSON"),
        ("call/compare", {"data": [deep(50)]}, 400, "nested deeper"),
        ("call/compare", b'{"data": ["Hi", null, NaN]}', 400, "holds NaN"),
        ("call/compare", {"data": ["\ud800"]}, 400, "half a character"),
        ("call/compare", b"[1]", 400, "must be a JSON object"),
        ("call/compare", {"data": ["x" * 1_000_001]}, 413, "larger than 1,000,000 bytes"),
        ("call/nothing", {"data": []}, 404, "no endpoint 'nothing': call compare, project, extract"),
        ("call/generate", {"data": []}, 404, "no endpoint 'generate'"),
        ("run/compare", {"data": ["Hi"]}, 404, "no such event"),
        ("run/predict", {"fn_index": 0, "data": ["Hi"]}, 404, "does not accept direct"),
        ("queue/join", {"fn_index": 99_999, "data": [], "session_hash": "a"}, 404, "no such event"),
        ("queue/join", {"fn_index": [], "data": [], "session_hash": "a"}, 404, "no such event"),
        ("queue/join", {"fn_index": 0, "data": ["Hi"] * 13, "session_hash": "a"}, 400, "at most 12 arguments"),
        ("queue/join", {"fn_index": 9, "session_hash": "a"}, 400, "reload it"),
    ],
)
def test_requests_that_fit_no_endpoint_are_refused_at_once(
    server: Server, http: httpx.Client, route: str, body: Any, status: int, sentence: str
) -> None:
    reply = call(http, server.url, route, body)
    assert (reply.outcome, reply.status) == ("refused", status) and sentence in reply.sentence


def test_the_client_shows_the_sentence(client: Client) -> None:
    with pytest.raises(AppError, match="'layer' must be a whole number from 0 to 3"):
        client.predict("Hi", layer=99, api_name="/compare")


def test_an_unknown_event_ends_at_once(server: Server, http: httpx.Client) -> None:
    reply = http.get(f"{server.url}/gradio_api/call/compare/unknown", timeout=60)
    assert reply.text.startswith("event: error\n")


def test_a_caller_who_leaves_frees_the_model(server: Server, http: httpx.Client) -> None:
    body = {"prompt": "Tell me a long story", "max_new_tokens": 512}
    assert call(http, server.url, "call/v2/compare", body, most=1).outcome == "left"
    settled(lambda: not http.get(f"{server.url}/healthz", timeout=60).json()["running"])


def test_the_page_of_the_api_documents_three_endpoints(server: Server, http: httpx.Client) -> None:
    info = http.get(f"{server.url}/gradio_api/info", timeout=60).json()
    endpoints = info["named_endpoints"]
    assert set(endpoints) == {"/compare", "/extract", "/project"} and not info["unnamed_endpoints"]
    for endpoint in endpoints.values():
        assert len(endpoint["description"]) > 80 and "Args" not in endpoint["description"]
        for parameter in endpoint["parameters"]:
            assert parameter["python_type"]["type"] not in ("", "Any") and parameter["label"]
            assert len(parameter["python_type"]["description"]) > 20
        (result,) = endpoint["returns"]
        assert (result["label"], result["python_type"]["type"]) == ("result", "dict(str, Any)")
    types = {each["parameter_name"]: each["type"] for each in endpoints["/compare"]["parameters"]}
    assert types["scope"]["enum"] == list(SCOPES) and types["tokens"]["enum"] == list(TOKEN_SCOPES)


def test_a_read_only_page_fits_nothing_and_a_recorded_one_runs_nothing() -> None:
    request = gr.Request()
    read_only = ModelHost(policy=Policy(work=False))
    read_only.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert read_only.wait_ready(30).status == "ready"
    with pytest.raises(gr.Error, match="read-only"):
        list(Endpoints(read_only).extract(request, SOME, OTHER))
    assert list(Endpoints(read_only).compare(request, "Hi", max_new_tokens=2))[-1]["status"] == "done"
    read_only.close()
    recorded = ModelHost(policy=Policy(runs=False))
    with pytest.raises(gr.Error, match="recorded runs only"):
        list(Endpoints(recorded).compare(request, "Hi"))
    with pytest.raises(gr.Error, match="recorded runs only"):
        Endpoints(recorded).project(request, "Hi")
    recorded.close()


def test_the_servers_own_caps_hold_for_programs() -> None:
    request = gr.Request(session_hash="ada")
    host = ModelHost(limits=Limits(tokens=20, visitor_tasks=1))
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert host.wait_ready(30).status == "ready"
    with pytest.raises(gr.Error, match="from 1 to 20"):
        list(Endpoints(host).compare(request, "Hi", max_new_tokens=21))
    hold = threading.Event()
    task = host.work(lambda model, task: hold.wait(60), visitor="ada")
    with pytest.raises(gr.Error, match="your computations"):
        list(Endpoints(host).extract(request, SOME, OTHER))
    hold.set()
    assert task.result(60)
    assert list(Endpoints(host).extract(request, SOME, OTHER))[-1]["status"] == "done"
    host.close()


def test_a_call_leaves_nothing_in_gradio(http: httpx.Client) -> None:
    host = ModelHost()
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    with gr.Blocks(analytics_enabled=False) as page:
        attach(page, host)
    page.queue()
    arguments = {"app_kwargs": {"middleware": [guarded(page, unfollowed=2)]}, "ssr_mode": False, "quiet": True}
    _, url, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, **arguments)
    url, sessions, queue = url.rstrip("/"), page.state_holder.session_data, page._queue
    kept = (sessions, queue.pending_messages_per_session, queue.pending_event_ids_session)
    try:
        for route, given in (("compare", {"max_new_tokens": 3}), ("compare", {"layer": 9}), ("project", {})):
            call(http, url, f"call/v2/{route}", {"prompt": "Hi", **given})
            settled(lambda: not any(kept))
        long = {"prompt": "Hi", "max_new_tokens": 512}
        assert call(http, url, "call/v2/compare", long, most=1).outcome == "left"
        settled(lambda: not any(kept) and not host.active)
        # nobody follows these
        posts = [http.post(f"{url}/gradio_api/call/v2/compare", json=long, timeout=60) for _ in range(6)]
        settled(lambda: host.active <= 2 and len(queue.pending_messages_per_session) == 2 and len(sessions) <= 2)
        told = http.get(f"{url}/gradio_api/call/compare/{posts[-1].json()['event_id']}", timeout=60).text
        assert "event: complete" in told
        told = http.get(f"{url}/gradio_api/call/compare/{posts[0].json()['event_id']}", timeout=60).text
        assert told.startswith("event: error")
    finally:
        page.close(verbose=False)
        host.close()


def settled(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_fits_are_forgotten_in_order_and_belong_to_one_model() -> None:
    host = ModelHost()
    host.adopt(tiny_model("llama"), tiny_directions("llama"))
    state = host.wait_ready(30)
    fits, own = Fits(most=2), tiny_directions("llama")
    names = [fits.keep(own, state.info) for _ in range(2)]
    assert fits.find(names[0], state) is own and fits.find("", state) is state.directions
    fits.keep(own, state.info)
    with pytest.raises(EngineError, match="lately"):
        fits.find(names[1], state)
    assert fits.find(names[0], state) is own
    other = fits.keep(own, None)
    with pytest.raises(EngineError, match="for this model"):
        fits.find(other, state)
    host.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True, [], 10**400])
def test_no_number_out_of_range_passes(value: Any) -> None:
    for check in (arguments.whole, arguments.number):
        with pytest.raises(EngineError, match="'it' must be a"):
            check(value, "it", 0, 5)
    assert arguments.whole(3.0, "it", 0, 5) == 3


def fuzzer() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_api", ROOT / "tests" / "benchmarks" / "fuzz_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_api"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_fuzzed_calls_end_well(server: Server) -> None:
    script = ROOT / "tests" / "benchmarks" / "fuzz_api.py"
    command = [sys.executable, str(script), "--calls", "60", "--seed", "11", "--address", server.url, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3_000:]
    told = json.loads(done.stdout)
    kinds = {outcome.split()[-2] for outcome in told["outcomes"]}
    assert told["calls"] >= 60 and told["canary_runs"] > 1 and kinds >= {"complete", "error", "refused"}
    assert server.complaints == []


def test_the_fuzzer_notices_bad_ends() -> None:
    module = fuzzer()
    assert module.problem(Reply("complete", 200, result={})) is None
    assert module.problem(Reply("error", 200, sentence="'layer' must be a whole number from 0 to 3.")) is None
    for bad in (
        Reply("refused", 500, sentence="Internal Server Error"),
        Reply("error", 200, sentence=None),
        Reply("error", 200, sentence="x" * 500),
        Reply("error", 200, sentence="Traceback (most recent call last):\n  File"),
        Reply("error", 200, sentence="The call stopped because of an unexpected KeyError."),
        Reply("refused", 400, sentence={"a": 1}),
    ):
        assert module.problem(bad) is not None
    assert module.reply_differs(["a"] * 4, ["a", "a", "a", "b"]) and module.reply_differs(None, ["an error"])
    assert not module.reply_differs(None, ["a"] * 4) and not module.reply_differs(["a"] * 4, ["a"] * 4)


README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.skipif("gradio_client" not in README, reason="the README has no example of the API")
def test_the_readmes_examples_run(server: Server, tmp_path: Path) -> None:
    (python,) = [code for code in re.findall(r"```py\n(.*?)```", README, re.DOTALL) if "gradio_client" in code]
    (shell,) = [code for code in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "gradio_api" in code]
    for command in ([sys.executable, "-c", python], ["bash", "-euc", shell]):
        command[-1] = command[-1].replace("http://127.0.0.1:7860", server.url)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2_000:]
        assert "ACE, α = 0" in done.stdout or '"status": "done"' in done.stdout, done.stdout[-2_000:]
