"""The typer application and its entry point."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn

import typer

from ace_core.errors import EngineError

__all__ = ["app", "main"]

# typer may carry click inside itself, so the base of its own usage errors is the one to catch.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compare ways of steering a language model's refusals.",
)


@app.callback()
def _root() -> None:
    """Compare ways of steering a language model's refusals."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; bad input ends with one sentence on stderr and status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)
    try:
        status = app(arguments, standalone_mode=False)
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        status = 2
    except _USAGE_ERROR as error:
        sys.stderr.write(f"{error.format_message()}\n")
        status = 2
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    raise SystemExit(status if isinstance(status, int) else 0)
