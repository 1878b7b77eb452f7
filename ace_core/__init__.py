"""Refusal steering on language models: affine concept editing beside the methods it unifies.

Implements *Refusal in LLMs is an Affine Function* (Marshall, Scherlis, Belrose; arXiv 2411.09003).
"""

from __future__ import annotations

from ace_core.arms import Arm
from ace_core.comparison import load_directions, stream
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.fitting.extraction import fit_directions
from ace_core.generation import Row, Step, stream_rows
from ace_core.methods import ACE, Addition, AffineAblation, Baseline, DirectionalAblation
from ace_core.models import ChatModel, load_model, wrap
from ace_core.runs import Run, RunBuilder, RunSettings
from ace_core.sampling import Sampling
from ace_core.store import save_directions

__all__ = [
    "ACE",
    "Addition",
    "AffineAblation",
    "Arm",
    "Baseline",
    "ChatModel",
    "DirectionalAblation",
    "EngineError",
    "RefusalDirections",
    "Row",
    "Run",
    "RunBuilder",
    "RunSettings",
    "Sampling",
    "Step",
    "fit_directions",
    "load_directions",
    "load_model",
    "save_directions",
    "stream",
    "stream_rows",
    "wrap",
]

__version__ = "0.1.0"
