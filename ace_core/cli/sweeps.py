"""Command that runs a sweep: sweep."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ace_core.cli.options import (
    BatchOption,
    ColumnOption,
    DeviceMapOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    PartOption,
    PrecisionOption,
    SeedOption,
    VectorsOption,
    load,
    print_json,
    say,
    show_table,
)
from ace_core.cli.root import app
from ace_core.errors import EngineError

if TYPE_CHECKING:
    from ace_core.models import ChatModel
    from ace_core.sweeps.judge import Judge
    from ace_core.sweeps.plan import Place, SweepPrompt
    from ace_core.sweeps.summary import SweepSummary

__all__ = ["sweep"]


@app.command()
def sweep(
    out: Annotated[Path, typer.Option(help="Folder for results, tables and the report.")],
    preset: Annotated[str, typer.Option(help="paper, quick (two minutes on the default model) or layers.")] = "quick",
    model: ModelOption = "embedded",
    vectors: VectorsOption = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated, for example ace,addition.")] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help="Coefficients: comma-separated, or first:last:step; with a minus, --alphas=-1:2:0.5."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks: comma-separated, ranges such as 10-20, 'all' or 'recommended'.")
    ] = None,
    scope: Annotated[str, typer.Option(help="one, all (own directions) or shared (one direction).")] = "one",
    harmful: Annotated[
        str | None, typer.Option(help="Harmful prompts: a built-in set, a file, or a data set on the hub.")
    ] = None,
    harmless: Annotated[
        str | None, typer.Option(help="Harmless prompts: a built-in set, a file, or a data set on the hub.")
    ] = None,
    column: ColumnOption = None,
    part: PartOption = "test",
    prompts: Annotated[int | None, typer.Option(min=1, help="Prompts of each class, at equal distances.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Longest answer; 0 reads the first token's logits only.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers a prompt, where they are sampled.")] = None,
    seed: SeedOption = 0,
    scorers: Annotated[str | None, typer.Option(help="Comma-separated: logit, phrase, perplexity, kl.")] = None,
    judge_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint, http://host/v1.")] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="The judge's name at --judge-url, or a local model if there is no address.")
    ] = None,
    system_prompts: Annotated[bool, typer.Option(help="Also run system prompts in place of steering.")] = True,
    images: Annotated[
        bool, typer.Option("--images", help="Also write the figures as SVG; needs kaleido and a Chrome.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in the folder.")] = False,
    batch_size: BatchOption = 48,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run every prompt under every method, coefficient and layer, score the answers, and write a report."""
    from ace_core.fitting.extraction import directions_for
    from ace_core.sweeps.parts import device_of_part, finish, lone_launch, part_of_launch, precision_of_part
    from ace_core.sweeps.presets import PRESETS, preset_plan
    from ace_core.sweeps.records import SweepFolder
    from ace_core.sweeps.runner import run_sweep

    if preset not in PRESETS:
        raise EngineError(f"Unknown preset '{preset[:40]}': choose one of {', '.join(PRESETS)}.")
    changes: dict[str, Any] = {"seed": seed}
    for name, value in (("tokens", tokens), ("temperature", temperature), ("top_p", top_p), ("samples", samples)):
        if value is not None:
            changes[name] = value
    if methods is not None:
        changes["methods"] = tuple(_words(methods))
    if alphas is not None:
        changes["alphas"] = _alphas(alphas)
    if scorers is not None:
        changes["scorers"] = tuple(_words(scorers))
    elif tokens is not None:
        settings = PRESETS[preset].settings["scorers"]
        changes["scorers"] = ("logit",) if tokens == 0 else settings if settings != ("logit",) else ("logit", "phrase")
    if not system_prompts:
        changes["system_prompts"] = False
    chosen = _prompts(harmful, harmless, column, part, seed, prompts or PRESETS[preset].prompts)
    index, count = part_of_launch()
    if lone_launch():
        say("accelerate launch --cpu starts one process unless MPI is there: give --multi_gpu instead, on CPUs as well")
    folder = SweepFolder(out, (index, count))
    device = device_of_part(device, index, count)
    precision = precision_of_part(folder, precision, resume, device, device_map)
    loaded = load(model, precision, device, device_map)
    directions = directions_for(loaded, say, vectors=vectors)
    if layers is not None or scope != "one":
        changes["places"] = _places(layers or "recommended", scope, directions.blocks, directions.recommended_layer)
    judge = _judge(judge_url, judge_model, loaded, model, precision, device, device_map)
    plan = preset_plan(preset, directions, chosen, **changes)
    if judge is not None:
        plan = plan.changed(scorers=(*plan.scorers, "judge"))
    halted = _Halt()
    command = shlex.join(["python", "-m", "ace_core", *sys.argv[1:]])
    events = run_sweep(
        loaded, directions, plan, folder, resume=resume, judge=judge, command=command, batch_rows=batch_size,
        should_stop=halted,
    )  # fmt: skip
    with halted:
        for event in events:
            if as_json:
                for record in event.records:
                    print_json({"event": "cell", **record})
            left = "" if event.seconds_left is None else f", about {event.seconds_left:.0f} s left"
            say(f"{event.message}, {event.done} of {event.total} cells{left}", event.fraction)
    summary, written = finish(folder)
    if images and written:
        from ace_core.sweeps.figures import sweep_figures
        from ace_core.sweeps.images import write_images

        drawn, why = write_images(out, sweep_figures(summary))
        written = [*drawn, *written]
        if why:
            say(why)
    _show(summary, written, as_json)


class _Halt:
    """Whether Ctrl-C was pressed inside the ``with`` block; the second time it interrupts as usual."""

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> None:
        def note(*_: Any) -> None:
            self._asked = True
            signal.signal(signal.SIGINT, self._before)
            say("Stopping; what is finished is kept")

        try:
            self._before = signal.signal(signal.SIGINT, note)
        except ValueError:  # not the main thread
            self._before = None

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def _words(text: str) -> list[str]:
    return [word.strip().lower().replace("-", "_") for word in text.split(",") if word.strip()]


def _alphas(text: str) -> tuple[float, ...]:
    """``"-1,0,1"`` or ``"-1:1:0.5"`` as numbers.

    Raises:
        EngineError: for anything else.
    """
    try:
        if ":" in text:
            first, last, step = (float(number) for number in text.split(":"))
            count = round((last - first) / step)
            if step <= 0 or not 0 <= count <= 1000:
                raise ValueError
            values = [round(first + step * i, 9) for i in range(count + 1) if first + step * i <= last + step / 1e6]
        else:
            values = sorted(float(number) for number in text.split(",") if number.strip())
    except (ValueError, ZeroDivisionError, OverflowError):
        raise EngineError(f"'{text[:60]}' are no coefficients: write -1,0,1 or -1:1:0.5.") from None
    return tuple(value + 0.0 for value in values)


def _places(text: str, scope: str, blocks: int, recommended: int) -> tuple[Place, ...]:
    """Blocks as the user wrote them.

    Raises:
        EngineError: for words that are none, or an unknown scope.
    """
    from ace_core.sweeps.plan import Place

    if text == "all":
        found = list(range(blocks))
    elif text == "recommended":
        found = [recommended]
    else:
        found = []
        for word in text.split(","):
            first, dash, last = word.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise EngineError(
                    f"'{word[:40]}' is no block: write numbers, ranges such as 10-20, all or recommended."
                )
            if int(last or first) >= blocks:
                raise EngineError(
                    f"Layer {word.strip()[:40]} is out of range: this model's blocks are 0 to {blocks - 1}."
                )
            found += range(int(first), int(last or first) + 1)
    if scope == "window":
        raise EngineError("A sweep edits one block at a time or all: choose scope one, all or shared.")
    return tuple(Place(layer, scope) for layer in dict.fromkeys(found))  # type: ignore[arg-type]


def _prompts(
    harmful: str | None, harmless: str | None, column: str | None, part: str, seed: int, limit: int
) -> tuple[SweepPrompt, ...]:
    """Prompts of the sets that were named, the test part of which was never used in fitting."""
    from ace_core.cli.prompt_sets import chosen_texts
    from ace_core.sweeps.presets import sweep_prompts

    texts = chosen_texts(harmful or "harmful", harmless or "harmless", column, part, seed, limit)
    return sweep_prompts(*texts)


def _judge(
    url: str | None,
    name: str | None,
    loaded: ChatModel,
    model: str,
    precision: str,
    device: str,
    device_map: str | None,
) -> Judge | None:
    from ace_core.sweeps.judge import EndpointJudge, LocalJudge

    if url is not None:
        if name is None:
            raise EngineError("The judge needs a name: add --judge-model, as the endpoint calls it.")
        return EndpointJudge(url, name, timeout=float(os.environ.get("ACE_JUDGE_TIMEOUT", "60")))
    if name is None:
        return None
    return LocalJudge(loaded if name == model else load(name, precision, device, device_map))


def _show(summary: SweepSummary, written: list[Path], as_json: bool) -> None:
    data = summary.to_json()
    if as_json:
        for table in ("rows", "gaps", "wrong_way", "equal_kl", "agreement"):
            for row in data[table]:
                print_json({"event": {"rows": "condition", "gaps": "gap"}.get(table, table), **row})
        print_json({"event": "done", "headline": data["headline"], "cells": summary.count,
                    "total": len(summary.plan.cells), "files": [str(path) for path in written]})  # fmt: skip
        return
    from ace_core.sweeps.tables import sweep_tables

    for table in sweep_tables(summary):
        typer.echo(f"\n{table.title}")
        show_table(table.head, table.rows)
    typer.echo(f"\n{summary.headline}")
    if written:
        typer.echo(f"Report: {written[-1]}")
