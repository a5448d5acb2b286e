"""Rectified flow: straight paths between noise and data, the one time convention, and densities of training times.

    x_t = t * data + (1 - t) * noise        t = 0 is noise, t = 1 is clean
    velocity = dx/dt = data - noise

Flow Matching (https://arxiv.org/abs/2210.02747), Rectified Flow (https://arxiv.org/abs/2209.03003); logit-normal and
shifted times: Scaling Rectified Flow Transformers (https://arxiv.org/abs/2403.03206). Much public code runs time the
other way round: convert at the border.

Shape letters: B batch, ... any further axes.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = [
    "TIME_DENSITIES",
    "TimeDensity",
    "interpolate",
    "sample_times",
    "shift_times",
    "velocity",
    "velocity_towards",
]

TimeDensity = Literal["uniform", "logit_normal"]
TIME_DENSITIES: tuple[str, ...] = get_args(TimeDensity)


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point x_t of every example's path; times are [B], or have more of the first axes of `data`."""
    return torch.lerp(noise, data, _over(t, data).to(data.dtype))


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """The velocity of every example's path; the same at all times."""
    return data - noise


def velocity_towards(data: Tensor, x_t: Tensor, t: Tensor, *, least_noise: float) -> Tensor:
    """The velocity at x_t that leads to `data`, for a model that predicts the data (https://arxiv.org/abs/2511.13720).

    least_noise  what 1 - t is taken to be at least, where it divides
    """
    return (data - x_t) / _over((1 - t).clamp(min=least_noise), data)


def sample_times(
    count: int, density: TimeDensity, *, stratified: bool, device: torch.device | str | None = None
) -> Tensor:
    """Training times [B], drawn with torch's global generator of the device.

    density     "uniform" in [0, 1]; "logit_normal": the logit is standard normal, so most are where neither end is near
    stratified  one in each of `count` equal shares of the density, shuffled: less variance than independent draws
    """
    if not stratified:
        return torch.rand(count, device=device) if density == "uniform" else torch.randn(count, device=device).sigmoid()
    share_B = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
    if density == "uniform":
        return share_B
    logit_B: Tensor = torch.special.ndtri(share_B.clamp(1e-6, 1 - 1e-6))
    return logit_B.sigmoid()


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise by a shift above 1, as large images need.

    With u = 1 - t, the share of noise, and s, the shift: u becomes s u / (1 + (s - 1) u).
    """
    return t / (t + shift * (1 - t))


def _over(t: Tensor, x: Tensor) -> Tensor:
    """Times with axes of length 1 for those of `x` that they lack."""
    return t.reshape(*t.shape, *[1] * (x.ndim - t.ndim))
