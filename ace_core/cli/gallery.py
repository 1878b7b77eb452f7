"""Command that records the gallery: gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace_core.cli.options import JsonOption, ModelOption, PrecisionOption, VectorsOption, load, print_json, say
from ace_core.cli.root import app

__all__ = ["gallery"]


@app.command()
def gallery(
    out: Annotated[Path | None, typer.Option(help="Folder of the recordings; default: the one that ships.")] = None,
    model: ModelOption = "embedded",
    vectors: VectorsOption = None,
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Record the runs that the page replays without a model (a minute or two for the default model)."""
    from ace_core.fitting.extraction import directions_for
    from ace_core.gallery import GALLERY, write_gallery

    folder = GALLERY if out is None else out
    loaded = load(model, precision, "cpu", None)
    made = write_gallery(folder, loaded, directions_for(loaded, say, vectors=vectors), progress=say)
    for one in made:
        verdicts = {arm.label: arm.verdict for arm in one.run.arms}
        if as_json:
            print_json({"event": "recording", "name": one.name, "layer": one.run.settings.layer, "verdicts": verdicts})
        else:
            typer.echo(f"{one.name}: " + ", ".join(f"{label} {verdict}" for label, verdict in verdicts.items()))
    size = sum(path.stat().st_size for path in folder.glob("*.json"))
    if as_json:
        print_json({"event": "done", "folder": str(folder), "bytes": size})
    else:
        typer.echo(f"{len(made)} recordings, {size / 1000:.0f} KB, written to {folder}")
