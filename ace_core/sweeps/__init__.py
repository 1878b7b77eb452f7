"""Sweeps: methods, coefficients, layers and prompt sets, scored and reported."""
