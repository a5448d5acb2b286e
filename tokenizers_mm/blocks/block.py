"""The pre-norm transformer block, with optional adaptive layer norm (adaLN).

Pre-norm: On Layer Normalization in the Transformer Architecture (https://arxiv.org/abs/2002.04745). adaLN: Scalable
Diffusion Models with Transformers (https://arxiv.org/abs/2212.09748).

Shape letters: B batch, L positions, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizers_mm.blocks.cache import KeyValues
from tokenizers_mm.blocks.rotary import Rotation

__all__ = ["Block", "modulate"]


def modulate(x_BLE: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * (1 + scale) + shift."""
    return torch.addcmul(shift, x_BLE, 1 + scale)


class Block(nn.Module):
    """Attention and feed-forward layer, each normed before and added after.

    norm_attention, attention, norm_mlp, mlp  the parts, each [B, L, E] -> the same shape
    modulation  linear layer from a condition to six times the width: scale, shift and gate of attention, then of the
                feed-forward layer. A gate is added to 1; a model whose gates are not has them after 1 is taken from
                their bias.
    """

    def __init__(
        self,
        norm_attention: nn.Module,
        attention: nn.Module,
        norm_mlp: nn.Module,
        mlp: nn.Module,
        modulation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_attention, self.attention = norm_attention, attention
        self.norm_mlp, self.mlp = norm_mlp, mlp
        self.modulation = modulation

    def forward(
        self,
        x_BLE: Tensor,
        turns: Rotation | None = None,
        mask: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """[B, L, E] -> the same shape.

        turns, mask, cache  as for `Attention.forward`
        condition           of a block with modulation: [B, E], or [B, L, E], one for each position
        """
        if self.modulation is None or condition is None:
            x_BLE = x_BLE + self.attention(self.norm_attention(x_BLE), turns, mask, cache)
            out_BLE: Tensor = x_BLE + self.mlp(self.norm_mlp(x_BLE))
            return out_BLE
        condition = condition[:, None] if condition.ndim == 2 else condition
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.modulation(condition).chunk(6, -1)
        h_BLE = modulate(self.norm_attention(x_BLE), scale_a, shift_a)
        x_BLE = x_BLE + (1 + gate_a) * self.attention(h_BLE, turns, mask, cache)
        out_BLE = x_BLE + (1 + gate_m) * self.mlp(modulate(self.norm_mlp(x_BLE), scale_m, shift_m))
        return out_BLE
