"""Straight paths between noise and data: the one time convention, time densities, solvers.

    x_t = t * data + (1 - t) * noise        t = 0 is noise, t = 1 is clean
    velocity = dx/dt = data - noise

Flow Matching (arXiv 2210.02747), Rectified Flow (arXiv 2209.03003); the logit-normal density is from Scaling
Rectified Flow Transformers (arXiv 2403.03206). Much public code runs time the other way round: convert at the border.

Shape letters: B batch, N positions, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def interpolate(data_BND: Tensor, noise_BND: Tensor, t_B: Tensor) -> Tensor:
    """The point x_t of every example's path."""
    return torch.lerp(noise_BND, data_BND, t_B[:, None, None].to(data_BND.dtype))


def velocity(data_BND: Tensor, noise_BND: Tensor) -> Tensor:
    """The velocity of every example's path; the same at all times."""
    return data_BND - noise_BND


def uniform(count: int, device: torch.device) -> Tensor:
    """Times [B], one in each of `count` equal slices of [0, 1], shuffled: less variance than independent draws."""
    return (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count


def logit_normal(count: int, device: torch.device) -> Tensor:
    """Times [B] whose logit is standard normal: most training where neither end is near (stratified as `uniform`)."""
    logit_B: Tensor = torch.special.ndtri(uniform(count, device).clamp(1e-6, 1 - 1e-6))
    return logit_B.sigmoid()


def euler_step(field: Velocity, x_BND: Tensor, t: float, dt: float) -> Tensor:
    """One first-order step: one evaluation of the field."""
    return x_BND + dt * field(x_BND, x_BND.new_full((len(x_BND),), t))


def heun_step(field: Velocity, x_BND: Tensor, t: float, dt: float) -> Tensor:
    """One second-order step: two evaluations of the field."""
    slope = field(x_BND, x_BND.new_full((len(x_BND),), t))
    end = field(x_BND + dt * slope, x_BND.new_full((len(x_BND),), t + dt))
    return x_BND + dt * (slope + end) / 2


DENSITIES = {"uniform": uniform, "logit_normal": logit_normal}
SOLVERS = {"euler": euler_step, "heun": heun_step}


def solve(field: Velocity, noise_BND: Tensor, *, steps: int, solver: str) -> Tensor:
    """Follow the field from noise (t = 0) to data (t = 1) in equal steps.

    Raises `ValueError` for an unknown solver or fewer than one step.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r}: expected one of {', '.join(SOLVERS)}")
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1 step is needed")
    x_BND = noise_BND
    for step in range(steps):
        x_BND = SOLVERS[solver](field, x_BND, step / steps, 1 / steps)
    return x_BND
