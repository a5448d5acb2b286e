"""The deep-compression encoder-decoder (DC-AE, https://arxiv.org/abs/2410.10733): 32, 64 or 128 pixels per position.

Every change of resolution is learnt as a residual of moving pixels into channels (or back), residual blocks serve the
fine levels and linear attention the coarse ones; nothing depends on the image size. Parameter names are the ones the
public files have in diffusers' layout (`down_blocks.1.0.conv1`, `up_blocks.3.1.attn.to_q`, ...); level 0 is full
resolution on both sides.

Shape letters: B batch, C channels, H and W rows and columns of the level, N = H * W, A heads, D channels of a head.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.nets.conv import ACTIVATIONS
from tokenizers_mm.nets.dc_config import DCConfig as DCConfig, Downsampling, Level, Norm, Upsampling
from tokenizers_mm.nets.geometry import Geometry


class ChannelNorm(nn.Module):
    """Divide the channels of each position by their root mean square, then scale and shift each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        float_BCHW = x_BCHW.float()
        scale_B1HW = torch.rsqrt(float_BCHW.square().mean(1, keepdim=True) + 1e-5)
        normal_BCHW = (float_BCHW * scale_B1HW).to(x_BCHW.dtype)
        return normal_BCHW * self.weight[:, None, None] + self.bias[:, None, None]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """The normalisation layer of a level."""
    return ChannelNorm(channels) if norm == "rms" else nn.BatchNorm2d(channels)


class ResBlock(nn.Module):
    """3x3 convolution, activation, 3x3 convolution, normalisation; added to its input."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[level.activation]
        self.conv1 = nn.Conv2d(level.width, level.width, 3, padding=1)
        self.conv2 = nn.Conv2d(level.width, level.width, 3, padding=1, bias=False)
        self.norm = normalisation(level.norm, level.width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        out: Tensor = x_BCHW + self.norm(self.conv2(self.activation(self.conv1(x_BCHW))))
        return out


def linear_attention(q_BADN: Tensor, k_BADN: Tensor, v_BADN: Tensor) -> Tensor:
    """Mean of v weighted by relu(q) . relu(k): time and memory grow with N, not its square (2205.14756).

    The public code builds the [N, N] weights instead where N <= D. That is the same product in another order, so there
    is one branch here. A position whose weights are all zero gets zero.
    """
    q_BADN, k_BADN = F.relu(q_BADN), F.relu(k_BADN)
    sum_BA1N = k_BADN.sum(-1)[:, :, None] @ q_BADN
    return (v_BADN @ k_BADN.mT @ q_BADN) / (sum_BA1N + 1e-15)


class Scale(nn.Module):
    """q, k and v seen through a k x k window: a depthwise convolution, then a mix inside each run of head channels."""

    def __init__(self, channels: int, kernel: int, head_width: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=channels // head_width, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        out: Tensor = self.proj_out(self.proj_in(x_BCHW))
        return out


class Attention(nn.Module):
    """Multi-scale linear attention over positions, normalised and added to its input.

    A head is a run of 3 * D neighbouring channels of the whole q, k, v map, as in the public files, so the names to_q,
    to_k, to_v say where weights are stored, not what they compute.
    """

    def __init__(self, level: Level, head_width: int) -> None:
        super().__init__()
        inner = level.width // head_width * head_width
        self.head_width = head_width
        self.to_q = nn.Linear(level.width, inner, bias=False)
        self.to_k = nn.Linear(level.width, inner, bias=False)
        self.to_v = nn.Linear(level.width, inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(Scale(3 * inner, kernel, head_width) for kernel in level.scales)
        self.to_out = nn.Linear(inner * (1 + len(level.scales)), level.width, bias=False)
        self.norm_out = normalisation(level.norm, level.width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        (b, _, h, w), x_BHWC = x_BCHW.shape, x_BCHW.movedim(1, -1)
        map_BCHW = torch.cat([to(x_BHWC) for to in (self.to_q, self.to_k, self.to_v)], -1).movedim(-1, 1)
        maps_BCHW = torch.cat([map_BCHW, *(scale(map_BCHW) for scale in self.to_qkv_multiscale)], 1)
        # Sums over all positions lose too much in 16 bits, so autocast must not lower these products again.
        with torch.autocast(x_BCHW.device.type, enabled=False):
            qkv_BA3DN = maps_BCHW.float().reshape(b, -1, 3, self.head_width, h * w)
            out_BADN = linear_attention(*qkv_BA3DN.unbind(2))
        out_BHWC = self.to_out(out_BADN.to(maps_BCHW.dtype).reshape(b, -1, h, w).movedim(1, -1))
        out: Tensor = x_BCHW + self.norm_out(out_BHWC.movedim(-1, 1))
        return out


class GatedConv(nn.Module):
    """Widen 8 times, 3x3 depthwise convolution, half of the channels gates the other, narrow; added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(channels, 8 * channels, 1)
        self.conv_depth = nn.Conv2d(8 * channels, 8 * channels, 3, padding=1, groups=8 * channels)
        self.conv_point = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        value_BCHW, gate_BCHW = self.conv_depth(F.silu(self.conv_inverted(x_BCHW))).chunk(2, dim=1)
        out: Tensor = x_BCHW + self.norm(self.conv_point(value_BCHW * F.silu(gate_BCHW)))
        return out


class AttentionBlock(nn.Module):
    """Attention mixes positions everywhere, the gated convolution mixes neighbours and channels."""

    def __init__(self, level: Level, head_width: int) -> None:
        super().__init__()
        self.attn = Attention(level, head_width)
        self.conv_out = GatedConv(level.width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        out: Tensor = self.conv_out(self.attn(x_BCHW))
        return out


def blocks(level: Level, head_width: int) -> list[nn.Module]:
    """The blocks of a level."""
    attention = level.block == "attention"
    return [AttentionBlock(level, head_width) if attention else ResBlock(level) for _ in range(level.layers)]


def group_means(x_BCHW: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, C / size, H, W]: means of neighbouring channels."""
    b, c, h, w = x_BCHW.shape
    return x_BCHW.reshape(b, c // size, size, h, w).mean(2)


class Downsample(nn.Module):
    """Halve both sides; the shortcut moves 2 x 2 positions into channels and averages groups of them."""

    def __init__(self, in_channels: int, out_channels: int, mode: Downsampling, shortcut: bool = True) -> None:
        super().__init__()
        self.unshuffle, self.group = mode == "unshuffle", 4 * in_channels // out_channels if shortcut else 0
        conv_channels, stride = (out_channels // 4, 1) if self.unshuffle else (out_channels, 2)
        self.conv = nn.Conv2d(in_channels, conv_channels, 3, stride=stride, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / 2, W / 2]."""
        out_BCHW: Tensor = self.conv(x_BCHW)
        if self.unshuffle:
            out_BCHW = F.pixel_unshuffle(out_BCHW, 2)
        return out_BCHW + group_means(F.pixel_unshuffle(x_BCHW, 2), self.group) if self.group else out_BCHW


class Upsample(nn.Module):
    """Double both sides; the shortcut repeats channels and moves them into 2 x 2 positions."""

    def __init__(self, in_channels: int, out_channels: int, mode: Upsampling, shortcut: bool = True) -> None:
        super().__init__()
        self.shuffle, self.repeats = mode == "shuffle", 4 * out_channels // in_channels if shortcut else 0
        self.conv = nn.Conv2d(in_channels, 4 * out_channels if self.shuffle else out_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, 2 H, 2 W]."""
        if self.shuffle:
            out_BCHW = F.pixel_shuffle(self.conv(x_BCHW), 2)
        else:
            out_BCHW = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        if self.repeats:
            out_BCHW = out_BCHW + F.pixel_shuffle(x_BCHW.repeat_interleave(self.repeats, 1), 2)
        return out_BCHW


def shortcut_factor(name: str, width: int, latent_channels: int, wanted: bool) -> int:
    """Channels of the coarsest level per latent channel, or 0 without the shortcut."""
    if wanted and width % latent_channels:
        raise ValueError(f"{name}=True: {latent_channels} latent channels do not divide the last width {width}")
    return width // latent_channels if wanted else 0


class DCEncoder(nn.Module):
    """Image [B, image_channels, H, W] -> features [B, out_channels, H / f, W / f] with f = config.downsampling."""

    def __init__(self, config: DCConfig, out_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        c, levels = config, config.encoder_levels
        self.conv_in: nn.Module
        if levels[0].layers:
            self.conv_in = nn.Conv2d(c.image_channels, levels[0].width, 3, padding=1)
        else:
            self.conv_in = Downsample(c.image_channels, levels[1].width, c.downsample, shortcut=False)
        self.down_blocks = nn.ModuleList()
        for level, coarser in zip_longest(levels, levels[1:]):
            layers = blocks(level, c.head_width)
            if layers and coarser:
                layers.append(Downsample(level.width, coarser.width, c.downsample))
            self.down_blocks.append(nn.Sequential(*layers))
        self.conv_out = nn.Conv2d(levels[-1].width, out_channels, 3, padding=1)
        self.group = shortcut_factor("encoder_shortcut", levels[-1].width, out_channels, c.encoder_shortcut)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode; both sides must be multiples of the downsampling."""
        h_BCHW = self.conv_in(image_BCHW)
        for level in self.down_blocks:
            h_BCHW = level(h_BCHW)
        out: Tensor = self.conv_out(h_BCHW)
        return out + group_means(h_BCHW, self.group) if self.group else out


class DCDecoder(nn.Module):
    """Features [B, in_channels, h, w] -> image [B, image_channels, h * f, w * f]."""

    def __init__(self, config: DCConfig, in_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        c, levels = config, config.decoder_levels
        self.activation = ACTIVATIONS[c.last_activation]
        self.repeats = shortcut_factor("decoder_shortcut", levels[-1].width, in_channels, c.decoder_shortcut)
        self.conv_in = nn.Conv2d(in_channels, levels[-1].width, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        for level, coarser in zip_longest(levels, levels[1:]):
            layers = blocks(level, c.head_width)
            if layers and coarser:
                layers.insert(0, Upsample(coarser.width, level.width, c.upsample))
            self.up_blocks.append(nn.Sequential(*layers))
        finest = levels[0] if levels[0].layers else levels[1]
        self.norm_out = ChannelNorm(finest.width)
        self.conv_out: nn.Module
        if levels[0].layers:
            self.conv_out = nn.Conv2d(finest.width, c.image_channels, 3, padding=1)
        else:
            self.conv_out = Upsample(finest.width, c.image_channels, c.upsample, shortcut=False)

    @property
    def last_layer(self) -> Tensor:
        """Weight that adaptive loss weights take gradients at (VQGAN, https://arxiv.org/abs/2012.09841)."""
        conv = self.conv_out.conv if isinstance(self.conv_out, Upsample) else self.conv_out
        assert isinstance(conv, nn.Conv2d)
        return conv.weight

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """Decode to an image of about [-1, 1], not clamped."""
        x_BCHW: Tensor = self.conv_in(h_BCHW)
        if self.repeats:
            x_BCHW = x_BCHW + h_BCHW.repeat_interleave(self.repeats, 1)
        for level in reversed(self.up_blocks):
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(self.activation(self.norm_out(x_BCHW)))
        return out
