"""Feed-forward layers of a transformer.

GELU: https://arxiv.org/abs/1606.08415. SwiGLU: GLU Variants Improve Transformer (https://arxiv.org/abs/2002.05202).

Shape letters: E width, I width inside, ... anything, such as batch and positions.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Mlp", "MlpKind", "swiglu"]

MlpKind = Literal["swiglu", "gelu"]


def swiglu(gate_up: Tensor) -> Tensor:
    """SiLU of the first half of the channels times the second half: [..., 2 I] -> [..., I]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


class Mlp(nn.Module):
    """Two linear layers of width `hidden` inside; with "swiglu" the first gives gates as well."""

    def __init__(self, width: int, hidden: int, kind: MlpKind) -> None:
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(width, hidden * (2 if kind == "swiglu" else 1))
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> the same shape."""
        h = self.up(x)
        out: Tensor = self.out(swiglu(h) if self.kind == "swiglu" else F.gelu(h))
        return out
