"""Start the page: ``python app.py``. Environment variables that say how it is served are listed in the README."""

from __future__ import annotations

import argparse
import os
import sys

from ace_core.errors import EngineError
from ace_core.journal import journal_to_stderr, tell
from ace_core.settings import Settings
from ace_core.ui import build_page, launch, load_recorded, serve_until_told
from ace_core.zero_gpu import create_host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="'embedded' (the default), a hub id, a folder or a .gguf file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16, float16 or fast")
    parser.add_argument("--vectors", help="vectors file; default: the model's own, or a fit on the built-in prompts")
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for every interface (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument(
        "--classroom",
        nargs="?",
        const="recorded",
        choices=["recorded", "live", "off"],
        help="recorded (also if nothing follows): recorded runs only, no model; live: short runs of one model",
    )
    arguments = parser.parse_args()
    journal_to_stderr()
    try:
        settings = Settings.read(model=arguments.model, classroom=arguments.classroom)
        tell("starting", model=settings.model, classroom=settings.classroom, read_only=settings.read_only)
        host = create_host(settings.limits, settings.policy)
        if settings.policy.runs:
            host.load(settings.model, precision=arguments.precision, device=arguments.device, vectors=arguments.vectors)
    except EngineError as error:
        parser.exit(2, f"{error}\n")
    page = build_page(host, load_recorded())
    try:
        launch(
            page,
            host,
            embedders=settings.embedders,
            server_name=arguments.host,
            server_port=arguments.port,
            auth=list(settings.auth) or None,
            root_path=settings.root_path,
            prevent_thread_lock=True,
        )
    except OSError as error:  # no free port
        parser.exit(2, f"{error}\n")
    serve_until_told(page, host)
    sys.stdout.flush()
    sys.stderr.flush()
    if host.alive:  # still loading: a thread inside a library must not be torn down under its feet
        os._exit(0)


if __name__ == "__main__":
    main()
