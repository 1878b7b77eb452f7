"""Command line: one typer command a task; ``--json`` prints one JSON object a line on stdout and nothing else.

Exit status: 0 done, 1 a check failed, 2 bad input. Progress and messages go to stderr.
"""

from __future__ import annotations

from ace_core.cli import (  # noqa: F401  (each registers its commands)
    answers,
    default_model,
    exchange,
    gallery,
    layers,
    sweeps,
    vectors,
)
from ace_core.cli.root import app, main

__all__ = ["app", "main"]
