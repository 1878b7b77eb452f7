"""Commands that look into directions and choose the block to steer: select, inspect."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace_core.cli.options import (
    BatchOption,
    ColumnOption,
    DeviceMapOption,
    DeviceOption,
    HarmfulOption,
    HarmlessOption,
    JsonOption,
    LimitOption,
    ModelOption,
    PartOption,
    PrecisionOption,
    SeedOption,
    VectorsOption,
    load,
    number,
    print_json,
    say,
    show_table,
)
from ace_core.cli.root import app
from ace_core.errors import EngineError

if TYPE_CHECKING:
    from ace_core.choosing.selection import Candidate, Selection

__all__ = ["inspect", "select"]


@app.command()
def select(
    model: ModelOption = "embedded",
    vectors: VectorsOption = None,
    harmful: HarmfulOption = "harmful",
    harmless: HarmlessOption = "harmless",
    column: ColumnOption = None,
    part: PartOption = "validation",
    limit: LimitOption = 32,
    seed: SeedOption = 0,
    method: Annotated[
        str, typer.Option(help="Method to choose a block for: ace, ablation (with addition to induce) or addition.")
    ] = "ace",
    block: Annotated[list[int] | None, typer.Option(help="Candidate block; repeat for several; default: all.")] = None,
    screen: Annotated[
        int,
        typer.Option(
            min=0,
            help="Prompts a class on which every block is tried first; the best six are then measured on all. "
            "0 measures every block on all.",
        ),
    ] = 8,
    kl: Annotated[float, typer.Option(help="Largest KL divergence of harmless prompts under the edit, nats.")] = 0.1,
    induce: Annotated[
        float, typer.Option(help="Smallest refusal score of harmless prompts under the inducing edit; 0 is even odds.")
    ] = 0.0,
    last: Annotated[float, typer.Option(help="Share of the last blocks left out, 0 to 1.")] = 0.2,
    out: Annotated[
        Path | None, typer.Option(help="Also write the vectors with this recommendation (.safetensors).")
    ] = None,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what steering every block does and recommend the one where the method works."""
    from ace_core.choosing.effects import STEERING_PAIRS
    from ace_core.choosing.selection import Thresholds, select_layer
    from ace_core.cli.prompt_sets import chosen_texts
    from ace_core.fitting.extraction import directions_for
    from ace_core.store import save_directions

    thresholds = Thresholds(kl, induce, last)
    if method not in STEERING_PAIRS:
        raise EngineError(f"No block can be chosen for '{method[:40]}': use one of {', '.join(STEERING_PAIRS)}.")
    if out is not None and out.suffix != ".safetensors":
        raise EngineError(f"'{out.name}' must end in .safetensors: rename the output file.")
    texts = chosen_texts(harmful, harmless, column, part, seed, limit)
    loaded = load(model, precision, device, device_map)
    directions = directions_for(loaded, say, vectors=vectors)
    selection = select_layer(
        loaded,
        directions,
        *texts,
        method=method,
        thresholds=thresholds,
        blocks=block or None,
        screen=screen,
        batch_size=batch_size,
        progress=say,
    )
    if out is not None:
        save_directions(replace(directions, recommended_layer=selection.recommended), out)
    if as_json:
        data = selection.to_json()
        for candidate in data.pop("candidates"):
            print_json({"event": "candidate", **candidate.pop("separability"), **candidate})
        print_json({"event": "recommendation", **data})
    else:
        _show_selection(selection)


@app.command()
def inspect(
    model: ModelOption = "embedded",
    vectors: VectorsOption = None,
    harmful: HarmfulOption = "harmful",
    harmless: HarmlessOption = "harmless",
    column: ColumnOption = None,
    part: PartOption = "validation",
    limit: LimitOption = 32,
    seed: SeedOption = 0,
    block: Annotated[
        list[int] | None, typer.Option(help="Block that ACE edits; repeat for several; default: the recommended one.")
    ] = None,
    coefficient: Annotated[
        list[float] | None, typer.Option(help="Coefficient of ACE; repeat for several; default: -0.5 to 1.5.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="A second vectors file of the same model: show the cosine of both directions at every block, for "
            "example of two positions or two languages."
        ),
    ] = None,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every block's direction in numbers, and the coordinates that ACE really reaches."""
    from ace_core.cli.prompt_sets import chosen_texts
    from ace_core.fitting.extraction import directions_for
    from ace_core.inspecting.inspection import ACHIEVED_COEFFICIENTS, achieved_table, compare_directions, cosine_map

    texts = chosen_texts(harmful, harmless, column, part, seed, limit)
    loaded = load(model, precision, device, device_map)
    directions = directions_for(loaded, say, vectors=vectors)
    beside = None
    if against is not None:
        beside = compare_directions(directions, directions_for(loaded, say, vectors=against))
    achieved = achieved_table(
        loaded,
        directions,
        *texts,
        block or None,
        coefficient or ACHIEVED_COEFFICIENTS,
        batch_size=batch_size,
        progress=lambda done, total: say(f"{done} of {total} rows"),
    )
    layer, cosines, separation = directions.recommended_layer, cosine_map(directions), directions.separation
    if as_json:
        for b in range(directions.blocks):
            print_json({"event": "block", "block": b, "auroc": number(separation[b].auroc),
                        "d_prime": number(separation[b].d_prime), "gap": float(directions.gap[b]),
                        "origin": float(directions.origin[b]), "cosine": float(cosines[b, layer]),
                        "recommended": b == layer,
                        **({} if beside is None else {"against": float(beside[b])})})  # fmt: skip
        for row in achieved:
            print_json({"event": "achieved", **asdict(row)})
        return
    other = () if against is None else (f"cosine with {against.name[:40]}",)
    show_table(
        ("block", "AUROC", "d'", "class gap", "origin at", f"cosine with block {layer}", *other),
        [
            (str(b), f"{s.auroc:.3f}", f"{s.d_prime:.2f}", f"{directions.gap[b]:.3f}", f"{directions.origin[b]:+.2f}",
             f"{cosines[b, layer]:+.3f}", *(() if beside is None else (f"{beside[b]:+.3f}",)))
            for b, s in enumerate(separation)
        ],
    )  # fmt: skip
    typer.echo("\nCoordinates of the last prompt token under ACE:")
    show_table(
        ("block", "coefficient", "prompts", "achieved", "farthest off", "at last block", "unsteered there"),
        [
            (str(r.block), f"{r.coefficient:+.2f}", r.kind, f"{r.achieved:+.4f}", f"{r.deviation:.1e}",
             f"{r.final:+.3f}", f"{r.final_unsteered:+.3f}")
            for r in achieved
        ],
    )  # fmt: skip


def _show_selection(selection: Selection) -> None:
    def cells(candidate: Candidate) -> tuple[str, ...]:
        s, e = candidate.separability, candidate.effects[selection.method]
        numbers = (s.auroc, s.d_prime, s.agreement, s.gap_ratio, e.bypass, e.induce, e.kl, e.cosmic)
        return (str(candidate.block), *(f"{n:.3f}" for n in numbers), candidate.reason or "recommended")

    typer.echo(f"{selection.tokens.note}\n")
    show_table(
        ("block", "AUROC", "d'", "agreement", "gap/norm", "bypass", "induce", "KL", "COSMIC", "verdict"),
        [cells(candidate) for candidate in selection.candidates],
        words=True,
    )
    typer.echo("")
    for step in selection.relaxed:
        typer.echo(step)
    typer.echo(selection.reason)
