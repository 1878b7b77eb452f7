"""The browser page. Each module builds one part; nothing here computes, and nothing below imports it."""

from __future__ import annotations

from ace_core.ui.page import build_page, launch, load_recorded
from ace_core.ui.serving import serve_until_told

__all__ = ["build_page", "launch", "load_recorded", "serve_until_told"]
