"""Means over the positions that a mask calls real: the terms of every quantizer's loss.

Shape letters: B batch, N positions, D channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mean_over(x_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Mean over the elements of real positions, a scalar; zero (with a gradient) where there are none."""
    if not x_BND.numel():
        return x_BND.sum()
    if mask_BN is None:
        return x_BND.mean()
    return (x_BND * mask_BN[..., None]).sum() / (mask_BN.sum() * x_BND.shape[-1]).clamp(min=1)


def mean_square(a_BND: Tensor, b_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Mean squared difference over the elements of real positions; see `mean_over`."""
    if mask_BN is None and a_BND.numel():
        return F.mse_loss(a_BND, b_BND)  # one pass, where the difference and its square would be two more
    return mean_over((a_BND - b_BND).square(), mask_BN)
