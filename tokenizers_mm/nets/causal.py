"""The body of the Wan and Qwen-Image autoencoders (Wan, https://arxiv.org/abs/2503.20314), for still images.

The published nets are causal in time: every 3-D convolution pads with zeros in front of the first frame, and what
halves or doubles time starts with the second. One frame therefore meets only the last temporal tap of each convolution,
and the net on an image is exactly the 2-D net of this file.

Shape letters: B batch, C channels, H and W rows and columns of the level, N = H * W.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.options import NetOptions


@dataclass(frozen=True, kw_only=True)
class CausalConfig(NetOptions):
    """Shape of an encoder-decoder pair; each level after the first halves the resolution.

    channels          width of the encoder's level 0; decoder_channels that of the decoder's (default: the same)
    multipliers       width of each level over that of level 0
    blocks            residual blocks per encoder level; a decoder level has one more
    attention_levels  encoder levels with attention after every residual block; decoder_attention_levels the decoder's
    patch             pixels per side that are folded into channels before the first convolution (1: none)
    shortcuts         each level is bridged by a parameter-free resampling (Wan 2.2, Qwen-Image 2), and the upsampling
                      convolutions keep the width; without, they halve it (Wan 2.1, Qwen-Image)
    temporal_levels   levels that also halve time on their way to the next one. On an image this changes the shortcuts
                      alone, so it must be empty without them
    """

    kind: Literal["causal"] = "causal"
    channels: int = 96
    decoder_channels: int | None = None
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    decoder_attention_levels: tuple[int, ...] = ()
    patch: int = 1
    shortcuts: bool = False
    temporal_levels: tuple[int, ...] = ()
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse levels that are not there and widths that the resampling cannot take."""
        for name in ("channels", "decoder_channels", "blocks", "patch", "image_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers={self.multipliers}: expected one per level, every one at least 1")
        last = len(self.multipliers) - 1
        for name in ("attention_levels", "decoder_attention_levels", "temporal_levels"):
            end = last - 1 if name == "temporal_levels" else last
            if any(not 0 <= level <= end for level in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: expected levels of 0..{end}")
        if self.temporal_levels and not self.shortcuts:
            raise ValueError(
                f"temporal_levels={self.temporal_levels}: without shortcuts they change nothing; leave empty"
            )
        self._check_widths()

    def _check_widths(self) -> None:
        down, up, last = self.widths, self.decoder_widths, len(self.multipliers) - 1
        if not self.shortcuts and any(width % 2 for width in up[1:]):
            raise ValueError(f"decoder widths {up}: upsampling halves all but the first, expected even numbers")
        if not self.shortcuts:
            return
        steps = [(i, a * self.folded(i), b) for i, (a, b) in enumerate(pairwise((self.channels, *down)))]
        steps += [(i, up[i] * self.folded(i - 1), up[min(i + 1, last)]) for i in range(1, last + 1)]
        for level, many, few in steps:
            if many % few:
                raise ValueError(
                    f"multipliers={self.multipliers}: level {level} has a shortcut of {many} values to {few}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each encoder level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each decoder level; level 0 is full resolution here too."""
        return tuple((self.decoder_channels or self.channels) * multiplier for multiplier in self.multipliers)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along each side."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))

    def folded(self, level: int) -> int:
        """Values (frames x rows x columns) that the step from this level to the next folds into one position."""
        return 1 if level == len(self.multipliers) - 1 else 8 if level in self.temporal_levels else 4


class ChannelNorm(nn.Module):
    """Divide the channels of each position by their root mean square, in float32 at least, then scale each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        wide = x_BCHW.float() if x_BCHW.dtype in (torch.float16, torch.bfloat16) else x_BCHW
        out: Tensor = F.normalize(wide, dim=1).to(x_BCHW.dtype) * self.scale * self.weight
        return out


class ResBlock(nn.Module):
    """Normalise, SiLU, 3x3 convolution, twice; a 1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = ChannelNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        h_BCHW: Tensor = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        out: Tensor = h_BCHW + self.shortcut(x_BCHW)
        return out


class Attention(nn.Module):
    """Single-head self-attention over the positions of an image, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        qkv_B1N3C = self.qkv(self.norm(x_BCHW)).flatten(2).transpose(1, 2)[:, None]
        h_B1NC = F.scaled_dot_product_attention(*qkv_B1N3C.chunk(3, dim=-1))
        out: Tensor = x_BCHW + self.proj(h_B1NC[:, 0].transpose(1, 2).reshape_as(x_BCHW))
        return out


class Downsample(nn.Conv2d):
    """Stride-2 3x3 convolution, zero-padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Halve both sides."""
        return super().forward(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Double both sides."""
        return super().forward(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


def mean_down(x_BCHW: Tensor, out_channels: int, side: int, frames: int) -> Tensor:
    """Fold frames x side x side values into channels and average neighbouring ones: [B, out, H / side, W / side].

    frames  2 where time is halved too: what came before the image counts as zeros in the average
    """
    B, C, H, W = x_BCHW.shape
    h, w = H // side, W // side
    folded_BCTShw = F.pixel_unshuffle(x_BCHW, side).reshape(B, C, 1, side**2, h, w)
    folded_BCTShw = F.pad(folded_BCTShw, (0, 0, 0, 0, 0, 0, frames - 1, 0))
    return folded_BCTShw.reshape(B, out_channels, -1, h, w).mean(2)


def repeat_up(x_BCHW: Tensor, out_channels: int, frames: int) -> Tensor:
    """Repeat channels and unfold them into 2x2 positions: [B, out, 2 H, 2 W].

    frames  2 where time is doubled too: of the two frames that the first position unfolds to, only the last exists
    """
    B, C, H, W = x_BCHW.shape
    repeated_BCHW = x_BCHW.repeat_interleave(out_channels * frames * 4 // C, dim=1)
    last_BCSHW = repeated_BCHW.reshape(B, out_channels, frames, 4, H, W)[:, :, -1]
    return F.pixel_shuffle(last_BCSHW.flatten(1, 2), 2)


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where asked; then an optional resampling."""

    def __init__(self, widths: list[int], attention: bool, resample: nn.Module | None) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairs)
        self.attn = nn.ModuleList(Attention(b) for _, b in pairs if attention)
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the level, resampling last."""
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if self.attn:
                x_BCHW = self.attn[i](x_BCHW)
        out: Tensor = self.resample(x_BCHW)
        return out


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out


class CausalEncoder(nn.Module):
    """Image [B, image_channels, H, W] -> features [B, out_channels, H / f, W / f] with f = config.downsampling."""

    def __init__(self, config: CausalConfig, out_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        self.conv_in = nn.Conv2d(config.image_channels * config.patch**2, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (width_in, width) in enumerate(pairwise((config.channels, *widths))):
            resample = Downsample(width) if i < len(widths) - 1 else None
            self.down.append(Level([width_in] + [width] * config.blocks, i in config.attention_levels, resample))
        self.mid = Middle(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode; both sides must be multiples of the downsampling."""
        config = self.config
        if config.patch > 1:  # a patch becomes channels in the order channel, column, row: fold the transposed image
            image_BCHW = F.pixel_unshuffle(image_BCHW.mT, config.patch).mT.contiguous()
        h_BCHW = self.conv_in(image_BCHW)
        for i, level in enumerate(self.down):
            x_BCHW, h_BCHW = h_BCHW, level(h_BCHW)
            if config.shortcuts:
                side = 1 if i == len(self.down) - 1 else 2
                h_BCHW = h_BCHW + mean_down(x_BCHW, h_BCHW.shape[1], side, config.folded(i) // side**2)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h_BCHW))))
        return out


class CausalDecoder(nn.Module):
    """Features [B, in_channels, h, w] -> image [B, image_channels, h * f, w * f]."""

    def __init__(self, config: CausalConfig, in_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        self.config, widths = config, config.decoder_widths
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            width_in = widths[min(i + 1, len(widths) - 1)]
            if not config.shortcuts and i < len(widths) - 1:
                width_in //= 2
            resample = Upsample(width, width if config.shortcuts else width // 2) if i > 0 else None
            attention = i in config.decoder_attention_levels
            self.up.append(Level([width_in] + [width] * (config.blocks + 1), attention, resample))
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.image_channels * config.patch**2, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight that adaptive loss weights take gradients at (VQGAN, https://arxiv.org/abs/2012.09841)."""
        return self.conv_out.weight

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """Decode to an image of about [-1, 1], not clamped."""
        config = self.config
        h_BCHW = self.mid(self.conv_in(h_BCHW))
        for i, level in reversed(list(enumerate(self.up))):
            x_BCHW, h_BCHW = h_BCHW, level(h_BCHW)
            if config.shortcuts and i > 0:
                h_BCHW = h_BCHW + repeat_up(x_BCHW, h_BCHW.shape[1], config.folded(i - 1) // 4)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h_BCHW)))
        return F.pixel_shuffle(out.mT, config.patch).mT.contiguous() if config.patch > 1 else out
