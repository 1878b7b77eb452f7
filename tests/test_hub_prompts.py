"""Tests of prompt sets from the hub, against a small local server that speaks the hub's own interface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatch
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from ace_core.errors import EngineError
from ace_core.prompts import hub as module
from ace_core.prompts.hub import load_hub_prompts
from ace_core.prompts.known_sets import KNOWN_SETS

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"

WORKER = """
import json, sys
from dataclasses import asdict
from ace_core.errors import EngineError
from ace_core.prompts.hub import load_hub_prompts
for line in sys.stdin:
    told = []
    try:
        found = load_hub_prompts(**json.loads(line), progress=lambda message, fraction: told.append(message))
        answer = asdict(found) | {"told": told}
    except EngineError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


def card(**fields: Any) -> bytes:
    return f"---\n{json.dumps(fields)}\n---\n# Card\n".encode()


def configs(**paths: Any) -> list[dict[str, Any]]:
    return [{"config_name": name, "data_files": files} for name, files in paths.items()]


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def repositories(outside: Path) -> dict[str, dict[str, bytes]]:
    """Files by data set. Owners `gated` and `broken` are refused by the server."""
    number = {"note": "n", "number": 3}
    jbb = b"Index,Goal,Category\n0,%s,Fraud\n1,Two,Malware\n"
    splits = [{"split": part, "path": f"data/{part}.csv"} for part in ("harmful", "benign")]
    xstest = [
        {"id": 1, "prompt": "Safe one", "type": "homonyms", "label": "safe"},
        {"id": 2, "prompt": "Unsafe", "type": "contrast_homonyms", "label": "unsafe"},
        {"id": 3, "prompt": "Safe two", "type": "definitions", "label": "safe"},
    ]
    alpaca = [
        {"instruction": "Bake bread", "input": "", "output": "o", "text": "t"},
        {"instruction": "Sum up", "input": "a text", "output": "o", "text": "t"},
        {"instruction": "Plant a tree", "input": " ", "output": "o", "text": "t"},
    ]
    picture = {"bytes": b"no picture", "path": None}
    pictures = card(
        dataset_info={"features": [{"name": "image", "dtype": "image"}, {"name": "text", "dtype": "string"}]}
    )
    return {
        "JailbreakBench/JBB-Behaviors": {
            "README.md": card(license="mit", configs=configs(behaviors=splits, judge_comparison="judge.csv")),
            "data/harmful.csv": jbb % b"Harmful",
            "data/benign.csv": jbb % b"Benign",
            "judge.csv": b"prompt\nx\n",
        },
        "Paul/XSTest": {"README.md": card(license="cc-by-4.0"), "data/train.parquet": parquet(xstest)},
        "tatsu-lab/alpaca": {"README.md": card(license="cc-by-nc-4.0"), "data/train.parquet": parquet(alpaca)},
        "some/alpaca-like": {"train.jsonl": jsonl(*alpaca)},
        "bench-llm/or-bench": {
            "README.md": card(configs=configs(**{"or-bench-80k": "a.csv", "or-bench-toxic": "b.csv"})),
            "a.csv": b"prompt,category\nAll,x\n",
            "b.csv": b"prompt,category\nToxic,y\n",
        },
        "some/rows": {
            "README.md": card(license=["mit", "other"]),
            "data/train.jsonl": jsonl(
                number | {"Prompt": " One "},
                number | {"Prompt": None},
                number | {"Prompt": "x" * 4_001},
                number | {"Prompt": "Two\u2028lines"},
                number | {"Prompt": "nul\0"},
                number | {"Prompt": "Three"},
            ),
            "data/test.jsonl": jsonl(number | {"Prompt": "Test"}),
        },
        "some/pictures": {"README.md": pictures, "a.parquet": parquet([{"image": picture, "text": "Look"}])},
        "some/numbers": {"a.parquet": parquet([{"n": 1, "m": 2.5}])},
        "some/empty-text": {"a.csv": b"prompt,x\n,1\n,2\n"},
        "some/script": {"script.py": b"raise SystemExit", "a.csv": b"prompt\nx\n"},
        "some/nothing": {"README.md": card(license="mit"), "a.bin": b"x"},
        "some/archive": {"a.tar": b"x" * 1024},
        "some/garbage": {"a.parquet": b"PAR1 this is no parquet file PAR1"},
        "some/outside": {"README.md": card(configs=configs(default=str(outside))), "a.csv": b"prompt\nx\n"},
        "some/elsewhere": {"README.md": card(configs=configs(default="hf://datasets/some/empty-text/a.csv"))},
        "gated/set": {"README.md": card(license="mit"), "a.csv": b"prompt\nx\n"},
        "gated/asked": {"README.md": card(license="mit"), "a.csv": b"prompt\nx\n"},
        "broken/set": {"a.csv": b"prompt\nx\n"},
        "some/huge": {"a.jsonl": jsonl(*({"prompt": f"Prompt {n} {'x' * 900}"} for n in range(60_000)))},
    }


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as reading data sets takes."""

    protocol_version = "HTTP/1.1"
    files: dict[str, dict[str, bytes]]
    sent: dict[str, int]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

    def answer(self, form: dict[str, list[str]] | None = None) -> None:
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(
            r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/(resolve|revision|tree|paths-info)/([^/]+)/?(.*))?", path
        )
        if match is None:
            return self.reply(404, b"{}")
        name, kind, revision, rest = match.groups()
        if name.startswith("broken/"):
            return self.reply(500, b"{}")
        if name.startswith("gated/") and kind in ("resolve", "tree", "paths-info"):  # its description is public
            return self.reply(403 if name == "gated/asked" else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        if name not in self.files:
            return self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if kind and revision not in ("main", COMMIT):
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.files[name]
        entries = [
            {"type": "file", "path": file, "size": len(data), "oid": sha1(data).hexdigest()}
            for file, data in files.items()
        ]
        entries += [
            {"type": "directory", "path": folder, "size": 0, "oid": sha1(folder.encode()).hexdigest()}
            for folder in {file.rpartition("/")[0] for file in files} - {""}
        ]
        if kind == "resolve":
            if rest not in files:
                return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return self.reply(200, files[rest], {"ETag": f'"{sha1(files[rest]).hexdigest()}"'})
        if kind == "tree":
            if rest and not any(file.startswith(rest + "/") for file in files):
                return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            deep = "recursive" in self.path.lower() and "recursive=false" not in self.path.lower()
            found = [e for e in entries if fnmatch(e["path"], f"{rest}/*" if rest else "*")]
            found = [e for e in found if deep or "/" not in e["path"][len(rest) + 1 if rest else 0 :]]
            return self.reply(200, json.dumps(found).encode())
        if kind == "paths-info":
            return self.reply(200, json.dumps([e for e in entries if e["path"] in (form or {})["paths"]]).encode())
        return self.reply(
            200, json.dumps({"id": name, "sha": COMMIT, "siblings": [], "cardData": self.card(files)}).encode()
        )

    def card(self, files: dict[str, bytes]) -> Any:
        return json.loads(files["README.md"].split(b"\n")[1]) if "README.md" in files else None

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span and status == 200:
            whole, start = len(body), int(span[1])
            body, status = body[start : int(span[2]) + 1 if span[2] else None], 206
            headers = {**(headers or {}), "Content-Range": f"bytes {start}-{start + len(body) - 1}/{whole}"}
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                for start in range(0, len(body), 65_536):
                    self.wfile.write(body[start : start + 65_536])
                    self.sent[self.path] = self.sent.get(self.path, 0) + 65_536
            except OSError:  # the reader has enough
                self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Reader:
    """Another process that loads prompts, because hub libraries read their settings when imported."""

    def __init__(self, folder: Path, **settings: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "no_proxy": "*", **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __call__(self, name: str, **options: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"name": name, **options}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def sent() -> dict[str, int]:
    """Bytes that the server sent, by address."""
    return {}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's working directory, where local files lie in wait under the names of data sets."""
    folder = tmp_path_factory.mktemp("hub")
    for name in ("secret.csv", "some/rows/a.csv", "no/such/a.csv", "hf:/datasets/some/rows/a.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("prompt\nlocal\n", encoding="utf-8")
    (folder / "some/rows/rows.py").write_text("raise SystemExit", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def load(place: Path, sent: dict[str, int]) -> Iterator[Reader]:
    pytest.importorskip("datasets", minversion="4.8", reason="the library 'datasets' is not installed")
    handler = type("Hub", (Hub,), {"files": repositories(place / "secret.csv"), "sent": sent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    reader = Reader(place, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    yield reader
    reader.close()
    server.shutdown()
    thread.join()
    server.server_close()


def texts(answer: dict[str, Any]) -> list[str]:
    return [prompt["text"] for prompt in answer["prompts"]]


def check_sentence(message: str) -> None:
    assert message.endswith(".") and "\n" not in message and ". " not in message and len(message) < 400


def test_a_known_set(load: Reader) -> None:
    answer = load("JailbreakBench-Harmful")
    assert answer.pop("told") == [
        "Looking up JailbreakBench/JBB-Behaviors on the hub",
        "0 rows read, 0 prompts",
    ]
    rest = {"form": "", "split": "", "label": "harmful", "language": "en"}
    assert answer == {
        "prompts": [
            {"text": "Harmful", "id": "harmful-0", "category": "Fraud"} | rest,
            {"text": "Two", "id": "harmful-1", "category": "Malware"} | rest,
        ],
        "source": "JailbreakBench/JBB-Behaviors at revision 01234567, config behaviors, split harmful, column Goal",
        "licence": "mit",
        "revision": COMMIT,
        "column": "Goal",
        "split": "harmful",
        "skipped": 0,
        "complete": True,
    }


@pytest.mark.parametrize(
    ("name", "expected", "label", "words"),
    [
        ("jailbreakbench-benign", ["Benign", "Two"], "lookalike", "split benign"),
        ("xstest-safe", ["Safe one", "Safe two"], "lookalike", "rows whose label is safe"),
        ("xstest-unsafe", ["Unsafe"], "harmful", "rows whose label is unsafe"),
        ("alpaca", ["Bake bread", "Plant a tree"], "harmless", "column instruction, rows whose input is empty"),
        ("some/alpaca-like", ["Bake bread", "Plant a tree"], "", "column instruction, rows whose input is empty"),
        ("orbench-80k", ["All"], "lookalike", "config or-bench-80k"),
        ("orbench-toxic", ["Toxic"], "harmful", "config or-bench-toxic"),
        ("some/pictures", ["Look"], "", "column text"),
    ],
)
def test_rows_labels_and_source(load: Reader, name: str, expected: list[str], label: str, words: str) -> None:
    answer = load(name)
    assert texts(answer) == expected
    assert {prompt["label"] for prompt in answer["prompts"]} == {label}
    assert words in answer["source"]


def test_licences(load: Reader) -> None:
    names = ["some/rows", "orbench-toxic", "bench-llm/or-bench", "xstest-safe"]
    options: list[dict[str, Any]] = [{}, {}, {"config": "or-bench-toxic"}, {}]
    found = [load(name, **option)["licence"] for name, option in zip(names, options, strict=True)]
    assert found == ["mit, other", "cc-by-4.0", "unknown", "cc-by-4.0"]


def test_any_set_with_unusable_rows_despite_local_files_of_its_name(load: Reader) -> None:
    answer = load("some/rows")
    assert texts(answer) == ["One", "Two\u2028lines", "Three"]
    assert [prompt["id"] for prompt in answer["prompts"]] == ["train-0", "train-3", "train-5"]
    assert (answer["skipped"], answer["complete"], answer["split"], answer["column"]) == (3, True, "train", "Prompt")
    assert texts(load("some/rows", split="test", column=" pROMPT", revision=COMMIT)) == ["Test"]
    assert texts(load("some/rows", column="note", revision="main")) == ["n"] * 6
    assert load("some/rows", max_chars=5_000)["skipped"] == 2


def test_the_limit(load: Reader) -> None:
    answer = load("some/rows", limit=2)
    assert (len(answer["prompts"]), answer["complete"]) == (2, False)
    assert answer["source"].endswith("column Prompt, the first 2 prompts")
    assert load("some/rows", limit=3)["complete"] is True


def test_a_huge_set_is_not_downloaded_whole(load: Reader, sent: dict[str, int]) -> None:
    answer = load("some/huge", limit=100)
    assert (len(answer["prompts"]), answer["complete"]) == (100, False)
    (size,) = [size for address, size in sent.items() if address.endswith("/a.jsonl") and "some/huge" in address]
    assert 0 < size < 40_000_000  # of 58 million
    assert [message for message in load("some/huge", limit=3_000)["told"] if message.startswith("2000")]


FORMS = "holds no files of rows (parquet, csv, json, text): choose another data set."


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gated/set", {}, "is gated: accept its conditions at https://huggingface.co/datasets/gated/set and log in"),
        ("gated/asked", {}, "at https://huggingface.co/datasets/gated/asked and log in with 'hf auth login'."),
        ("no/such", {}, "The hub has no data set no/such: check the spelling, or log in with 'hf auth login'"),
        ("advbench", {}, "The hub has no data set walledai/AdvBench: check the spelling"),
        ("broken/set", {}, "The hub refuses or fails to send broken/set: try again later, or use a prompt file."),
        ("some/rows", {"revision": "no"}, "some/rows has no such revision: check the branch, tag or commit."),
        ("some/rows", {"split": "dev"}, "some/rows has no split 'dev': choose one of 'train', 'test'."),
        ("some/rows", {"split": "train[:2]"}, "some/rows has no split 'train[:2]': choose one of"),
        ("some/rows", {"column": "zz"}, "some/rows has no column of text 'zz': choose one of 'note', 'Prompt'."),
        ("some/rows", {"column": "number"}, "no column of text 'number': choose one of 'note', 'Prompt'."),
        ("some/rows", {"config": "zz"}, "some/rows has no config 'zz': choose one of 'default'."),
        ("bench-llm/or-bench", {}, "has several configs: choose one of 'or-bench-80k', 'or-bench-toxic'."),
        ("bench-llm/or-bench", {"config": "a/*"}, "has no config 'a/*': choose one of 'or-bench-80k', 'or-be"),
        ("JailbreakBench/JBB-Behaviors", {"config": "behaviors"}, "splits: choose one of 'harmful', 'benign'."),
        ("orbench-80k", {"config": "zz"}, "has no config 'zz': choose one of 'or-bench-80k', 'or-bench-toxic'."),
        ("some/numbers", {}, "some/numbers has no column of text (but 'n', 'm'): choose another data set."),
        ("some/empty-text", {}, "has no usable text in column 'prompt' of split 'train': choose another column"),
        ("some/script", {}, "needs a script of its own, which is never run here: choose a set stored as plain"),
        ("some/nothing", {}, FORMS),
        ("some/archive", {}, "some/archive holds webdataset files, not rows of text: choose another data set."),
        ("some/garbage", {}, "some/garbage could not be read (Parquet"),
        ("some/outside", {}, "some/outside points to files outside itself: choose another data set."),
        ("some/elsewhere", {}, "some/elsewhere points to files outside itself: choose another data set."),
    ],
)
def test_errors_of_the_hub(load: Reader, name: str, options: dict[str, str], message: str) -> None:
    answer = load(name, **options)
    assert message in answer["error"]
    check_sentence(answer["error"])


@pytest.mark.parametrize(
    ("settings", "hint"),
    [({"HF_HUB_OFFLINE": "1"}, " (offline mode is on)"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "")],
)
def test_a_hub_out_of_reach(tmp_path: Path, settings: dict[str, str], hint: str) -> None:
    pytest.importorskip("datasets", minversion="4.8", reason="the library 'datasets' is not installed")
    reader = Reader(tmp_path, **settings)
    (tmp_path / "some/rows").mkdir(parents=True)
    (tmp_path / "some/rows/a.csv").write_text("prompt\nlocal\n", encoding="utf-8")
    message = reader("some/rows")["error"]
    reader.close()
    assert message == f"The hub can't be reached{hint}: check the network, or use a prompt file instead of some/rows."


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "./some/rows", "../some/rows", "some/../rows", "some//rows", "a/b/c", "some/rows/", "/rows"),
        *("https://huggingface.co/datasets/some/rows", "hf://datasets/some/rows", "file:///tmp", "some\\rows", "~/a"),
        *("some/rows.py", "buckets/rows", "some/ro ws", "some/rows@main", "söme/rows", "", "a" * 99),
    ],
)
def test_names_that_are_no_data_set(name: str) -> None:
    with pytest.raises(EngineError, match=r"is not a data set on the hub: write it as owner/name\."):
        load_hub_prompts(name)


def test_unknown_short_name_limit_and_revision() -> None:
    with pytest.raises(
        EngineError, match=r"^Unknown prompt set 'squad': choose one of advbench, .*, or give owner/name"
    ):
        load_hub_prompts("squad")
    with pytest.raises(EngineError, match=r"^The limit of prompts is 0: choose at least 1\.$"):
        load_hub_prompts("advbench", limit=0)
    for revision in ("../main", "", "a b", "-x", "a/../b"):
        with pytest.raises(EngineError, match=r"is not a revision: give a branch, tag or commit\.$"):
            load_hub_prompts("advbench", revision=revision)


@pytest.mark.parametrize(("version", "words"), [(None, "need the library"), ("3.6.0", "too old"), ("4.7.0", "too old")])
def test_the_library_is_missing_or_old(monkeypatch: pytest.MonkeyPatch, version: str | None, words: str) -> None:
    library = None
    if version:
        library = ModuleType("datasets")
        library.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(EngineError, match=rf"{words}.*: install it with pip install 'datasets>=4\.8,<6'\.$"):
        load_hub_prompts("advbench")


@pytest.mark.parametrize(
    ("reader", "files", "message"),
    [
        ("csv", ["hf://datasets/some/rows@0/a.csv", "/etc/passwd"], "points to files outside itself: choose another"),
        ("csv", ["https://example.org/a.csv"], "points to files outside itself: choose another"),
        ("csv", ["hf://datasets/some/rows-of-others@0/a.csv"], "points to files outside itself: choose another"),
        ("pandas", ["hf://datasets/some/rows@0/a.pkl"], "holds pandas files, not rows of text: choose another"),
        ("cache", [], "The hub can't be reached: check the network, or use a prompt file instead"),
    ],
)
def test_what_a_library_lets_through_is_refused(reader: str, files: list[str], message: str) -> None:
    builder = type("Builder", (), {"__module__": f"datasets.packaged_modules.{reader}.{reader}"})()
    builder.config = SimpleNamespace(data_files={"train": files})
    library = SimpleNamespace(load_dataset_builder=lambda *_, **__: builder)
    with pytest.raises(EngineError) as caught, module._readable_errors("some/rows"):
        module._builder(library, "some/rows", None, COMMIT)
    assert message in str(caught.value)
    builder.__class__.__module__ = "datasets.packaged_modules.csv.csv"
    builder.config.data_files = {"train": ["hf://datasets/some/rows@0/a.csv"]}
    assert module._builder(library, "some/rows", None, COMMIT) is builder


def test_known_sets() -> None:
    assert {known.label for known in KNOWN_SETS.values()} == {"harmful", "harmless", "lookalike"}
    for name, known in KNOWN_SETS.items():
        assert name == name.casefold() and "/" not in name
        assert module._checked_name(known.hub_id) == known.hub_id
        assert known.paper and known.licence != "" and known.split and known.column
    assert len({str(asdict(known)) for known in KNOWN_SETS.values()}) == len(KNOWN_SETS)


def test_public_names_exist() -> None:
    assert all(hasattr(module, name) for name in module.__all__)
