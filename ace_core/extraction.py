"""Fitting refusal directions on a model from two sets of prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from ace_core import geometry
from ace_core.activations import Progress, last_token_activations
from ace_core.directions import Moments, RefusalDirections, recommend_layer
from ace_core.embedded import cache_folder
from ace_core.errors import EngineError
from ace_core.models import ChatModel
from ace_core.prompts import Prompt, load_builtin, prompts_digest
from ace_core.store import load_directions, save_directions, vectors_path

__all__ = ["directions_for", "fit_directions"]


def fit_directions(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    heldout_harmful: Sequence[str] | None = None,
    heldout_harmless: Sequence[str] | None = None,
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RefusalDirections:
    """Class means of every block's output at the last token of the templated prompt.

    Without held-out prompts every fifth prompt of each set is held out (from five prompts on).

    Args:
        model: the model.
        harmful, harmless: prompts to fit on.
        heldout_harmful, heldout_harmless: prompts to measure separation on.
        batch_size: rows a forward pass.
        progress: called with (prompts done, prompts in all).
        cancelled: polled between batches.

    Raises:
        EngineError: for empty or overlapping sets, or means that coincide.
    """
    if set(harmful) & set(harmless):
        shared = next(iter(set(harmful) & set(harmless)))
        raise EngineError(f"The prompt '{shared[:60]}' is in both sets: remove it from one of them.")
    if heldout_harmful is None:
        harmful, heldout_harmful = _hold_out(harmful)
    if heldout_harmless is None:
        harmless, heldout_harmless = _hold_out(harmless)
    sets = [list(harmless), list(harmful), list(heldout_harmless), list(heldout_harmful)]
    total, done = sum(map(len, sets)), 0

    def run(texts: list[str], consume: Callable[[list[int], Tensor], None]) -> None:
        nonlocal done
        base = done
        report = lambda n, _: progress(base + n, total)  # noqa: E731
        for indices, activations in last_token_activations(
            model, texts, batch_size=batch_size, progress=report, cancelled=cancelled
        ):
            consume(indices, activations)
        done = base + len(texts)

    means = []
    for texts in sets[:2]:
        moments = Moments(len(model.blocks), model.width)
        run(texts, lambda _, activations, m=moments: m.update(activations))
        means.append(moments.mean())
    unit = geometry.unit_vector(geometry.mean_difference(*means))
    low, high = (means[0] * unit).sum(-1, keepdim=True), (means[1] * unit).sum(-1, keepdim=True)
    heldout = []
    for texts in sets[2:]:
        coordinates = torch.empty(len(model.blocks), len(texts))

        def keep(indices: list[int], activations: Tensor, out: Tensor = coordinates) -> None:
            out[:, indices] = geometry.coordinate(torch.einsum("lbd,ld->lb", activations, unit), low, high)

        run(texts, keep)
        heldout.append(coordinates)
    metadata = {
        "format": "ace_core vectors 1",
        "model_id": model.model_id,
        "revision": model.revision,
        "precision": model.precision,
        "template_sha256": model.template_digest,
        "site": "block output",
        "position": "last prompt token",
        "harmless_sha256": prompts_digest(map(Prompt, harmless)),
        "harmful_sha256": prompts_digest(map(Prompt, harmful)),
        "harmless_count": str(len(harmless)),
        "harmful_count": str(len(harmful)),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    draft = RefusalDirections(means[0], means[1], heldout[0], heldout[1], 0, metadata)
    layer = recommend_layer(draft.separation)
    return RefusalDirections(means[0], means[1], heldout[0], heldout[1], layer, metadata)


def directions_for(
    model: ChatModel, progress: Callable[[str, float | None], None] = lambda message, fraction: None
) -> RefusalDirections:
    """Directions of any model: the file that ships, else an earlier fit from the cache, else a new fit on the
    built-in prompts of split ``fit``, held out on ``validation``.

    A new fit is cached only for models of the hub, whose commit says which weights it belongs to.
    """
    shipped = vectors_path(model.model_id)
    if shipped.is_file():
        directions = load_directions(shipped)
        model.accepts(directions)
        return directions
    cached = vectors_path(f"{model.model_id}@{model.revision}", cache_folder() / "vectors")
    if model.revision and cached.is_file():
        # a damaged or outdated cache is no reason to stop
        with contextlib.suppress(EngineError):
            directions = load_directions(cached)
            model.accepts(directions)
            return directions
    message = "Fitting refusal directions on the built-in prompts (once)"
    progress(message, 0.0)
    directions = fit_directions(
        model,
        _builtin("harmful", "fit"),
        _builtin("harmless", "fit"),
        heldout_harmful=_builtin("harmful", "validation"),
        heldout_harmless=_builtin("harmless", "validation"),
        progress=lambda done, total: progress(message, done / total),
    )
    if model.revision:
        with contextlib.suppress(EngineError):  # a read-only cache only costs time
            save_directions(directions, cached)
    return directions


def _builtin(kind: str, split: str) -> list[str]:
    return [prompt.text for prompt in load_builtin(kind, split)]


def _hold_out(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    texts = list(dict.fromkeys(texts))
    if len(texts) < 5:
        return texts, []
    return [t for i, t in enumerate(texts) if i % 5 != 4], texts[4::5]
