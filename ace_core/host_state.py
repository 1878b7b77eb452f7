"""What a host says about itself and its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ace_core.directions import RefusalDirections
from ace_core.models import ChatModel

__all__ = ["HostState", "ModelInfo"]


@dataclass(frozen=True)
class ModelInfo:
    """What a page says about a loaded model."""

    name: str
    model_id: str
    blocks: int
    width: int
    device: str
    precision: str
    parameters: int
    chat: bool

    @classmethod
    def of(cls, model: ChatModel) -> ModelInfo:
        """About ``model``."""
        return cls(
            name=model.name,
            model_id=model.model_id,
            blocks=len(model.blocks),
            width=model.width,
            device=str(model.device),
            precision=model.precision,
            parameters=model.parameters,
            chat=model.chat,
        )


@dataclass(frozen=True)
class HostState:
    """Where the host stands.

    ``recorded`` is a host that has no model and will have none. ``progress`` is a fraction, or None when unknown.
    """

    status: Literal["empty", "loading", "ready", "failed", "recorded"] = "empty"
    message: str = "No model is loaded."
    progress: float | None = None
    info: ModelInfo | None = None
    directions: RefusalDirections | None = None
