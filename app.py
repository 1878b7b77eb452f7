"""Start the page: ``python app.py``."""

from __future__ import annotations

import argparse
import os

from ace_core.host import ModelHost
from ace_core.ui import build_page, launch, load_recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    model = os.environ.get("ACE_MODEL", "embedded")
    parser.add_argument("--model", default=model, help="'embedded', a hub id, a folder or a .gguf file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16, float16 or fast")
    parser.add_argument("--vectors", help="vectors file; default: the model's own, or a fit on the built-in prompts")
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for every interface (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    arguments = parser.parse_args()
    host = ModelHost()
    host.load(arguments.model, precision=arguments.precision, device=arguments.device, vectors=arguments.vectors)
    launch(build_page(host, load_recorded()), server_name=arguments.host, server_port=arguments.port)


if __name__ == "__main__":
    main()
