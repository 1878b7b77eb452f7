"""The Sweep tab: start, watch, stop, resume, take away."""
