"""The Learn tab: lessons, each with a live picture."""
