"""Where in a templated prompt activations are read, for any chat template.

A template writes some tokens before and after what the user says. They are found by encoding a few different texts and
keeping what all encodings share at both ends, so no template has to be known. A token that joins template and user text
counts as the user's. Models without a template have no such tokens apart from a beginning-of-text mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ace_core.errors import EngineError
from ace_core.models import ChatModel

__all__ = ["POSITIONS", "Position", "TemplateEnds", "describe_position", "parse_position", "template_ends"]

Position = Literal["last", "instruction", "mean"] | int

POSITIONS: dict[str, str] = {
    "last": "last prompt token",
    "instruction": "last token of the instruction",
    "mean": "mean over the instruction",
}
"""Positions by name, in words. A negative whole number counts tokens from the end of the prompt; -1 is ``last``.

Refusal is read best at the template's last token, harmfulness at the last token of the user's words (arXiv 2507.11878).
"""

# they start and end differently, so that what they share is the template's
_PROBES = ("a", "Z9", "?!", "0 b", "\u65e5", "(x)")


def parse_position(text: str) -> Position:
    """Read a position: a key of :data:`POSITIONS`, or a negative whole number as in ``"-3"``.

    Raises:
        EngineError: for anything else.
    """
    name = text.strip().lower()
    try:
        number = int(name)
    except ValueError:
        return _checked(name)
    return _checked(number)


def describe_position(position: Position) -> str:
    """A position in words, for metadata and people.

    Raises:
        EngineError: for an unknown position.
    """
    position = _checked(position)
    return POSITIONS[position] if isinstance(position, str) else f"token {position} from the end of the prompt"


def _checked(position: str | int) -> Position:
    if isinstance(position, int) and not isinstance(position, bool) and position < 0:
        return "last" if position == -1 else position
    for name in ("last", "instruction", "mean"):
        if position == name:
            return name
    raise EngineError(
        f"Unknown position '{str(position)[:40]}': choose one of {', '.join(POSITIONS)}, or a negative number that "
        "counts tokens from the end."
    )


@dataclass(frozen=True)
class TemplateEnds:
    """Token ids that the template of a model writes before and after every user's words."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    def instruction(self, ids: Sequence[int]) -> range:
        """Indices of the user's words in a templated prompt, at least one."""
        start = _shared(ids, self.head)
        stop = len(ids) - _shared(ids[::-1], self.tail[::-1])
        # only words that the template swallows whole leave nothing
        return range(start, stop) if start < stop else range(len(ids) - 1, len(ids))

    def columns(self, ids: Sequence[int], position: Position) -> range:
        """Indices of the tokens to average over at a position, at least one.

        Raises:
            EngineError: for an unknown position, or one before the start of the prompt.
        """
        position = _checked(position)
        if position == "mean":
            return self.instruction(ids)
        if position == "instruction":
            return self.instruction(ids)[-1:]
        index = len(ids) + (-1 if isinstance(position, str) else position)
        if index < 0:
            raise EngineError(
                f"Position {position} lies before the start of a prompt of {len(ids)} tokens: "
                "choose one nearer the end."
            )
        return range(index, index + 1)


def template_ends(model: ChatModel) -> TemplateEnds:
    """What the chat template of ``model`` writes around a single user's turn; ``len(tail)`` is the number of
    post-instruction tokens, so positions ``-len(tail)`` to ``-1`` are the template's."""
    first, *others = (model.encode(probe) for probe in _PROBES)
    head = min(_shared(first, other) for other in others)
    tail = min(_shared(first[::-1], other[::-1]) for other in others)
    return TemplateEnds(first[:head], first[len(first) - tail :])


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences have in common from the start."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
