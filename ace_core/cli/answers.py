"""Commands that answer a prompt and that verify steering: compare, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace_core.cli.options import (
    DeviceMapOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    VectorsOption,
    load,
    number,
    print_json,
    say,
)
from ace_core.cli.root import app

__all__ = ["check", "compare"]


@app.command()
def compare(
    prompt: Annotated[str, typer.Argument(help="What the user says.")],
    model: ModelOption = "embedded",
    vectors: VectorsOption = None,
    layer: Annotated[int | None, typer.Option(help="0-based decoder block; default: the recommended one.")] = None,
    last: Annotated[int | None, typer.Option(help="Last block of a window, inclusive.")] = None,
    scope: Annotated[str, typer.Option(help="one, window, all (own directions) or shared (one direction).")] = "one",
    tokens: Annotated[
        str, typer.Option(help="all, prompt, generated or last (from the last prompt token on).")
    ] = "all",
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="baseline, addition:A, ablation, affine_ablation, ace:A or ace:A@REFERENCE; repeat for several."
        ),
    ] = None,
    reference: Annotated[
        str,
        typer.Option(
            help="Point from which ACE goes A class gaps, where an arm names none: harmless (mean), pooled, harmful, "
            "origin, or third (the mean of 'extract --reference')."
        ),
    ] = "harmless",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    save: Annotated[Path | None, typer.Option(help="Also write the whole run to this .json file.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt in place of the template's own.")] = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer PROMPT under several methods at once."""
    from ace_core.chat import check_prompt, token_texts
    from ace_core.comparison import stream
    from ace_core.fitting.extraction import directions_for
    from ace_core.methods import ACE, Reference, parse_method
    from ace_core.runs import RunBuilder, RunSettings, save_run

    check_prompt(prompt)
    names = arm or ["baseline", "addition:1.0", "ablation", "ace:0.0"]
    methods = [parse_method(name, default_reference=reference) for name in names]
    loaded = load(model, precision, device, device_map)
    directions = directions_for(loaded, say, vectors=vectors)
    chosen = directions.recommended_layer if layer is None else layer
    coefficients = {method.name: method.coefficient for method in methods if method.coefficient is not None}
    starts: list[Reference] = [method.reference for method in methods if isinstance(method, ACE)]
    settings = RunSettings(
        layer=chosen,
        coefficient=coefficients.get("ace", 0.0),
        addition=coefficients.get("addition", -1.0),
        reference=starts[-1] if starts else "harmless",
        last=last,
        scope=scope,  # type: ignore[arg-type]
        token_scope=tokens,  # type: ignore[arg-type]
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    ids = loaded.encode(prompt, system)
    builder = RunBuilder(loaded.name, prompt, token_texts(loaded.tokenizer, ids), settings, methods)
    steps = stream(
        loaded,
        directions,
        prompt,
        methods,
        layer=chosen,
        scope=settings.scope,
        last=last,
        tokens=settings.token_scope,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_new_tokens=max_new_tokens,
        system=system,
    )
    for step in steps:
        builder.add(step)
        if as_json:
            coordinates = [None if c != c else round(float(c), 5) for c in step.coordinates[:, chosen]]
            print_json({"event": "step", "index": step.index, "tokens": step.tokens, "text": step.text,
                        "coordinates": coordinates, "stop": step.stop})  # fmt: skip
    run = builder.snapshot()
    if save is not None:
        save_run(run, save)
    data = run.to_json()
    for name, result, plain in zip(names, run.arms, data["arms"], strict=True):
        if as_json:
            plain["tokens"] = plain.pop("token_ids")
            coordinates = {"before": plain.pop("before"), "after": plain.pop("after")}
            print_json({"event": "arm", "arm": name, "layer": chosen, "prompt_tokens": len(ids), **plain,
                    "refused": result.verdict == "refused", "coordinates": coordinates})  # fmt: skip
        else:
            typer.echo(f"== {result.label}, block {chosen}: {result.verdict} ({result.stop})\n{result.text.strip()}\n")


@app.command()
def check(
    model: ModelOption = "embedded",
    vectors: VectorsOption = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify on this model that steering is real and exact; exit status 1 if any check fails."""
    from ace_core.checking.checks import run_checks
    from ace_core.checking.fast_mode import fast_mode_rows
    from ace_core.fitting.extraction import directions_for
    from ace_core.prompts import load_builtin

    loaded = load(model, precision, device, device_map)
    texts = [[p.text for p in load_builtin(name, "fit")][:16] for name in ("harmful", "harmless")]
    directions = directions_for(loaded, say, vectors=vectors)
    rows = list(run_checks(loaded, directions))
    if loaded.precision == "fast":
        typer.echo("Comparing the fast mode with float32", err=True)
        reference = load(model, "float32", device, device_map)
        rows += fast_mode_rows(loaded, reference, directions, texts[1] + texts[0])
    for row in rows:
        if as_json:
            print_json({"check": row.name, "passed": row.passed, "measured": number(row.measured), "bound": row.bound,
                    "unit": row.unit, "note": row.note, "precision": loaded.precision})  # fmt: skip
        else:
            mark = "pass" if row.passed else "FAIL"
            note = f"  ({row.note})" if row.note else ""
            typer.echo(f"{mark}  {row.name}: {row.measured:.2g} of at most {row.bound:.2g} {row.unit}{note}")
    if not all(row.passed for row in rows):
        raise typer.Exit(1)
