"""The program in a process of its own, and events of its page called as a browser calls them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Program", "ask", "events", "free_port", "inputs_of_a_run", "started_program"]

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300.0  # seconds, for a busy machine


@dataclass(frozen=True)
class Program:
    """``app.py``, running: its address without a slash at the end, process and what it wrote so far."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def journal(self) -> list[dict[str, Any]]:
        """Its lines of JSON."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started_program(folder: Path, *arguments: str, route: str = "readyz", **variables: str) -> Iterator[Program]:
    """Start ``app.py`` and wait until ``route`` answers 200.

    Args:
        folder: for its log.
        arguments: of the command line.
        variables: of the environment.
    """
    port = free_port()
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", **variables}
    log = folder / "log.txt"
    with log.open("wb") as out:
        command = [sys.executable, "app.py", "--port", str(port), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    program = Program(f"http://127.0.0.1:{port}", process, log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(f"{program.url}/{route}"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.1)
        yield program
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def inputs_of_a_run(
    prompt: str, tokens: int = 8, layer: int = 1, arms: Sequence[str] = ("baseline", "ace")
) -> list[Any]:
    """Values of the page's fields, in order."""
    return [prompt, layer, layer, "one", "all", 0.0, "harmless", -1.0, list(arms), tokens, 0.0, 1.0, 0, 0]


def ask(client: httpx.Client, name: str, session: str, data: Sequence[Any] | None = None) -> None:
    """Fire the first queued event of the page that a handler of this name serves.

    Args:
        data: values of its inputs; None for those that a fresh page shows.
    """
    config = client.get("/config").json()
    event = next(
        each
        for each in config["dependencies"]
        if each["api_name"] == name and each["queue"] and (data is None or len(each["inputs"]) == len(data))
    )
    if data is None:
        shown = {part["id"]: part["props"].get("value") for part in config["components"]}
        data = [shown.get(number) for number in event["inputs"]]
    body = {"data": list(data), "fn_index": event["id"], "session_hash": session, "trigger_id": None}
    client.post("/gradio_api/queue/join", json=body).raise_for_status()


def events(client: httpx.Client, session: str) -> Iterator[dict[str, Any]]:
    """Messages for a session until its event is over or the server ends the stream."""
    url = f"/gradio_api/queue/data?session_hash={session}"
    with client.stream("GET", url, timeout=PATIENCE) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                message = json.loads(line.removeprefix("data: "))
                yield message
                if message["msg"] in ("process_completed", "close_stream"):
                    return
