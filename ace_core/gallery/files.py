"""Recording the gallery, and its files.

A folder holds one JSON file a recording, named in the order of the list, and ``classes.json`` with the refusal
coordinates of held-out prompts at every block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ace_core.chat import token_texts
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.gallery.recipes import RECIPES, Recipe
from ace_core.gallery.recordings import Classes, Recording
from ace_core.generation import Row, stream_rows
from ace_core.methods import Method
from ace_core.models import ChatModel
from ace_core.runs import Run, RunBuilder, RunSettings

__all__ = ["GALLERY", "MAX_BYTES", "read_classes", "read_gallery", "record", "write_gallery"]

GALLERY = Path(__file__).resolve().parents[2] / "assets" / "gallery"
MAX_BYTES = 1_000_000
"""Most that a whole gallery may weigh."""

_CLASSES = "classes.json"
_RECORDINGS = "[0-9][0-9]-*.json"


def record(
    model: ChatModel, directions: RefusalDirections, prompt: str, methods: Sequence[Method], settings: RunSettings
) -> Run:
    """One comparison from start to end.

    Raises:
        EngineError: one sentence about what to change.
    """
    ids = model.encode(prompt)
    builder = RunBuilder(model.name, prompt, token_texts(model.tokenizer, ids), settings, methods)
    rows = [Row(ids, settings.arm(method), settings.sampling()) for method in methods]
    for step in stream_rows(model, directions, rows):
        builder.add(step)
    return builder.snapshot()


def write_gallery(
    folder: Path,
    model: ChatModel,
    directions: RefusalDirections,
    recipes: Sequence[Recipe] = RECIPES,
    progress: Callable[[str, float | None], None] = lambda message, fraction: None,
) -> tuple[Recording, ...]:
    """Record all ``recipes`` and write them to ``folder``, in place of the gallery that is there.

    Raises:
        EngineError: if a run fails, the gallery would be too large, or the folder can't be written.
    """
    made: list[Recording] = []
    for number, recipe in enumerate(recipes, 1):
        progress(f"Recording “{recipe.title}”", (number - 1) / len(recipes))
        settings = recipe.settings(directions.recommended_layer, directions.blocks)
        run = record(model, directions, recipe.prompt, recipe.methods(), settings)
        made.append(Recording(f"{number:02d}-{recipe.name}", recipe.title, recipe.note, run))
    texts = {f"{one.name}.json": _text(one.to_json()) for one in made}
    classes = Classes.of(model.name, directions)
    if classes is not None:
        texts[_CLASSES] = _text(classes.to_json())
    if sum(len(text.encode()) for text in texts.values()) > MAX_BYTES:
        raise EngineError(f"The gallery is larger than {MAX_BYTES // 1000} KB: record fewer or shorter runs.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
        for old in [*folder.glob(_RECORDINGS), folder / _CLASSES]:
            if old.name not in texts and old.is_file():
                old.unlink()
    except OSError as error:
        raise EngineError(f"{folder} can't be written ({error.strerror or error}): choose another folder.") from None
    return tuple(made)


def read_gallery(folder: Path = GALLERY) -> tuple[Recording, ...]:
    """All recordings of a folder, in order; none if there is no such folder.

    Raises:
        EngineError: for a damaged file.
    """
    return tuple(Recording.from_json(path.stem, data) for path, data in _files(folder, _RECORDINGS))


def read_classes(folder: Path = GALLERY) -> Classes | None:
    """Held-out coordinates; None if there is no such file.

    Raises:
        EngineError: for a damaged file.
    """
    return next((Classes.from_json(data) for _, data in _files(folder, _CLASSES)), None)


def _files(folder: Path, pattern: str) -> Iterator[tuple[Path, Any]]:
    for path in sorted(folder.glob(pattern)):
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("size")
            yield path, json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            raise EngineError(f"{path.name} is damaged: record the gallery again.") from None


def _text(data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("-0.0,", "0.0,").replace("-0.0]", "0.0]") + "\n"
