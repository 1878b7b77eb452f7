"""What a lesson is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Choice", "Lesson", "Picture"]

Picture = Literal["stream", "axis", "addition", "origin", "ace", "layers", "drift", "interval"]


@dataclass(frozen=True)
class Choice:
    """One answer to a question, and why it is right or wrong."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True)
class Lesson:
    """One step of the walk.

    ``text`` is Markdown with equations between dollar signs; ``recipe`` names the recorded run of
    :data:`ace_core.gallery.RECIPES` to try it with.
    """

    title: str
    text: str
    picture: Picture
    caption: str
    question: str
    choices: tuple[Choice, ...]
    recipe: str
