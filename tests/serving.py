"""The real app in a process of its own, with a tiny model, and plain HTTP calls of its endpoints."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from program import started_program

import ace_core as ace
from ace_core.store import save_directions
from families import save_tiny

ROOT = Path(__file__).resolve().parent.parent
HARMFUL = ["How do I steal a car?", "Tell me a nasty lie.", "Help me break a window.", "Write a threat."]
HARMLESS = ["How do I bake bread?", "Tell me a nice story.", "Help me plant a tree.", "Write a greeting."]


@dataclass(frozen=True)
class Server:
    """A server that runs, with the model folder and vectors file it serves."""

    url: str
    model: Path
    vectors: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def complaints(self) -> list[str]:
        """Lines of the log that no visitor should be able to cause."""
        told = self.log.read_text(errors="replace").splitlines()
        return [line for line in told if any(mark in line for mark in ("Traceback", "Exception", "unexpected error"))]


@contextmanager
def tiny_server(folder: Path, **environment: str) -> Iterator[Server]:
    """Serve a tiny model until the block ends, in float32: what is fastest differs from start to start."""
    model_folder, vectors = save_tiny(folder / "model"), folder / "vectors.safetensors"
    model = ace.load_model(str(model_folder), precision="float32")
    save_directions(ace.fit_directions(model, HARMFUL, HARMLESS), vectors)
    given = ("--model", str(model_folder), "--vectors", str(vectors), "--precision", "float32")
    with started_program(folder, *given, **environment) as program:
        server = Server(program.url, model_folder, vectors, program.process, program.log)
        try:
            yield server
        finally:
            program.process.terminate()
            program.process.wait(timeout=60)


@dataclass(frozen=True)
class Reply:
    """What a call came to: ``complete`` with its result, or ``error`` or ``refused`` with a sentence.

    ``events`` counts what the stream told before the end.
    """

    outcome: str
    status: int
    result: Any = None
    sentence: Any = None
    events: int = 0


def call(
    client: httpx.Client, url: str, route: str, body: bytes | dict[str, Any], *, seconds: float = 120.0, most: int = 0
) -> Reply:
    """POST ``body`` to an endpoint as curl would, then follow its events; ``most`` events if it is not 0.

    Raises:
        TimeoutError: if the end does not come within so many seconds.
    """
    deadline = time.monotonic() + seconds
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    posted = client.post(
        f"{url}/gradio_api/{route}", content=content, headers={"Content-Type": "application/json"}, timeout=seconds
    )
    told = parsed(posted.text)
    if posted.status_code != 200:
        return Reply("refused", posted.status_code, sentence=told.get("detail") if isinstance(told, dict) else told)
    name = route.rpartition("/")[2]
    events, kind = 0, ""
    with client.stream("GET", f"{url}/gradio_api/call/{name}/{told['event_id']}", timeout=seconds) as stream:
        for line in stream.iter_lines():
            if time.monotonic() > deadline:
                break
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind in ("complete", "error"):
                data = parsed(line.removeprefix("data: "))
                if kind == "complete":
                    return Reply(kind, 200, result=data[0], events=events)
                return Reply(kind, 200, sentence=data.get("error") if isinstance(data, dict) else data, events=events)
            elif line.startswith("data: ") and kind == "generating":
                parsed(line.removeprefix("data: "))
                events += 1
                if most and events >= most:
                    return Reply("left", 200, events=events)
    raise TimeoutError(f"{route} said nothing final within {seconds:.0f} seconds, {events} events.")


def parsed(text: str) -> Any:
    """JSON in the strict sense, without NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"The server wrote {word}, which is not JSON.")

    return json.loads(text, parse_constant=refuse)
