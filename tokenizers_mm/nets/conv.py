"""The convolutional encoder-decoder of the latent-diffusion family (https://arxiv.org/abs/2112.10752).

One option-driven pair serves the VQGAN / latent-diffusion lineage; parameter names are the ones its public checkpoints
use (`down.0.block.0.conv1`, `mid.attn_1`, ...). Level 0 is full resolution in the decoder too.

Shape letters: B batch, C channels, H and W rows and columns of the level, N = H * W.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """Shape of an encoder-decoder pair; each level after the first halves the resolution.

    channels          width of level 0; multipliers  width of each level over that of level 0
    blocks            residual blocks per encoder level; decoder_blocks per decoder level (default: one more)
    attention_levels  levels with attention after every residual block; middle_attention  attention in the middle
    patch             pixels per side that are folded into channels before the first convolution (1: none). Cheap
                      resolution: everything runs on patch^2 times fewer positions
    norm              "group": group normalisation over `groups` groups and all positions, as the public checkpoints;
                      "rms": over the channels of each position alone, so a position does not depend on the image size
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    decoder_blocks: int | None = None
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    patch: int = 1
    norm: Literal["group", "rms"] = "group"
    groups: int = 32
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse widths that the normalisation groups do not divide, and levels that are not there."""
        if not self.multipliers or min(self.multipliers) < 1 or self.blocks < 1 or self.patch < 1:
            raise ValueError(
                f"multipliers={self.multipliers}, blocks={self.blocks}, patch={self.patch}: every one at least 1"
            )
        if self.channels < 1 or (self.norm == "group" and self.channels % self.groups):
            raise ValueError(f"channels={self.channels}: expected a multiple of groups={self.groups}")
        if any(not 0 <= level < len(self.multipliers) for level in self.attention_levels):
            raise ValueError(f"attention_levels={self.attention_levels}: levels are 0..{len(self.multipliers) - 1}")

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along each side."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


class PositionNorm(nn.Module):
    """Divide the channels of each position by their root mean square, then scale each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        scale_B1HW = torch.rsqrt(x_BCHW.float().square().mean(1, keepdim=True) + 1e-6).to(x_BCHW.dtype)
        out: Tensor = x_BCHW * scale_B1HW * self.weight
        return out


def normalisation(config: ConvConfig, channels: int) -> nn.Module:
    """The configured normalisation layer."""
    if config.norm == "rms":
        return PositionNorm(channels)
    return nn.GroupNorm(config.groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Normalise, SiLU, 3x3 convolution, twice; a 1x1 shortcut where the width changes."""

    def __init__(self, config: ConvConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = normalisation(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalisation(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        h_BCHW: Tensor = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        skip_BCHW: Tensor = self.nin_shortcut(x_BCHW) if hasattr(self, "nin_shortcut") else x_BCHW
        return skip_BCHW + h_BCHW


class Attention(nn.Module):
    """Single-head self-attention over positions, added to its input."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.norm = normalisation(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        h_BCHW = self.norm(x_BCHW)
        q_BNC, k_BNC, v_BNC = (layer(h_BCHW).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h_BNC = F.scaled_dot_product_attention(q_BNC[:, None], k_BNC[:, None], v_BNC[:, None])[:, 0]
        out: Tensor = x_BCHW + self.proj_out(h_BNC.transpose(1, 2).reshape_as(x_BCHW))
        return out


class Downsample(nn.Module):
    """Stride-2 3x3 convolution, zero-padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Halve both sides."""
        out: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Double both sides."""
        out: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where asked; then an optional resampling."""

    def __init__(self, config: ConvConfig, widths: list[int], attention: bool) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResBlock(config, a, b) for a, b in pairs)
        self.attn = nn.ModuleList(Attention(config, b) for _, b in pairs if attention)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the level, resampling last."""
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if self.attn:
                x_BCHW = self.attn[i](x_BCHW)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x_BCHW = getattr(self, name)(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(config, channels, channels)
        self.attn_1 = Attention(config, channels) if config.middle_attention else nn.Identity()
        self.block_2 = ResBlock(config, channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out


class Encoder(nn.Module):
    """Image [B, image_channels, H, W] -> features [B, out_channels, H / f, W / f] with f = config.downsampling."""

    def __init__(self, config: ConvConfig, out_channels: int) -> None:
        super().__init__()
        c, widths = config, [config.channels * m for m in config.multipliers]
        self.patch = c.patch
        self.conv_in = nn.Conv2d(c.image_channels * c.patch**2, c.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (width_in, width) in enumerate(zip([c.channels, *widths], widths, strict=False)):
            level = Level(c, [width_in] + [width] * c.blocks, i in c.attention_levels)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(c, widths[-1])
        self.norm_out = normalisation(c, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode; both sides must be multiples of the downsampling."""
        h_BCHW = self.conv_in(F.pixel_unshuffle(image_BCHW, self.patch))
        for level in self.down:
            h_BCHW = level(h_BCHW)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h_BCHW))))
        return out


class Decoder(nn.Module):
    """Features [B, in_channels, h, w] -> image [B, image_channels, h * f, w * f]."""

    def __init__(self, config: ConvConfig, in_channels: int) -> None:
        super().__init__()
        c, widths = config, [config.channels * m for m in config.multipliers]
        self.patch = c.patch
        blocks = c.blocks + 1 if c.decoder_blocks is None else c.decoder_blocks
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = Middle(c, widths[-1])
        self.up = nn.ModuleList()
        for i, (width, width_in) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            level = Level(c, [width_in] + [width] * blocks, i in c.attention_levels)
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = normalisation(c, widths[0])
        self.conv_out = nn.Conv2d(widths[0], c.image_channels * c.patch**2, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight that adaptive loss weights take gradients at (VQGAN, https://arxiv.org/abs/2012.09841)."""
        return self.conv_out.weight

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """Decode to an image of about [-1, 1], not clamped."""
        h_BCHW = self.mid(self.conv_in(h_BCHW))
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW)
        patches_BCHW = self.conv_out(F.silu(self.norm_out(h_BCHW)))
        return torch.pixel_shuffle(patches_BCHW, self.patch)
