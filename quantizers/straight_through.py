"""How a gradient passes a quantizer: three estimators, each a function of the vectors z and their quantized q.

    straight_through  dq/dz = 1: Estimating or Propagating Gradients Through Stochastic Neurons
                      (https://arxiv.org/abs/1308.3432)
    rotation          dq/dz = the rotation and scaling that takes z to q: Restructuring Vector Quantization with the
                      Rotation Trick (https://arxiv.org/abs/2410.06424)
    diveq             q is reached by a step from z of length |q - z| in a noisy direction, which carries gradients to z
                      and to q: DiVeQ, Differentiable Vector Quantization using the Reparameterization Trick
                      (https://arxiv.org/abs/2509.26469)

Vectors are along the last dimension. Where z needs no gradient, the first two return q itself.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Literal["straight_through", "rotation", "diveq"]
ESTIMATORS: tuple[Estimator, ...] = ("straight_through", "rotation", "diveq")


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """q with the gradient of z; none reaches q."""
    if not (torch.is_grad_enabled() and z.requires_grad):
        return q.detach()
    return z + (q - z).detach()


def rotation(z: Tensor, q: Tensor) -> Tensor:
    """q, as a rotated and scaled z whose rotation and scale are held fixed; no gradient reaches q."""
    if not (torch.is_grad_enabled() and z.requires_grad):
        return q.detach()
    with torch.no_grad():
        z_unit, q_unit = F.normalize(z, dim=-1), F.normalize(q, dim=-1)
        between = F.normalize(z_unit + q_unit, dim=-1)
        length_q, length_z = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (q, z))
        scale: Tensor = length_q / length_z.clamp(min=1e-6)
    # R z = z - 2 b (b.z) + 2 q^ (z^.z): the reflection that takes z^ to -q^, then the one that takes it back.
    turned: Tensor = (
        z - 2 * between * (between * z).sum(-1, keepdim=True) + 2 * q_unit * (z_unit * z).sum(-1, keepdim=True)
    )
    turned = turned * scale
    return turned + (q - turned).detach()  # removes what rounding left


def diveq(z: Tensor, q: Tensor, *, variance: float = 1e-3) -> Tensor:
    """Noisy step from z to about q; gradients of its length reach both z and q.

    variance  of the noise on the direction: 0 gives exactly q
    """
    step = q - z
    direction = F.normalize(step + variance**0.5 * torch.randn_like(step), dim=-1).detach()
    # The gradient of a norm is undefined at zero, where z is q and nothing is to be moved.
    length = step.square().sum(-1, keepdim=True).clamp(min=1e-20).sqrt()
    return z + direction * length
