"""The gallery: a few runs of the default model, recorded so that a page can show them without any model."""

from __future__ import annotations

from ace_core.gallery.files import GALLERY, MAX_BYTES, read_classes, read_gallery, record, write_gallery
from ace_core.gallery.recipes import RECIPES, Recipe
from ace_core.gallery.recordings import FORMAT, Classes, Recording

__all__ = [
    "FORMAT",
    "GALLERY",
    "MAX_BYTES",
    "RECIPES",
    "Classes",
    "Recipe",
    "Recording",
    "read_classes",
    "read_gallery",
    "record",
    "write_gallery",
]
