"""Many visitors on one model: who waits, who is served, and how their rows share one batch."""
