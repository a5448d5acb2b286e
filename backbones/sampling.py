"""Drawing codes from logits: temperature, top-k and top-p (nucleus sampling, https://arxiv.org/abs/1904.09751).

Shape letters: B batch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_draw(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `ValueError` for a temperature, a number or a probability that means nothing."""
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: expected 0 (most likely code) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: expected at least 1, or None for all codes")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected a probability in (0, 1], or None")


def draw(
    logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """One code [B] per row of logits."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    sorted_BV, order_BV = (logits_BV / temperature).sort(-1, descending=True)
    if top_k is not None:
        sorted_BV[:, top_k:] = -torch.inf
    p_BV = sorted_BV.softmax(-1)
    if top_p is not None:  # a code stays while the codes before it do not yet hold top_p
        p_BV = p_BV * (p_BV.cumsum(-1) - p_BV < top_p)
    return order_BV.gather(1, torch.multinomial(p_BV, 1, generator=generator))[:, 0]
