"""Classifier-free guidance (arXiv 2207.12598): u + s * (c - u); s = 1 is the conditional model itself.

Public code also writes (1 + s) * c - s * u: that s is one less than ours.
"""

from __future__ import annotations

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Move from the unconditional output through the conditional one; logits and velocities alike."""
    return unconditional + scale * (conditional - unconditional)


def check_scale(scale: float) -> None:
    """Raise `ValueError` for a negative scale."""
    if not scale >= 0:
        raise ValueError(f"guidance={scale}: expected 0 (no condition), 1 (the condition as it is) or more")
