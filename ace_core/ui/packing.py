"""Values of the page's own components travel as JSON text.

Gradio's page makes every nested value reactive, and clones and compares it at each update; with a few thousand numbers
that costs more than drawing them. A text is moved as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["pack"]


def pack(value: Mapping[str, Any]) -> str:
    """Compact JSON without ``<``, so that it can't be mistaken for markup anywhere on its way."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")
