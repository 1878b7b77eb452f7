"""Command that fits directions: extract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace_core.cli.options import (
    BatchOption,
    ColumnOption,
    DeviceMapOption,
    DeviceOption,
    HarmfulOption,
    HarmlessOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    SeedOption,
    load,
    number,
    print_json,
    say,
)
from ace_core.cli.root import app
from ace_core.errors import EngineError

__all__ = ["extract"]


@app.command()
def extract(
    out: Annotated[Path, typer.Option(help="Vectors file to write (.safetensors).")],
    harmful: HarmfulOption = "harmful",
    harmless: HarmlessOption = "harmless",
    reference: Annotated[
        str | None, typer.Option(help="A third prompt set, whose mean becomes ACE's reference point 'third'.")
    ] = None,
    model: ModelOption = "embedded",
    column: ColumnOption = None,
    split: Annotated[
        str | None,
        typer.Option(help="Fit on prompts whose 'split' field has this value; default: sets are split by --seed."),
    ] = None,
    variant: Annotated[str, typer.Option(help="How a direction is made, for example mean_difference.")] = (
        "mean_difference"
    ),
    position: Annotated[
        str, typer.Option(help="last, instruction, mean, or a negative number that counts tokens from the end.")
    ] = "last",
    site: Annotated[str, typer.Option(help="output or input of the blocks.")] = "output",
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a model's refusal directions on two sets of prompts and write a vectors file."""
    from ace_core.cli.prompt_sets import find_set, read_set
    from ace_core.fitting.extraction import fit_directions
    from ace_core.fitting.positions import parse_position
    from ace_core.fitting.variants import variant_named
    from ace_core.prompts.splitting import joint_rule, split_both
    from ace_core.store import save_directions

    if out.suffix != ".safetensors":
        raise EngineError(f"'{out.name}' must end in .safetensors: rename the output file.")
    where = parse_position(position)
    variant = variant.replace("-", "_")
    variant_named(variant)
    heldout: list[list[str]] | None = None
    found = [find_set(name, kind, column) for name, kind in ((harmful, "harmful"), (harmless, "harmless"))]
    licence = "; ".join(dict.fromkeys(known for _, known in found if known))
    if split is None:
        halves = split_both(*(prompts for prompts, _ in found), seed=seed)
        sets = [[p.text for p in half.fit] for half in halves]
        heldout = [[p.text for p in half.validation] for half in halves]
        rule = joint_rule(*halves)
    else:
        sets, rule = [], f"prompts whose field 'split' is '{split}', every fifth held out"
        for name, (prompts, _) in zip((harmful, harmless), found, strict=True):
            sets.append([p.text for p in prompts if p.split == split])
            if not sets[-1]:
                raise EngineError(f"{name} has no prompt in the split '{split}': choose another split.")
    third = [] if reference is None else [p.text for p in read_set(reference, "harmless", column)]
    loaded = load(model, precision, device, device_map)
    directions = fit_directions(
        loaded,
        *sets,
        heldout_harmful=None if heldout is None else heldout[0],
        heldout_harmless=None if heldout is None else heldout[1],
        variant=variant,
        position=where,
        site=site,  # type: ignore[arg-type]
        reference=third,
        seed=seed,
        split_rule=rule,
        licence=licence,
        batch_size=batch_size,
        progress=lambda done, total: say(f"{done} of {total} prompts"),
    )
    save_directions(directions, out)
    for block, separation in enumerate(directions.separation):
        row = {
            "event": "block",
            "block": block,
            "auroc": number(separation.auroc),
            "d_prime": number(separation.d_prime),
            "gap": float(directions.gap[block]),
            "origin": float(directions.origin[block]),
        }
        if as_json:
            print_json(row)
        else:
            typer.echo(
                f"block {block:3}  AUROC {separation.auroc:6.3f}  d' {separation.d_prime:6.2f}  "
                f"class gap {row['gap']:9.3f}  origin at {row['origin']:+.2f}"
            )
    if as_json:
        print_json({"event": "done", "file": str(out), "recommended_layer": directions.recommended_layer,
                    **directions.metadata})  # fmt: skip
    else:
        typer.echo(f"Recommended block {directions.recommended_layer}; written to {out}")
