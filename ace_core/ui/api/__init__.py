"""Named endpoints for programs: ``gradio_client``, plain HTTP and MCP."""

from __future__ import annotations

from ace_core.ui.api.attaching import attach
from ace_core.ui.api.guard import Guard, guarded

__all__ = ["Guard", "attach", "guarded"]
