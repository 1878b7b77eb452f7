"""An arm of a comparison: one method with the blocks and token positions it edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ace_core.errors import EngineError
from ace_core.methods import Method

__all__ = ["SCOPES", "TOKEN_SCOPES", "Arm", "Scope", "TokenScope", "edited_positions"]

Scope = Literal["one", "window", "all", "shared"]
TokenScope = Literal["all", "prompt", "generated", "last"]
SCOPES: tuple[str, ...] = get_args(Scope)
TOKEN_SCOPES: tuple[str, ...] = get_args(TokenScope)


@dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Args:
        method: what the edit does.
        layer: 0-based decoder block whose output is edited; for ``shared`` the block whose direction all share.
        scope: ``one`` block (the paper's default), a ``window`` from ``layer`` to ``last``, ``all`` blocks each
            with its own direction, or all blocks with one ``shared`` direction (Arditi et al.).
        last: last block of a window, inclusive; None means ``layer``.
        tokens: ``all`` positions, the ``prompt`` only, the ``generated`` ones only, or from the ``last`` prompt
            token on. Positions are absolute; padding is never edited.
    """

    method: Method
    layer: int
    scope: Scope = "one"
    last: int | None = None
    tokens: TokenScope = "all"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise EngineError(f"Unknown layer scope '{self.scope}': choose one of {', '.join(SCOPES)}.")
        if self.tokens not in TOKEN_SCOPES:
            raise EngineError(f"Unknown token scope '{self.tokens}': choose one of {', '.join(TOKEN_SCOPES)}.")

    def blocks(self, count: int) -> range:
        """Blocks edited in a model of ``count`` blocks.

        Raises:
            EngineError: if the layer or window lies outside the model.
        """
        last = self.layer if self.last is None or self.scope != "window" else self.last
        if not 0 <= self.layer < count or not 0 <= last < count:
            bad = last if 0 <= self.layer < count else self.layer
            raise EngineError(f"Layer {bad} is out of range: this model's blocks are 0 to {count - 1}.")
        if last < self.layer:
            raise EngineError(f"The window ends at block {last}, before its start {self.layer}: swap them.")
        if self.scope in ("all", "shared"):
            return range(count)
        return range(self.layer, last + 1)

    def axis(self, block: int) -> int:
        """Block whose direction serves as this arm's axis at ``block``."""
        return self.layer if self.scope == "shared" else block


def edited_positions(tokens: TokenScope, positions: Tensor, prompt_length: int | Tensor) -> Tensor:
    """Which absolute positions a token scope edits.

    Args:
        tokens: the scope.
        positions: integer tensor of absolute positions, negative for padding.
        prompt_length: number of prompt tokens, broadcastable to ``positions``.

    Returns:
        Bool tensor of the shape of ``positions``.
    """
    real = positions >= 0
    if tokens == "prompt":
        return real & (positions < prompt_length)
    if tokens == "generated":
        return real & (positions >= prompt_length)
    if tokens == "last":
        return real & (positions >= prompt_length - 1)
    return real
