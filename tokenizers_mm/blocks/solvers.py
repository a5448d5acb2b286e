"""Solvers of the ODE dx/dt = velocity(x, t) from noise (t = 0) to data (t = 1): Euler's method and Heun's.

Heun's for diffusion models: Elucidating the Design Space of Diffusion-Based Generative Models
(https://arxiv.org/abs/2206.00364), whose last step is one of Euler's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["SOLVERS", "Solver", "Velocity", "euler_step", "heun_step", "solve"]

Solver = Literal["euler", "heun"]
# Velocities at points [B, ...] and times [B].
Velocity = Callable[[Tensor, Tensor], Tensor]


def euler_step(field: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    """One first-order step: one evaluation of the field."""
    return x + dt * field(x, _times(x, t))


def heun_step(field: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    """One second-order step: two evaluations of the field."""
    slope = field(x, _times(x, t))
    end = field(x + dt * slope, _times(x, t + dt))
    return x + dt * (slope + end) / 2


SOLVERS = {"euler": euler_step, "heun": heun_step}


def solve(field: Velocity, noise: Tensor, *, steps: int, solver: str, evaluates_end: bool = True) -> Tensor:
    """Follow the field in equal steps.

    evaluates_end  whether the field is ever evaluated at t = 1. There is nothing left to denoise there, and models that
                   are never trained near it cannot say; without it the last step is one of Euler's

    Raises `ValueError` for an unknown solver or fewer than one step.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r}: expected one of {', '.join(SOLVERS)}")
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1 step is needed")
    x = noise
    for step in range(steps):
        advance = SOLVERS[solver] if evaluates_end or step < steps - 1 else euler_step
        x = advance(field, x, step / steps, 1 / steps)
    return x


def _times(x: Tensor, t: float) -> Tensor:
    """[B], at least float32: half-precision times would be rounded to 3 digits."""
    return torch.full((len(x),), t, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
