"""The body of Emu3's vision tokenizer (https://arxiv.org/abs/2409.18869), for still images; without time, that of MoVQ.

The published net codes four frames at once: a latent-diffusion encoder for every frame, then convolutions over time.
The decoder normalises by the codes everywhere, as MoVQ does (https://arxiv.org/abs/2209.09002): group normalisation
whose scale and shift are 1x1 convolutions of the code vectors of the place. A still image is four equal frames, and its
reconstruction is the first of the four decoded ones. Time is causal, with zeros in front of the first frame. So the
encoder runs once and only its halvings of time meet several frames, and the first decoded frame meets the last temporal
tap of each convolution alone: the net on an image is exactly the one of this file.

Shape letters: B batch, C channels, T frames, H and W rows and columns of the level, D channels and h and w of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.nets.conv import Encoder, Upsample
from tokenizers_mm.nets.conv_config import ConvConfig
from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.options import NetOptions


@dataclass(frozen=True, kw_only=True)
class Emu3Config(NetOptions):
    """Shape of an encoder-decoder pair; each level after the first halves the resolution.

    channels          width of level 0; multipliers  width of each level over that of level 0
    blocks            residual blocks per encoder level; a decoder level has one more
    attention_levels  levels with attention after every residual block
    frames            that one code map stands for, a power of two: an image is as many equal frames
    temporal_blocks   residual blocks around the codes, on each side; MoVQ has frames=1 and none of them
    groups            of the group normalisation
    """

    kind: Literal["emu3"] = "emu3"
    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (3,)
    frames: int = 4
    temporal_blocks: int = 2
    groups: int = 32
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse what the spatial net refuses, and frames that cannot be halved to one."""
        if self.frames < 1 or self.frames & (self.frames - 1):
            raise ValueError(f"frames={self.frames}: expected a power of two")
        if self.temporal_blocks < 0 or self.image_channels < 1:
            raise ValueError(
                f"temporal_blocks={self.temporal_blocks}, image_channels={self.image_channels}: "
                "expected at least 0 and at least 1"
            )
        _ = self.spatial

    @property
    def spatial(self) -> ConvConfig:
        """Options of the part that sees one frame at a time."""
        return ConvConfig(
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention_levels=self.attention_levels,
            groups=self.groups,
            image_channels=self.image_channels,
        )

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along each side."""
        return self.spatial.downsampling

    @property
    def halvings(self) -> int:
        """How often time is halved."""
        return self.frames.bit_length() - 1


class TimeBlock(nn.Module):
    """Batch normalisation, SiLU, 3x3 convolution, twice; added to the input. One frame meets no more of the block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        h_BCHW: Tensor = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return x_BCHW + h_BCHW


class CodeNorm(nn.Module):
    """Group normalisation, times one 1x1 convolution of the code vector of the place, plus another."""

    def __init__(self, groups: int, channels: int, code_channels: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(code_channels, channels, 1)
        self.conv_b = nn.Conv2d(code_channels, channels, 1)

    def forward(self, x_BCHW: Tensor, codes_BDhw: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape; H and W are multiples of h and w."""
        rows, columns = codes_BDhw.shape[2:]
        # The convolutions see one position, so they run before the codes are spread over pixels, not after.
        scale, shift = (conv(codes_BDhw)[:, :, :, None, :, None] for conv in (self.conv_y, self.conv_b))
        cells_BChPwQ = self.norm_layer(x_BCHW).unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
        return torch.addcmul(shift, cells_BChPwQ, scale).reshape(x_BCHW.shape)


class ResBlock(nn.Module):
    """Normalise by the codes, SiLU, 3x3 convolution, twice; a 1x1 shortcut where the width changes."""

    def __init__(self, groups: int, in_channels: int, out_channels: int, code_channels: int) -> None:
        super().__init__()
        self.norm1 = CodeNorm(groups, in_channels, code_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = CodeNorm(groups, out_channels, code_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_BCHW: Tensor, codes_BDhw: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        h_BCHW: Tensor = self.conv1(F.silu(self.norm1(x_BCHW, codes_BDhw)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW, codes_BDhw)))
        return h_BCHW + (self.nin_shortcut(x_BCHW) if hasattr(self, "nin_shortcut") else x_BCHW)


class Attention(nn.Module):
    """Single-head self-attention over positions, normalised by the codes, added to its input."""

    def __init__(self, groups: int, channels: int, code_channels: int) -> None:
        super().__init__()
        self.norm = CodeNorm(groups, channels, code_channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor, codes_BDhw: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        h_BCHW = self.norm(x_BCHW, codes_BDhw)
        q_B1NC, k_B1NC, v_B1NC = (p(h_BCHW).flatten(2).mT[:, None] for p in (self.q, self.k, self.v))
        h_B1NC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)
        out: Tensor = x_BCHW + self.proj_out(h_B1NC[:, 0].mT.reshape_as(x_BCHW))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where asked; then an optional doubling."""

    def __init__(self, config: ConvConfig, widths: list[int], code_channels: int, index: int) -> None:
        super().__init__()
        pairs, attention = list(pairwise(widths)), index in config.attention_levels
        self.block = nn.ModuleList(ResBlock(config.groups, a, b, code_channels) for a, b in pairs)
        self.attn = nn.ModuleList(Attention(config.groups, b, code_channels) for _, b in pairs if attention)
        self.upsample = Upsample(config, widths[-1]) if index else nn.Identity()

    def forward(self, x_BCHW: Tensor, codes_BDhw: Tensor) -> Tensor:
        """Run the level, doubling last."""
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW, codes_BDhw)
            if self.attn:
                x_BCHW = self.attn[i](x_BCHW, codes_BDhw)
        out: Tensor = self.upsample(x_BCHW)
        return out


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, groups: int, channels: int, code_channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(groups, channels, channels, code_channels)
        self.attn_1 = Attention(groups, channels, code_channels)
        self.block_2 = ResBlock(groups, channels, channels, code_channels)

    def forward(self, x_BCHW: Tensor, codes_BDhw: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        for layer in (self.block_1, self.attn_1, self.block_2):
            x_BCHW = layer(x_BCHW, codes_BDhw)
        return x_BCHW


class Emu3Encoder(Encoder):
    """Image [B, image_channels, H, W] -> features [B, out_channels, H / f, W / f] with f = config.downsampling."""

    def __init__(self, config: Emu3Config, out_channels: int, _: Geometry | None = None) -> None:
        super().__init__(config.spatial, out_channels)
        self.frames, shape = config.frames, (out_channels, out_channels, (4, 3, 3))
        self.time_conv = nn.ModuleList(
            nn.Conv3d(*shape, stride=(2, 1, 1), padding=(0, 1, 1)) for _ in range(config.halvings)
        )
        self.time_res_stack = nn.Sequential(*(TimeBlock(out_channels) for _ in range(config.temporal_blocks)))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode the image as equal frames; both sides must be multiples of the downsampling."""
        h_BCTHW = super().forward(image_BCHW)[:, :, None].expand(-1, -1, self.frames, -1, -1)
        for conv in self.time_conv:
            h_BCTHW = F.silu(conv(F.pad(h_BCTHW, (0, 0, 0, 0, 2, 0))))
        out: Tensor = self.time_res_stack(h_BCTHW[:, :, 0])
        return out


class Emu3Decoder(nn.Module):
    """Code vectors [B, in_channels, h, w], as the codebook has them -> image [B, image_channels, h * f, w * f].

    The convolution after the codebook is part of this net, because the norms need the vectors before it too.
    """

    def __init__(self, config: Emu3Config, in_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        c, widths = config.spatial, config.spatial.widths
        inputs = [*widths[1:], widths[-1]]  # of each level, counted from full resolution
        self.post_quant_conv = nn.Conv2d(in_channels, in_channels, 1)
        self.time_res_stack = nn.Sequential(*(TimeBlock(in_channels) for _ in range(config.temporal_blocks)))
        self.time_conv = nn.ModuleList(
            nn.Conv2d(in_channels, in_channels, 3, padding=1) for _ in range(config.halvings)
        )
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = Middle(c.groups, widths[-1], in_channels)
        self.up = nn.ModuleList(
            Level(c, [width_in] + [width] * (config.blocks + 1), in_channels, i)
            for i, (width, width_in) in enumerate(zip(widths, inputs, strict=True))
        )
        self.norm_out = CodeNorm(c.groups, widths[0], in_channels)
        self.conv_out = nn.Conv2d(widths[0], c.image_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight that adaptive loss weights take gradients at (VQGAN, https://arxiv.org/abs/2012.09841)."""
        return self.conv_out.weight

    def forward(self, codes_BDhw: Tensor) -> Tensor:
        """Decode to an image of about [-1, 1], not clamped."""
        # The latent and the codes pass the layers of time as one batch, so that batch norm counts both in training.
        both = self.time_res_stack(torch.cat([self.post_quant_conv(codes_BDhw), codes_BDhw]))
        for conv in self.time_conv:
            both = F.silu(conv(both))
        latent_BDhw, codes_BDhw = both.chunk(2)
        h_BCHW = self.mid(self.conv_in(latent_BDhw), codes_BDhw)
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW, codes_BDhw)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h_BCHW, codes_BDhw)))
        return out
