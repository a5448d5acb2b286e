"""Checks that constructors share; every one raises a `ValueError` that names the argument and its value."""

from __future__ import annotations

import math


def check_codebook(size: int, dim: int) -> None:
    """At least two rows of at least one channel."""
    if size < 2 or dim < 1:
        raise ValueError(f"size={size}, dim={dim}: expected a codebook of at least 2 rows of at least 1 channel")


def check_not_negative(**values: float) -> None:
    """Weights, shares of a mean and counts."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: may not be negative, NaN or infinite")


def check_positive(**values: float) -> None:
    """Temperatures and scales."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: expected a positive number")
