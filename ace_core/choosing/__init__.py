"""Choosing the block to steer, with reasons."""
