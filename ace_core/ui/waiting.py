"""What a visitor reads while something else goes first."""

from __future__ import annotations

from ace_core.host import HostState, Place

__all__ = ["in_line", "loading"]


def loading(state: HostState) -> str:
    """The model is not there yet."""
    share = f" {state.progress:.0%}" if state.progress is not None else ""
    return f"Your run starts when the model is ready: {state.message}{share}"


def in_line(place: Place) -> str:
    """Others asked before."""
    runs = "1 run is" if place.ahead == 1 else f"{place.ahead or 'no'} runs are"
    about = "" if place.seconds is None else f" Yours starts in about {max(1, round(place.seconds))} s."
    return f"Waiting in line: {runs} ahead of yours.{about}"
