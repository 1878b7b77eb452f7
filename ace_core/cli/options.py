"""Options that several commands share, and what they do with them: load, say, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ace_core.models import ChatModel

__all__ = [
    "BatchOption",
    "ColumnOption",
    "DeviceMapOption",
    "DeviceOption",
    "HarmfulOption",
    "HarmlessOption",
    "JsonOption",
    "LimitOption",
    "ModelOption",
    "PartOption",
    "PrecisionOption",
    "SeedOption",
    "VectorsOption",
    "load",
    "number",
    "print_json",
    "say",
    "show_table",
]

ModelOption = Annotated[str, typer.Option(help="embedded, a hub id, a model folder or a .gguf file.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, or fast (CPUs).")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(help="accelerate's placement (auto, balanced, sequential) for models larger than a device."),
]
VectorsOption = Annotated[
    Path | None,
    typer.Option(help="Vectors file; default: the one that ships for the model, or a new fit on the built-in prompts."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
_SOURCE = "a built-in set, a prompt file (.txt, .csv, .json, .jsonl), or a data set on the hub"
HarmfulOption = Annotated[str, typer.Option(help=f"Harmful prompts: {_SOURCE}.")]
HarmlessOption = Annotated[str, typer.Option(help=f"Harmless prompts: {_SOURCE}.")]
ColumnOption = Annotated[str | None, typer.Option(help="Column or key that holds the prompt.")]
PartOption = Annotated[str, typer.Option(help="Part of the sets to use: fit, validation, test or all.")]
LimitOption = Annotated[int, typer.Option(min=1, help="Prompts a set, taken at equal distances.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Splits sets that name no parts, draws samples.")]
BatchOption = Annotated[int, typer.Option(min=1, max=1024, help="Rows a forward pass.")]


def load(model: str, precision: str, device: str, device_map: str | None) -> ChatModel:
    """Load a model, telling progress."""
    from ace_core.models import load_model

    return load_model(
        model,
        precision=precision,  # type: ignore[arg-type]
        device=device,
        device_map=device_map,
        progress=say,
    )


def say(message: str, fraction: float | None = None) -> None:
    """A message on stderr."""
    typer.echo(message if fraction is None else f"{message}: {fraction:.0%}", err=True)


def number(value: float) -> float | None:
    """JSON has no NaN or infinity."""
    return value if value == value and abs(value) != float("inf") else None


def print_json(data: dict[str, Any]) -> None:
    """One object on one line of stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> None:
    """Print a table with right-aligned columns; with ``words`` the last one starts where its head does."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if words:
        widths[-1] = 0
    for row in (head, *rows):
        typer.echo("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
