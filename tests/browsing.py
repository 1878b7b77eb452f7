"""What tests share that open the page in a headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

__all__ = ["in_browser", "opened_browser"]

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
