"""The one transformer: pre-norm, rotary positions, normalised queries and keys, SwiGLU, optional adaLN, KV cache.

Norms are LayerNorm without bias: as good as RMSNorm, and torch has a fused CPU kernel for it (three times as fast).

RoPE: RoFormer (arXiv 2104.09864). SwiGLU: GLU Variants (arXiv 2002.05202). QK-norm: Scaling Vision Transformers to 22
Billion Parameters (arXiv 2302.05442). adaLN: Scalable Diffusion Models with Transformers (arXiv 2212.09748).

Shape letters: B batch, L new positions, K all positions so far, H heads, D channels of a head, E width,
X several of them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Size of the transformer; `adaptive` adds adaLN modulation by one vector per example."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    adaptive: bool = False

    def __post_init__(self) -> None:
        """Refuse a width that the heads do not divide into even parts (RoPE rotates pairs)."""
        if min(self.width, self.depth, self.heads) < 1 or self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width}, depth={self.depth}, heads={self.heads}: all at least 1, "
                "and width a multiple of 2 * heads"
            )


class Cache:
    """Keys and values [B, H, K, D] of every layer; filled by `Trunk.forward`."""

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, k_BHLD: Tensor, v_BHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new positions of one layer and return all of its keys and values."""
        if layer == len(self._layers):
            self._layers.append((k_BHLD, v_BHLD))
        else:
            k_BHKD, v_BHKD = self._layers[layer]
            self._layers[layer] = torch.cat([k_BHKD, k_BHLD], 2), torch.cat([v_BHKD, v_BHLD], 2)
        return self._layers[layer]


def rotation(position_BL: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [B, L, 1, 1, D] of the rotary angles, float32."""
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=position_BL.device) / dim)
    angle = (position_BL[:, :, None] * frequency)[:, :, None, None]
    return torch.cat([angle.cos(), angle.cos()], -1), torch.cat([-angle.sin(), angle.sin()], -1)


def rotate(x_BLXHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D / 2); scores then depend on the distance of two positions only."""
    half = x_BLXHD.shape[-1] // 2
    return torch.addcmul(x_BLXHD * cos, x_BLXHD.roll(half, -1), sin)


def attend(q_BHLD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, mask_BLK: Tensor) -> Tensor:
    """Masked attention [B, H, L, D].

    On the CPU it is written out: at the short lengths that train there, the backward pass of the fused bfloat16
    kernel takes three to eight times as long.
    """
    if q_BHLD.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHLD, k_BHKD, v_BHKD, attn_mask=mask_BLK[:, None])
    heads, dim = q_BHLD.shape[1], q_BHLD.shape[3]
    bias_BLK = torch.zeros(mask_BLK.shape, dtype=q_BHLD.dtype).masked_fill_(~mask_BLK, -torch.inf)
    bias_XLK = bias_BLK[:, None].expand(len(q_BHLD), heads, -1, -1).flatten(0, 1)
    q_XLD, k_XKD, v_XKD = (x.flatten(0, 1) for x in (q_BHLD, k_BHKD, v_BHKD))
    scores_XLK = torch.baddbmm(bias_XLK, q_XLD, k_XKD.mT, alpha=dim**-0.5)
    return torch.bmm(scores_XLK.softmax(-1), v_XKD).view(q_BHLD.shape)


class Attention(nn.Module):
    """Multi-head self-attention; `out` starts at zero so that a fresh block is the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.sharpness = nn.Parameter(torch.ones(heads, 1))
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x_BLE: Tensor, angles: tuple[Tensor, Tensor], mask_BLK: Tensor, cache: Cache | None, layer: int
    ) -> Tensor:
        """Attend from the new positions to all positions the mask allows."""
        qkv = rearrange(self.qkv(x_BLE), "b l (three h d) -> b l three h d", three=3, h=self.heads)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        qk = rotate(F.layer_norm(qk, qk.shape[-1:]), *(x.to(qk.dtype) for x in angles))
        q, k = qk[:, :, 0] * self.sharpness.to(qk.dtype), qk[:, :, 1]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        out: Tensor = self.out(rearrange(attend(q, k, v, mask_BLK), "b h l d -> b l (h d)"))
        return out


class SwiGLU(nn.Module):
    """Gated feed-forward layer, 8/3 of the width inside, zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 32 * round(width / 12)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """Map [B, L, E] to [B, L, E]."""
        gate, up = self.gate_up(x_BLE).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """Attention and feed-forward, each pre-normed; adaLN scales, shifts and gates both."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config.width, config.heads)
        self.norm_mlp = nn.LayerNorm(config.width, bias=False)
        self.mlp = SwiGLU(config.width)
        self.modulation = zero_linear(config.width, 6 * config.width) if config.adaptive else None

    def forward(
        self,
        x_BLE: Tensor,
        angles: tuple[Tensor, Tensor],
        mask_BLK: Tensor,
        *,
        condition_BE: Tensor | None,
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        """Map [B, L, E] to [B, L, E]."""
        if self.modulation is None or condition_BE is None:
            x_BLE = x_BLE + self.attention(self.norm_attention(x_BLE), angles, mask_BLK, cache, layer)
            out_BLE: Tensor = x_BLE + self.mlp(self.norm_mlp(x_BLE))
            return out_BLE
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.modulation(condition_BE)[:, None].chunk(6, -1)
        mixed = self.attention(
            torch.addcmul(shift_a, self.norm_attention(x_BLE), 1 + scale_a), angles, mask_BLK, cache, layer
        )
        x_BLE = x_BLE + (1 + gate_a) * mixed
        out_BLE = x_BLE + (1 + gate_m) * self.mlp(torch.addcmul(shift_m, self.norm_mlp(x_BLE), 1 + scale_m))
        return out_BLE


class Trunk(nn.Module):
    """`depth` blocks and a last norm: [B, L, E] -> [B, L, E]."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def forward(
        self,
        x_BLE: Tensor,
        position_BL: Tensor,
        mask_BLK: Tensor,
        *,
        condition_BE: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Run the new positions.

        position_BL   rotary position of every new token
        mask_BLK      True where a new position may look at any position so far (K = L without a cache)
        condition_BE  one vector per example for adaLN (an adaptive trunk needs it, others take none)
        cache         earlier positions; extended in place
        """
        for state_BLE in self.states(x_BLE, position_BL, mask_BLK, condition_BE=condition_BE, cache=cache):
            x_BLE = state_BLE
        out: Tensor = self.norm(x_BLE)
        return out

    def states(
        self,
        x_BLE: Tensor,
        position_BL: Tensor,
        mask_BLK: Tensor,
        *,
        condition_BE: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Iterator[Tensor]:
        """What every block gives, [B, L, E], one after the other: who needs an early one runs no further.

        The arguments are those of `forward`, which is the norm of the last.
        """
        assert (condition_BE is not None) == self.config.adaptive
        angles = rotation(position_BL, self.config.width // self.config.heads)
        for layer, block in enumerate(self.blocks):
            x_BLE = block(x_BLE, angles, mask_BLK, condition_BE=condition_BE, cache=cache, layer=layer)
            yield x_BLE


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
