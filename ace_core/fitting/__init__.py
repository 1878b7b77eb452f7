"""Fitting directions: what is read from which prompts, and how a direction is made of it."""
