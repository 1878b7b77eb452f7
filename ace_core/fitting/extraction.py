"""Fitting refusal directions on a model from two sets of prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ace_core import geometry
from ace_core.activations import SITES, Progress, Site, Stopped, TimeLeft
from ace_core.chat import check_prompt
from ace_core.directions import RefusalDirections, recommend_layer
from ace_core.embedded import cache_folder
from ace_core.errors import EngineError
from ace_core.fitting.collecting import ClassCollector, CoordinateCollector, collect, sampled_rows
from ace_core.fitting.positions import Position, describe_position
from ace_core.fitting.units import check_vectors, imported_units, variant_units
from ace_core.fitting.variants import IMPORTED, VARIANTS, variant_named
from ace_core.models import ChatModel
from ace_core.prompts import Prompt, evenly, load_builtin, prompts_digest
from ace_core.store import load_directions, save_directions, vectors_path

__all__ = ["LEAST_STOPPED", "complete_directions", "directions_for", "fit_directions"]

_BUILTIN_PROMPTS = 128
"""Of each class, as in the paper; more would keep whoever opens a large model waiting."""

LEAST_STOPPED = 32
"""Prompts of each class from which a fit that is stopped early still gives directions."""

_DERIVED = "mean_difference"
"""The variant that needs no unit vectors beside the means."""


def fit_directions(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    heldout_harmful: Sequence[str] | None = None,
    heldout_harmless: Sequence[str] | None = None,
    variant: str = "mean_difference",
    vectors: Mapping[int, Tensor] | None = None,
    position: Position = "last",
    site: Site = "output",
    reference: Sequence[str] = (),
    seed: int = 0,
    split_rule: str = "",
    licence: str = "",
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    should_stop: Callable[[], bool] = lambda: False,
) -> RefusalDirections:
    """Class means of every block at one position of the templated prompt, and a direction between them.

    Without held-out prompts every fifth prompt of each set is held out (from five prompts on). Means are streamed in
    float64, so memory does not grow with the number of prompts; variants that need the activations themselves see at
    most :data:`ace_core.fitting.collecting.MAX_SAMPLES` prompts a class, drawn from ``seed``.

    Args:
        model: the model.
        harmful, harmless: prompts to fit on.
        heldout_harmful, heldout_harmless: prompts to measure separation on.
        variant: a key of :data:`ace_core.fitting.variants.VARIANTS`, or ``imported``, see :func:`complete_directions`.
        vectors: for the variant ``imported``.
        position: ``last`` token of the prompt (the paper), a negative number counting from its end, the last token of
            the ``instruction``, or the ``mean`` over it; see :mod:`ace_core.fitting.positions`.
        site: read at the ``output`` (the paper) or ``input`` (Arditi et al.) of each block. Edits happen at outputs, so
            directions of inputs are for comparison.
        reference: a third prompt set, for ACE's reference ``third``.
        seed: draws samples and the order of batches.
        split_rule: in words, how the prompts were split; kept in the metadata.
        licence: of the prompts, if known; kept in the metadata.
        batch_size: rows a forward pass.
        progress: called with (prompts done, prompts in all); see :class:`ace_core.activations.TimeLeft`.
        cancelled: polled between batches; once true, everything is dropped.
        should_stop: polled between batches; once true, directions are made from what is done if that is at least
            :data:`LEAST_STOPPED` prompts a class (or all there are), and ``stopped`` in the metadata says of how many.

    Raises:
        EngineError: for empty or overlapping sets, unknown options, or means that coincide.
        Stopped: after ``cancelled``, or after ``should_stop`` with too few prompts done.
    """
    if variant != IMPORTED:
        variant_named(variant)
    elif vectors is None:
        raise EngineError("The variant 'imported' needs vectors: read them from a file, or choose another variant.")
    else:
        check_vectors(vectors, len(model.blocks), model.width)
    if site not in SITES:
        raise EngineError(f"Unknown site '{str(site)[:40]}': choose one of {', '.join(SITES)}.")
    described = describe_position(position)
    if set(harmful) & set(harmless):
        shared = next(iter(set(harmful) & set(harmless)))
        raise EngineError(f"The prompt '{shared[:60]}' is in both sets: remove it from one of them.")
    if heldout_harmful is None:
        harmful, heldout_harmful = _hold_out(harmful)
    if heldout_harmless is None:
        harmless, heldout_harmless = _hold_out(harmless)
    if not harmful or not harmless:
        raise EngineError("No prompts were given for one of the two classes: provide at least one each.")
    sets = (harmless, harmful, reference, heldout_harmless, heldout_harmful)
    for prompt in (prompt for texts in sets for prompt in texts):
        check_prompt(prompt)
    total = sum(map(len, sets))
    fitted = sum(map(len, sets[:3]))
    options: dict[str, Any] = {
        "position": position,
        "site": site,
        "batch_size": batch_size,
        "seed": seed,
        "cancelled": cancelled,
        "should_stop": should_stop,
    }
    rows: list[list[int]] = [[], [], []]
    if variant in VARIANTS and VARIANTS[variant].samples:
        rows[:2] = sampled_rows([len(harmless), len(harmful)], seed)
    shape = len(model.blocks), model.width
    classes = [ClassCollector(texts, *shape, kept) for texts, kept in zip(sets[:3], rows, strict=True)]
    whole = collect(model, classes, progress=lambda done, _: progress(done, total), **options)
    low, high, third = classes
    if any(len(c.done) < min(LEAST_STOPPED, len(c.texts)) for c in (low, high)):
        raise Stopped(
            f"The extraction was stopped after {len(low.done)} harmless and {len(high.done)} harmful prompts: "
            f"{LEAST_STOPPED} of each are the least to make directions from."
        )
    means = low.moments.mean(), high.moments.mean()
    difference = geometry.mean_difference(*means)
    if bool((torch.linalg.vector_norm(difference, dim=-1) == 0).any()):
        if site == "input":
            raise EngineError(
                "At some block's input the two class means are equal, as at the first block where every prompt has the "
                "same token: choose the mean over the instruction, or site output."
            )
        raise EngineError("At some block the two class means are equal: use two different prompt sets.")
    unit, notes = geometry.unit_vector(difference), {}
    if variant == IMPORTED:
        unit, notes = imported_units(vectors or {}, difference)
    elif variant != _DERIVED:
        unit, notes = variant_units(VARIANTS[variant], low, high, means, cancelled)
    ends = [(mean * unit).sum(-1) for mean in means]
    heldout = [CoordinateCollector(texts, unit, *ends) for texts in sets[3:]]
    if whole:
        whole = collect(model, heldout, progress=lambda done, _: progress(fitted + done, total), **options)
    metadata = _provenance(model, low, high, third) | notes
    metadata |= {"variant": variant, "position": described, "site": SITES[site], "seed": str(seed)}
    if split_rule:
        metadata["split_rule"] = split_rule
    if licence:
        metadata["prompts_licence"] = licence
    if not whole:
        metadata["stopped"] = (
            f"after {len(low.done)} of {len(harmless)} harmless and {len(high.done)} of {len(harmful)} harmful prompts"
        )
    draft = RefusalDirections(
        *means,
        heldout[0].coordinates,
        heldout[1].coordinates,
        0,
        metadata,
        None if variant == _DERIVED else unit,
        third.moments.mean() if third.done else None,
    )
    return replace(draft, recommended_layer=recommend_layer(draft.separation))


def complete_directions(
    model: ChatModel, vectors: Mapping[int, Tensor], harmful: Sequence[str], harmless: Sequence[str], **options: Any
) -> RefusalDirections:
    """Directions of another tool with class means measured here, which every method but addition needs.

    A vector's length is dropped, since coefficients are in class gaps, and one that points from harmful to harmless is
    turned round. Blocks without a vector get the mean difference. The metadata lists the blocks of each kind:
    ``imported_blocks``, ``turned_blocks`` and ``mean_difference_blocks``.

    Args:
        model: the model.
        vectors: 0-based decoder block → ``(d,)``, such as ``read_vectors(path).vectors`` of :mod:`ace_core.exchange`.
        harmful, harmless: prompts to measure the means on.
        options: further arguments of :func:`fit_directions`.

    Raises:
        EngineError: for no vectors, or one of another width, of a block that the model lacks, that is zero or not
            finite, or along which the classes don't differ; and as :func:`fit_directions`.
    """
    return fit_directions(model, harmful, harmless, variant=IMPORTED, vectors=vectors, **options)


def _provenance(model: ChatModel, low: ClassCollector, high: ClassCollector, third: ClassCollector) -> dict[str, str]:
    found = {
        "format": "ace_core vectors 1",
        "model_id": model.model_id,
        "revision": model.revision,
        "precision": model.precision,
        "template_sha256": model.template_digest,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    for name, collector in (("harmless", low), ("harmful", high), ("reference", third)):
        if collector.done:
            found[f"{name}_sha256"] = prompts_digest(map(Prompt, collector.seen))
            found[f"{name}_count"] = str(len(collector.done))
    return found


def directions_for(
    model: ChatModel,
    progress: Callable[[str, float | None], None] = lambda message, fraction: None,
    *,
    vectors: Path | str | None = None,
) -> RefusalDirections:
    """Directions of any model: a vectors file that is given, else the file that ships, else an earlier fit from the
    cache, else a new fit on the built-in prompts of split ``fit``, held out on ``validation``.

    A new fit is cached only for models of the hub, whose commit says which weights it belongs to.

    Args:
        model: the model.
        progress: called with a sentence and a fraction or None.
        vectors: a vectors file of this model.

    Raises:
        EngineError: if the file that is given or that ships can't be used with the model, or fitting fails.
    """
    shipped = vectors_path(model.model_id)
    if vectors is not None or shipped.is_file():
        directions = load_directions(shipped if vectors is None else vectors)
        model.accepts(directions)
        return directions
    cached = vectors_path(f"{model.model_id}@{model.revision}", cache_folder() / "vectors")
    if model.revision and cached.is_file():
        # a damaged or outdated cache is no reason to stop
        with contextlib.suppress(EngineError):
            directions = load_directions(cached)
            model.accepts(directions)
            return directions
    message, left = "Fitting refusal directions on the built-in prompts (once)", TimeLeft()

    def report(done: int, total: int) -> None:
        seconds = left(done, total)
        progress(message if seconds is None else f"{message}, about {seconds:.0f} s left", done / total)

    progress(message, 0.0)
    directions = fit_directions(
        model,
        evenly(_builtin("harmful", "fit"), _BUILTIN_PROMPTS),
        evenly(_builtin("harmless", "fit"), _BUILTIN_PROMPTS),
        heldout_harmful=_builtin("harmful", "validation"),
        heldout_harmless=_builtin("harmless", "validation"),
        progress=report,
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
