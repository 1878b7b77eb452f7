"""Command line: one typer command a task; ``--json`` prints one JSON object a line on stdout and nothing else.

Exit status: 0 done, 1 a check failed, 2 bad input. Progress and messages go to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

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


@app.callback()
def _root() -> None:
    """Compare ways of steering a language model's refusals."""


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
        typer.Option(help="baseline, addition:A, ablation, affine_ablation or ace:A; repeat for several."),
    ] = None,
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
    from ace_core.comparison import load_directions, stream
    from ace_core.extraction import directions_for
    from ace_core.methods import parse_method
    from ace_core.runs import RunBuilder, RunSettings, save_run

    check_prompt(prompt)
    names = arm or ["baseline", "addition:1.0", "ablation", "ace:0.0"]
    methods = [parse_method(name) for name in names]
    loaded = _load(model, precision, device, device_map)
    directions = directions_for(loaded, _say) if vectors is None else load_directions(loaded, vectors)
    chosen = directions.recommended_layer if layer is None else layer
    coefficients = {method.name: method.coefficient for method in methods if method.coefficient is not None}
    settings = RunSettings(
        layer=chosen,
        coefficient=coefficients.get("ace", 0.0),
        addition=coefficients.get("addition", -1.0),
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
            _print({"event": "step", "index": step.index, "tokens": step.tokens, "text": step.text,
                    "coordinates": coordinates, "stop": step.stop})  # fmt: skip
    run = builder.snapshot()
    if save is not None:
        save_run(run, save)
    data = run.to_json()
    for name, result, plain in zip(names, run.arms, data["arms"], strict=True):
        if as_json:
            plain["tokens"] = plain.pop("token_ids")
            coordinates = {"before": plain.pop("before"), "after": plain.pop("after")}
            _print({"event": "arm", "arm": name, "layer": chosen, "prompt_tokens": len(ids), **plain,
                    "refused": result.verdict == "refused", "coordinates": coordinates})  # fmt: skip
        else:
            typer.echo(f"== {result.label}, block {chosen}: {result.verdict} ({result.stop})\n{result.text.strip()}\n")


@app.command()
def extract(
    harmful: Annotated[Path, typer.Option(help="Harmful prompts: .txt, .csv, .json or .jsonl.")],
    harmless: Annotated[Path, typer.Option(help="Harmless prompts: .txt, .csv, .json or .jsonl.")],
    out: Annotated[Path, typer.Option(help="Vectors file to write (.safetensors).")],
    model: ModelOption = "embedded",
    column: Annotated[str | None, typer.Option(help="Column or key that holds the prompt.")] = None,
    split: Annotated[str | None, typer.Option(help="Only prompts whose 'split' field has this value.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Prompts a forward pass.")] = 16,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a model's refusal directions on two sets of prompts and write a vectors file."""
    from ace_core.extraction import fit_directions
    from ace_core.prompts import read_prompts
    from ace_core.store import save_directions

    if out.suffix != ".safetensors":
        raise EngineError(f"'{out.name}' must end in .safetensors: rename the output file.")
    sets = []
    for path in (harmful, harmless):
        texts = [p.text for p in read_prompts(path, column=column) if split in (None, p.split)]
        if not texts:
            raise EngineError(f"{path.name} has no prompt in the split '{split}': choose another split.")
        sets.append(texts)
    loaded = _load(model, precision, device, device_map)
    directions = fit_directions(loaded, *sets, batch_size=batch_size, progress=_progress)
    save_directions(directions, out)
    for block, separation in enumerate(directions.separation):
        row = {
            "event": "block",
            "block": block,
            "auroc": _number(separation.auroc),
            "d_prime": _number(separation.d_prime),
            "gap": float(directions.gap[block]),
            "origin": float(directions.origin[block]),
        }
        if as_json:
            _print(row)
        else:
            typer.echo(
                f"block {block:3}  AUROC {separation.auroc:6.3f}  d' {separation.d_prime:6.2f}  "
                f"class gap {row['gap']:9.3f}  origin at {row['origin']:+.2f}"
            )
    if as_json:
        _print({"event": "done", "file": str(out), "recommended_layer": directions.recommended_layer,
                **directions.metadata})  # fmt: skip
    else:
        typer.echo(f"Recommended block {directions.recommended_layer}; written to {out}")


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
    from ace_core.checks import run_checks
    from ace_core.comparison import load_directions
    from ace_core.extraction import directions_for
    from ace_core.fast_mode import fast_mode_rows
    from ace_core.prompts import load_builtin

    loaded = _load(model, precision, device, device_map)
    texts = [[p.text for p in load_builtin(name, "fit")][:16] for name in ("harmful", "harmless")]
    directions = directions_for(loaded, _say) if vectors is None else load_directions(loaded, vectors)
    rows = list(run_checks(loaded, directions))
    if loaded.precision == "fast":
        typer.echo("Comparing the fast mode with float32", err=True)
        reference = _load(model, "float32", device, device_map)
        rows += fast_mode_rows(loaded, reference, directions, texts[1] + texts[0])
    for row in rows:
        if as_json:
            _print({"check": row.name, "passed": row.passed, "measured": _number(row.measured), "bound": row.bound,
                    "unit": row.unit, "note": row.note, "precision": loaded.precision})  # fmt: skip
        else:
            mark = "pass" if row.passed else "FAIL"
            note = f"  ({row.note})" if row.note else ""
            typer.echo(f"{mark}  {row.name}: {row.measured:.2g} of at most {row.bound:.2g} {row.unit}{note}")
    if not all(row.passed for row in rows):
        raise typer.Exit(1)


@app.command("train-default")
def train_default(
    out: Annotated[Path | None, typer.Option(help="Folder of the adapter; default: the one that ships.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many prompts a set, for a trial.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the adapter that makes the embedded model refuse (about 40 minutes on two cores)."""
    from ace_core.adapter import ADAPTER
    from ace_core.training import train_default as train

    report = train(out or ADAPTER, seed=seed, resume=resume, progress=_say, limit=limit)
    if as_json:
        _print({"event": "done", **report.to_json()})
    else:
        typer.echo(f"Adapter written to {out or ADAPTER}")


@app.command("evaluate-default")
def evaluate_default(
    folder: Annotated[Path | None, typer.Option(help="Folder of the adapter; default: the one that ships.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Where its vectors go; default: the file that ships.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many prompts a set, for a trial.")] = None,
) -> None:
    """Fit the adapter's vectors, measure it on the test split and write its model card."""
    from ace_core.adapter import ADAPTER
    from ace_core.evaluation import evaluate_default as evaluate
    from ace_core.model_card import write_card
    from ace_core.training import read_report

    place = folder or ADAPTER
    report = read_report(place)
    write_card(place, evaluate(place, vectors=vectors, progress=_say, limit=limit), report)
    typer.echo(f"Model card written to {place / 'README.md'}")


def _load(model: str, precision: str, device: str, device_map: str | None) -> Any:
    from ace_core.models import load_model

    return load_model(
        model,
        precision=precision,  # type: ignore[arg-type]
        device=device,
        device_map=device_map,
        progress=_say,
    )


def _say(message: str, fraction: float | None) -> None:
    typer.echo(message if fraction is None else f"{message}: {fraction:.0%}", err=True)


def _progress(done: int, total: int) -> None:
    typer.echo(f"{done} of {total} prompts", err=True)


def _number(value: float) -> float | None:
    """JSON has no NaN or infinity."""
    return value if value == value and abs(value) != float("inf") else None


def _print(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
    sys.stdout.flush()


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
