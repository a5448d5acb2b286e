"""Multi-head attention, with what models differ in as options.

Attention Is All You Need (https://arxiv.org/abs/1706.03762); fewer heads of keys and values than of queries: GQA
(https://arxiv.org/abs/2305.13245); normalised queries and keys: https://arxiv.org/abs/2302.05442.

Shape letters: B batch, L positions that look, K positions that are looked at, H heads of queries, G of keys and values,
D channels of a head, E width, N = H + 2 G, X several of them together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.blocks.cache import KeyValues
from tokenizers_mm.blocks.norms import QKNorm, normalised
from tokenizers_mm.blocks.rotary import Rotation, rotate

__all__ = ["Attention", "attend"]


def attend(
    q_BHLD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, mask: Tensor | None = None, *, explicit: bool = False
) -> Tensor:
    """Scaled dot-product attention [B, H, L, D]; H / G neighbouring heads of queries share one of keys and values.

    mask      True where a position (row) may look at another (column): [L, K], or [B, L, K], one for each example
    explicit  write the products out instead of calling the fused kernel; the result is the same
    """
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    if explicit:
        return _explicit(q_BHLD, k_BGKD, v_BGKD, mask)
    grouped = k_BGKD.shape[1] != q_BHLD.shape[1]
    return F.scaled_dot_product_attention(q_BHLD, k_BGKD, v_BGKD, attn_mask=mask, enable_gqa=grouped)


def _explicit(q_BHLD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, mask: Tensor | None) -> Tensor:
    batch, heads, length, dim = q_BHLD.shape
    bias = q_BHLD.new_zeros(() if mask is None else mask.shape)
    if mask is not None:
        bias = bias.masked_fill_(~mask, -torch.inf).expand(batch, heads, -1, -1).flatten(0, 1)
    groups = heads // k_BGKD.shape[1]
    k_BHKD, v_BHKD = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (k_BGKD, v_BGKD))
    q_XLD, k_XKD, v_XKD = (x.flatten(0, 1) for x in (q_BHLD, k_BHKD, v_BHKD))
    scores_XLK = torch.baddbmm(bias, q_XLD, k_XKD.mT, alpha=dim**-0.5)
    return torch.bmm(scores_XLK.softmax(-1), v_XKD).view(batch, heads, length, dim)


class Attention(nn.Module):
    """Multi-head self-attention.

    kv_heads  heads of keys and values (default: as many as of queries), which must divide `heads`
    qkv_bias  of the layer that gives queries, keys and values; out_bias  of the last
    qk_norm   normalise the queries and keys of every head, sharpened by one learned number a head, 1 at first
    explicit_on_cpu  there write the products out: at short lengths the backward pass of the fused bfloat16 kernel
                     takes three to eight times as long

    Raises `ValueError` for heads that do not divide `width`, and for `kv_heads` that do not divide `heads`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: QKNorm = "none",
        explicit_on_cpu: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if min(width, heads, kv_heads) < 1 or width % heads or heads % kv_heads:
            raise ValueError(
                f"width={width}, heads={heads}, kv_heads={kv_heads}: all at least 1, each a multiple of the next"
            )
        self.heads, self.kv_heads = heads, kv_heads
        self.qk_norm, self.explicit_on_cpu = qk_norm, explicit_on_cpu
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * (width // heads), bias=qkv_bias)
        self.sharpness = None if qk_norm == "none" else nn.Parameter(torch.ones(heads, 1))
        self.out = nn.Linear(width, width, bias=out_bias)

    def forward(
        self,
        x_BLE: Tensor,
        turns: Rotation | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """[B, L, E] -> the same shape.

        turns  of the positions, as `rotation` gives them
        mask   True where a position (row) may look at another (column): [L, K] or [B, L, K]; default: everywhere
        cache  earlier positions, to which these are added
        """
        q_BHLD, k_BGLD, v_BGLD = self._projected(x_BLE, turns)
        if cache is not None:
            k_BGLD, v_BGLD = cache.extend(k_BGLD, v_BGLD)
        explicit = self.explicit_on_cpu and x_BLE.device.type == "cpu"
        mixed_BHLD = attend(q_BHLD, k_BGLD, v_BGLD, mask, explicit=explicit)
        out: Tensor = self.out(mixed_BHLD.transpose(1, 2).flatten(2))
        return out

    def _projected(self, x_BLE: Tensor, turns: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, L, D], keys and values [B, G, L, D]; queries and keys are normalised and turned at once."""
        heads, both = self.heads, self.heads + self.kv_heads
        qkv_BLND = self.qkv(x_BLE).view(*x_BLE.shape[:2], both + self.kv_heads, -1)
        qk_BLXD, v_BLGD = normalised(qkv_BLND[:, :, :both], self.qk_norm), qkv_BLND[:, :, both:]
        if turns is not None:
            cos, sin = (x.to(v_BLGD.dtype) for x in turns)
            qk_BLXD = rotate(qk_BLXD, (cos, sin))
        q_BLHD, k_BLGD = qk_BLXD[:, :, :heads], qk_BLXD[:, :, heads:]
        if self.sharpness is not None:
            q_BLHD = q_BLHD * self.sharpness.view(-1, 1).to(q_BLHD.dtype)  # some models have it as [H, 1, 1]
        # Under autocast products of weights are half-precision, and what is normalised may not be.
        q_BLHD, k_BLGD = q_BLHD.to(v_BLGD.dtype), k_BLGD.to(v_BLGD.dtype)
        return q_BLHD.transpose(1, 2), k_BLGD.transpose(1, 2), v_BLGD.transpose(1, 2)
