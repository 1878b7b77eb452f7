"""What programs can call.

Signatures and docstrings are what Gradio shows on its API page and to MCP clients, so annotations here are values
rather than text, and every argument is described in one line.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import gradio as gr

from ace_core import lab
from ace_core.errors import EngineError, explained
from ace_core.host import HostState, ModelHost
from ace_core.methods import ACE, Addition
from ace_core.prompts import Prompt
from ace_core.runs import RunSettings
from ace_core.ui.api import answers, arguments
from ace_core.ui.api.fits import Fits
from ace_core.ui.controls import SCOPE_NAMES, SEED_LIMIT, TOKEN_SCOPE_NAMES
from ace_core.ui.reading import PromptReading
from ace_core.ui.waiting import in_line

__all__ = ["PROMPTS_RANGE", "Endpoints"]

PROMPTS_RANGE = (5, 100)
"""Prompts of each class that extract takes."""

_LOADING_SECONDS = 60.0
_EXTRACT_SECONDS = 300.0
_LIVE_SECONDS = 1 / 10
_POLL_SECONDS = 0.25
_MOST_TOP_K = 1_000_000


class Endpoints:
    """The endpoints of one page; each is called from several threads.

    Args:
        host: owner of the model.
    """

    def __init__(self, host: ModelHost) -> None:
        self._host, self._fits = host, Fits()

    def compare(
        self,
        request: gr.Request,
        prompt: str,
        methods: list[str] | None = None,
        layer: int | None = None,
        scope: Literal["one", "window", "all", "shared"] = "one",
        last: int | None = None,
        tokens: Literal["all", "prompt", "generated", "last"] = "all",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        directions: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Answer one prompt under several steering methods side by side, streamed; the last update is the whole run.

        A method is 'baseline', 'addition:A', 'ablation', 'affine_ablation', 'ace:A' or 'ace:A@REFERENCE', where the
        coefficient A is in class gaps, from -20 to 20, and REFERENCE is harmless, pooled, harmful or origin.
        Coordinates are those at the layer, after the edit: 0 at the harmless mean, 1 at the harmful mean.

        Args:
            prompt: What the user says, at most 4,000 characters.
            methods: 1 to 8 methods, an arm each; null is baseline, addition:-1, ablation and ace:0.
            layer: 0-based decoder block whose output is edited; null is the recommended one.
            scope: Edit one block, a window from layer to last, all blocks, or all with the layer's shared direction.
            last: Last block of a window, inclusive; ignored otherwise.
            tokens: Edit all tokens, the prompt, the generated ones, or all from the last prompt token on.
            max_new_tokens: Longest answer, from 1 to 512, or what the server allows.
            temperature: 0 always takes the likeliest token; at most 5.
            top_p: Sample among the likeliest tokens that together reach this probability; above 0, at most 1.
            top_k: Sample among this many likeliest tokens; 0 is no limit.
            seed: The same seed draws the same samples.
            directions: A name that extract returned; empty is the model's own directions.

        Returns:
            status (waiting, running or done) and message
            layer
            arms: label, method, coefficient, text, tokens (how many), stop, verdict, coordinates of the answer's tokens
            run, when done: the record of all tokens, with coordinates at all blocks before and after the edit
        """
        with _sentences():
            state = self._ready()
            fitted = self._fits.find(directions, state)
            last_block = fitted.blocks - 1
            chosen = arguments.methods(methods)
            where = fitted.recommended_layer if layer is None else arguments.whole(layer, "layer", 0, last_block)
            window = arguments.choice(scope, "scope", tuple(SCOPE_NAMES)) == "window"
            # the record names one coefficient a method, each arm its own
            ace = next((method for method in chosen if isinstance(method, ACE)), ACE(0.0))
            added = next((method for method in chosen if isinstance(method, Addition)), Addition(-1.0))
            settings = RunSettings(
                layer=where,
                last=arguments.whole(last, "last", where, last_block) if window else None,
                scope=scope,
                token_scope=arguments.choice(tokens, "tokens", tuple(TOKEN_SCOPE_NAMES)),
                coefficient=ace.alpha,
                addition=added.alpha,
                reference=ace.reference,
                temperature=arguments.number(temperature, "temperature", 0, 5),
                top_p=arguments.number(top_p, "top_p", 0, 1),
                top_k=arguments.whole(top_k, "top_k", 0, _MOST_TOP_K),
                seed=arguments.whole(seed, "seed", 0, SEED_LIMIT),
                max_new_tokens=arguments.whole(max_new_tokens, "max_new_tokens", 1, self._host.limits.tokens),
            )
            stream = self._host.compare(
                arguments.prompt(prompt), settings, chosen, fitted, visitor=request.session_hash
            )
            try:
                message = ""
                while (place := stream.wait(_POLL_SECONDS)) is not None:
                    if message != (message := in_line(place)):
                        yield answers.waiting(message, where)
                due = 0.0
                for _ in stream:
                    now = time.monotonic()
                    if now < due or stream.builder is None:
                        continue
                    yield answers.running(stream.builder.snapshot())
                    # as much time for the model as for telling, at least
                    due = now + max(_LIVE_SECONDS, 2 * (time.monotonic() - now))
                if stream.builder is None:
                    raise EngineError("The run ended before the first token: run it again.")
                yield answers.done(stream.builder.snapshot())
            finally:
                stream.cancel()

    def extract(
        self,
        request: gr.Request,
        harmful: list[str],
        harmless: list[str],
        variant: str = "mean_difference",
        position: str = "last",
        seed: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Fit a direction from harmless to harmful prompts on the loaded model, for use in compare and project.

        Updates tell how far it is. Of each set 60 % of the prompts are fitted on, 20 % choose the layer, and 20 % are
        left for tests.

        Args:
            harmful: 5 to 100 different prompts that a model should refuse.
            harmless: 5 to 100 different prompts that it should answer.
            variant: mean_difference (the paper's), or another of the Directions tab, such as logistic_probe or leace.
            position: Token that is read: last, instruction, mean (over all), or a negative number from the end.
            seed: Another one splits the prompts in another way.

        Returns:
            status (running or done), message and fraction (0 to 1, or null)
            directions, when done: a name to pass on; the newest are kept while the server runs
            model, recommended_layer, split and notes
            layers: auroc and d_prime of held-out prompts (null if unknown) and coordinate of the origin, a block each
        """
        with _sentences():
            state = self._ready()
            texts = [
                arguments.prompts(value, name, *PROMPTS_RANGE)
                for name, value in (("harmful", harmful), ("harmless", harmless))
            ]
            options = lab.lab_options(
                {
                    "seed": arguments.whole(seed, "seed", 0, SEED_LIMIT),
                    "limit": PROMPTS_RANGE[1],
                    "variant": arguments.choice(variant, "variant", tuple(lab.VARIANT_CHOICES)),
                    "position": position,
                    "site": "output",
                }
            )
            sets = [lab.LabSet(tuple(map(Prompt, part)), "sent by a program", "the sender's own") for part in texts]
            parts = lab.split_sets(*sets, seed=options.seed, limit=options.limit)
            asked = lab.LabRequest(parts, options, maps=False)
            task = self._host.work(lambda model, task: lab.fit_lab(model, task, asked), visitor=request.session_hash)
            deadline = time.monotonic() + _EXTRACT_SECONDS
            try:
                for report in task.reports():
                    if report.done:
                        break
                    if time.monotonic() > deadline:
                        raise EngineError("The fit took too long and was stopped: use fewer or shorter prompts.")
                    yield {"status": "running", "message": report.message, "fraction": report.fraction}
                fit = task.result(0)
            finally:
                task.cancel()
            name = self._fits.keep(fit.directions, state.info)
            yield answers.fitted(name, fit, lab.look_at(fit.directions))

    def project(
        self, request: gr.Request, prompt: str, layers: list[int] | None = None, directions: str = ""
    ) -> dict[str, Any]:
        """Tell where every token of a prompt lies along the refusal direction at some layers, without any edit.

        Coordinates are 0 at the harmless mean and 1 at the harmful mean.

        Args:
            prompt: What the user says, at most 4,000 characters.
            layers: 0-based decoder blocks to read; null is the recommended one.
            directions: A name that extract returned; empty is the model's own directions.

        Returns:
            model and recommended_layer
            tokens: texts of the templated prompt's tokens
            layers: layer and coordinates, one a token
        """
        with _sentences():
            state = self._ready()
            fitted = self._fits.find(directions, state)
            wanted = arguments.layers(layers, "layers", fitted.blocks, fitted.recommended_layer)
            reading = PromptReading(self._host, arguments.prompt(prompt), fitted, request.session_hash)
            for _ in reading:
                pass
            return answers.projected(state.info, lab.prompt_layers(reading.run(), fitted), wanted)

    def _ready(self) -> HostState:
        """The host with a model, waiting a while for one that is being loaded."""
        state = self._host.state
        if state.status == "loading":
            state = self._host.wait_ready(_LOADING_SECONDS)
        if state.status == "loading":
            raise EngineError("The model is still being loaded: try again in a minute.")
        if state.status != "ready":
            raise EngineError(state.message)
        return state


@contextmanager
def _sentences() -> Iterator[None]:
    """Every exception as one sentence that Gradio passes on; none is printed."""
    try:
        yield
    except Exception as error:
        told = explained(error, "call", "fewer methods or a shorter prompt")
        raise gr.Error(str(told), print_exception=False) from None
