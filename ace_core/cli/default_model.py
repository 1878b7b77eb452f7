"""Commands that make and measure the default model: train-default, evaluate-default, geometry-data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ace_core.cli.options import JsonOption, print_json, say
from ace_core.cli.root import app

__all__ = ["evaluate_default", "geometry_data", "train_default"]


@app.command("train-default")
def train_default(
    out: Annotated[Path | None, typer.Option(help="Folder of the adapter; default: the one that ships.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many prompts a set, for a trial.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the adapter that makes the embedded model refuse (15 to 35 minutes on two cores)."""
    from ace_core.default_model.adapter import ADAPTER
    from ace_core.default_model.training import train_default as train

    report = train(out or ADAPTER, seed=seed, resume=resume, progress=say, limit=limit)
    if as_json:
        print_json({"event": "done", **report.to_json()})
    else:
        typer.echo(f"Adapter written to {out or ADAPTER}")


@app.command("evaluate-default")
def evaluate_default(
    folder: Annotated[Path | None, typer.Option(help="Folder of the adapter; default: the one that ships.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Where its vectors go; default: the file that ships.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many prompts a set, for a trial.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Write all answers there (.jsonl), to read them.")] = None,
) -> None:
    """Fit the adapter's vectors, measure it on the test split and write its model card."""
    from ace_core.default_model.adapter import ADAPTER
    from ace_core.default_model.evaluation import evaluate_default as evaluate
    from ace_core.default_model.model_card import write_card
    from ace_core.default_model.training import read_report

    place = folder or ADAPTER
    report = read_report(place)
    evaluation = evaluate(place, vectors=vectors, progress=say, limit=limit)
    write_card(place, evaluation, report)
    if answers is not None:
        lines = (
            json.dumps({"set": name, "prompt": a.prompt, "answer": a.text, "verdict": a.verdict}, ensure_ascii=False)
            for name, found in evaluation.answers.items()
            for a in found
        )
        answers.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    typer.echo(f"Model card written to {place / 'README.md'}")


@app.command("geometry-data")
def geometry_data(
    out: Annotated[Path | None, typer.Option(help="Where it goes; default: the file that ships.")] = None,
) -> None:
    """Record the activations that the Geometry tab shows, of the default model at its recommended block."""
    from ace_core.inspecting import plane as maps

    path = out or maps.GEOMETRY
    plane = maps.geometry_data(path)
    typer.echo(f"{len(plane.harmful)} + {len(plane.harmless)} prompts at block {plane.block} written to {path}")
