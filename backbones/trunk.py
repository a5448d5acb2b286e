"""The transformer of all generators: pre-norm, rotary positions, normalised queries and keys, SwiGLU, optional adaLN.

RoPE: RoFormer (arXiv 2104.09864). SwiGLU: GLU Variants (arXiv 2002.05202). QK-norm: Scaling Vision Transformers to 22
Billion Parameters (arXiv 2302.05442). adaLN: Scalable Diffusion Models with Transformers (arXiv 2212.09748). Norms are
LayerNorm without bias.

Shape letters: E width, I width inside, ... anything, such as batch and positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tokenizers_mm.blocks import Attention, Block, Transformer, normalisation, swiglu, zero_linear

_BASE = 10_000.0


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


class SwiGLU(nn.Module):
    """Gated feed-forward layer, 8/3 of the width inside, with the parameter names of saved generators."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 32 * round(width / 12)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> the same shape."""
        out: Tensor = self.down(swiglu(self.gate_up(x)))
        return out


class Trunk(Transformer):
    """`depth` blocks and a last norm; a fresh block is the identity, for what it adds starts at zero."""

    def __init__(self, config: TrunkConfig) -> None:
        blocks = [_block(config) for _ in range(config.depth)]
        super().__init__(blocks, _norm(config), head_dim=config.width // config.heads, base=_BASE)
        self.config = config


def _block(config: TrunkConfig) -> Block:
    width = config.width
    attention = Attention(width, config.heads, qkv_bias=False, out_bias=False, qk_norm="layer", explicit_on_cpu=True)
    nn.init.zeros_(attention.out.weight)
    mlp = SwiGLU(width)
    nn.init.zeros_(mlp.down.weight)
    modulation = zero_linear(width, 6 * width) if config.adaptive else None
    return Block(_norm(config), attention, _norm(config), mlp, modulation)


def _norm(config: TrunkConfig) -> nn.Module:
    return normalisation("layer", config.width, eps=1e-5, bias=False)
