"""One prompt under several methods: the main entry point of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ace_core import store
from ace_core.arms import Arm, Scope, TokenScope
from ace_core.directions import RefusalDirections
from ace_core.generation import Row, Step, stream_rows
from ace_core.methods import Method
from ace_core.models import ChatModel
from ace_core.sampling import Sampling

__all__ = ["load_directions", "stream"]


def load_directions(model: ChatModel, path: Path | str | None = None) -> RefusalDirections:
    """Directions of ``model`` from ``path``, or from the file that ships for it.

    Raises:
        EngineError: if there is no such file, it is damaged, or it belongs to another model.
    """
    directions = store.load_directions(store.vectors_path(model.model_id) if path is None else path)
    model.accepts(directions)
    return directions


def stream(
    model: ChatModel,
    directions: RefusalDirections,
    prompt: str,
    methods: Sequence[Method],
    *,
    layer: int | None = None,
    scope: Scope = "one",
    last: int | None = None,
    tokens: TokenScope = "all",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    max_new_tokens: int = 64,
    system: str | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Generate an answer to ``prompt`` under every method at once; row k of each step is ``methods[k]``.

    Args:
        model: a loaded model.
        directions: fitted on it.
        prompt: what the user says.
        methods: e.g. ``[Baseline(), ACE(0.0)]``.
        layer: 0-based decoder block to edit; None takes the recommended one.
        scope, last, tokens: which blocks and positions are edited, see :class:`ace_core.arms.Arm`.
        temperature, top_p, top_k, seed, max_new_tokens: see :class:`ace_core.sampling.Sampling`.
        system: a system prompt in place of the template's own.
        cancelled: polled before every token.

    Raises:
        EngineError: one sentence about what to change.
    """
    layer = directions.recommended_layer if layer is None else layer
    sampling = Sampling(temperature, top_p, top_k, seed, max_new_tokens)
    ids = model.encode(prompt, system)
    rows = [Row(ids, Arm(method, layer, scope, last, tokens), sampling) for method in methods]
    return stream_rows(model, directions, rows, cancelled=cancelled)
