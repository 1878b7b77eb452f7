"""The self-check on a loaded model, and the mistakes it must catch."""
