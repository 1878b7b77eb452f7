"""Endpoints on a page."""

from __future__ import annotations

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.events import api
from gradio.utils import get_function_description, get_function_params

from ace_core.host import ModelHost
from ace_core.ui.api.endpoints import Endpoints

__all__ = ["attach"]

_RUNS_AT_ONCE = 4
_FITS_AT_ONCE = 1


def attach(page: gr.Blocks, host: ModelHost) -> None:
    """Give a page its named endpoints; called while its ``with`` block is open.

    Args:
        page: being built.
        host: owner of the model.
    """
    # a call that skips the queue could neither stream nor be held back
    page.api_open = False
    endpoints = Endpoints(host)
    for function in (endpoints.compare, endpoints.project):
        api(function, concurrency_id="api", concurrency_limit=_RUNS_AT_ONCE)
    api(endpoints.extract, concurrency_id="api-extract", concurrency_limit=_FITS_AT_ONCE)
    for function in page.fns.values():
        if function.api_visibility == "public":
            _describe(function)


def _describe(function: BlockFunction) -> None:
    """Say on the page of the API what the docstring says of arguments and result; ``gr.api`` takes only their types."""
    if function.fn is None:
        return
    _, arguments, result = get_function_description(function.fn)
    for component, (name, *_) in zip(function.inputs, get_function_params(function.fn), strict=True):
        component.label = name  # type: ignore[union-attr]
        component.api_info()["additional_description"] = arguments[name]  # type: ignore[union-attr]
    for component in function.outputs:
        component.label = "result"  # type: ignore[union-attr]
        component.api_info().update(  # type: ignore[union-attr]
            {"type": "object", "additionalProperties": {}, "additional_description": "; ".join(result)}
        )
