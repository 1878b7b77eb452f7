"""Commands that exchange vectors with other tools: export, import."""

from __future__ import annotations

import os
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
    VectorsOption,
    load,
    print_json,
    say,
)
from ace_core.cli.root import app
from ace_core.errors import EngineError

__all__ = ["export", "import_vectors"]


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Control vector to write (.gguf); its card goes beside it (.card.md).")],
    model: ModelOption = "embedded",
    vectors: VectorsOption = None,
    layer: Annotated[int | None, typer.Option(help="0-based decoder block; default: the recommended one.")] = None,
    all_blocks: Annotated[bool, typer.Option("--all-blocks", help="Every block's own direction.")] = False,
    coefficient: Annotated[float, typer.Option(help="Class gaps to add at each block.")] = 1.0,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write directions as a GGUF control vector for llama.cpp, which can only add.

    With --vectors no model is loaded.
    """
    from ace_core.exchange import export_gguf, vector_card
    from ace_core.exchange.gguf_export import CAUTION
    from ace_core.fitting.extraction import directions_for
    from ace_core.store import load_directions

    if out.suffix != ".gguf":
        raise EngineError(f"'{out.name}' must end in .gguf: rename the output file.")
    if vectors is None:
        directions = directions_for(load(model, precision, device, device_map), say)
    else:
        directions = load_directions(vectors)
    written = export_gguf(directions, out, layer=layer, all_blocks=all_blocks, coefficient=coefficient)
    card = out.with_suffix(".card.md")
    _write(card, vector_card(directions))
    if as_json:
        print_json({"event": "done", "file": str(out), "card": str(card), "blocks": list(written.blocks),
                    "dropped": list(written.dropped), "coefficient": coefficient, "caution": CAUTION})  # fmt: skip
        return
    typer.echo(CAUTION)
    blocks = f"block {written.blocks[0]}" if len(written.blocks) == 1 else f"{len(written.blocks)} blocks"
    left_out = " Block 0 has no place in the format and is left out." if written.dropped else ""
    typer.echo(f"{coefficient:g} class gaps at {blocks} written to {out}, the card to {card}.{left_out}")


@app.command("import")
def import_vectors(
    file: Annotated[Path, typer.Argument(help="direction.pt, mean_diffs.pt, steering-vectors .pt, or .gguf.")],
    position: Annotated[int | None, typer.Option(help="Which position of a mean_diffs.pt; default: the last.")] = None,
    layer: Annotated[
        int | None, typer.Option(help="Layer of a direction.pt as refusal_direction counts: input of block L.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Measure class means on --model and write a vectors file (.safetensors).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to complete the vectors on; default: embedded.")] = None,
    harmful: HarmfulOption = "harmful",
    harmless: HarmlessOption = "harmless",
    column: ColumnOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe another tool's vectors, and with --out complete them.

    Completing measures class means on the model, which every method but addition needs.
    """
    from ace_core.cli.prompt_sets import both_parts
    from ace_core.exchange import read_vectors
    from ace_core.fitting.extraction import complete_directions
    from ace_core.store import save_directions

    if model is not None and out is None:
        raise EngineError("Say with --out which vectors file (.safetensors) to write, or leave out --model.")
    if out is not None and out.suffix != ".safetensors":
        raise EngineError(f"'{out.name}' must end in .safetensors: rename the output file.")
    found = read_vectors(file, position=position, layer=layer)
    lengths = {block: float(vector.norm()) for block, vector in found.vectors.items()}
    if as_json:
        print_json({"event": "vectors", "file": str(file), "format": found.format, "width": found.width,
                    "lengths": lengths, "notes": list(found.notes)})  # fmt: skip
    else:
        typer.echo(f"{found.format}, width {found.width}")
        for block, length in lengths.items():
            typer.echo(f"block {block:3}  length {length:.4g}")
        for note in found.notes:
            typer.echo(note)
    if out is None:
        if not as_json:
            typer.echo("They carry addition only: give --model and --out to complete them for every method.")
        return
    halves = both_parts(harmful, harmless, column, seed)
    loaded = load(model or "embedded", precision, device, device_map)
    directions = complete_directions(
        loaded,
        found.vectors,
        *([p.text for p in half.fit] for half in halves),
        heldout_harmful=[p.text for p in halves[0].validation],
        heldout_harmless=[p.text for p in halves[1].validation],
        seed=seed,
        batch_size=batch_size,
        progress=lambda done, total: say(f"{done} of {total} prompts"),
    )
    save_directions(directions, out)
    if as_json:
        print_json({"event": "done", "file": str(out), "recommended_layer": directions.recommended_layer,
                    **directions.metadata})  # fmt: skip
    else:
        typer.echo(f"Completed with class means of {loaded.model_id}; recommended block "
                   f"{directions.recommended_layer}; written to {out}")  # fmt: skip


def _write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise EngineError(f"{path} could not be written ({error.strerror or error}): choose another folder.") from None
    finally:
        temporary.unlink(missing_ok=True)
