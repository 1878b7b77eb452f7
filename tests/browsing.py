"""What tests share that open the page in a headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from program import free_port

from ace_core.ui import launch

__all__ = ["complaints_of", "in_browser", "opened_browser", "served"]

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_NO_CHROMIUM = pytest.mark.skipif(_CHROMIUM is None, reason="no chromium on this machine: install it to test the page")
_USUAL_PATIENCE = 5_000


def in_browser(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs the browser."""
    return pytest.mark.browser(_NO_CHROMIUM(test))


@contextmanager
def opened_browser(patience: int = _USUAL_PATIENCE) -> Iterator[Browser]:
    """A browser; expectations wait ``patience`` milliseconds."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_CHROMIUM, args=_QUIET)
        expect.set_options(timeout=patience)
        yield chromium
        expect.set_options(timeout=_USUAL_PATIENCE)
        chromium.close()


@contextmanager
def served(page: gr.Blocks) -> Iterator[str]:
    """A page on a server of its own; its address."""
    # gradio looks for a port from 7860 on, and so would every process that shares the tests
    address = {"server_name": "127.0.0.1", "server_port": free_port()}
    _, url, _ = launch(page, **address, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


def complaints_of(page: Page) -> list[str]:
    """What the browser complains of from now on: errors and warnings on its console, and errors of scripts."""
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints
