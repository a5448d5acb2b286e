"""The convolutional encoder-decoder of the latent-diffusion family (https://arxiv.org/abs/2112.10752).

One option-driven pair serves the VQGAN / latent-diffusion lineage; parameter names are the ones its public checkpoints
use (`down.0.block.0.conv1`, `mid.attn_1`, ...). Level 0 is full resolution in the decoder too.

Shape letters: B batch, C channels, H and W rows and columns of the level, N = H * W.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.nets.conv_config import ConvConfig as ConvConfig
from tokenizers_mm.nets.geometry import Geometry

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu, "mish": F.mish}


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
    """Normalise, activate, 3x3 convolution, twice; a 1x1 shortcut where the width changes."""

    def __init__(self, config: ConvConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.activation, self.input_skip = ACTIVATIONS[config.activation], config.block_input_skip
        self.norm1 = normalisation(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=config.bias)
        self.norm2 = normalisation(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=config.bias)
        if in_channels != out_channels:
            skipped = in_channels if config.block_input_skip else out_channels
            self.nin_shortcut = nn.Conv2d(skipped, out_channels, 1, bias=config.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        h_BCHW: Tensor = self.conv1(self.activation(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(self.activation(self.norm2(h_BCHW)))
        if hasattr(self, "nin_shortcut"):
            x_BCHW = self.nin_shortcut(x_BCHW if self.input_skip else h_BCHW)
        return x_BCHW + h_BCHW


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
        # Contiguous, or the fused kernel is not taken and all pairs of positions sit in memory.
        q_B1NC, k_B1NC, v_B1NC = (
            layer(h_BCHW).flatten(2).transpose(1, 2).contiguous()[:, None] for layer in (self.q, self.k, self.v)
        )
        h_BNC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)[:, 0]
        out: Tensor = x_BCHW + self.proj_out(h_BNC.transpose(1, 2).reshape_as(x_BCHW))
        return out


class Downsample(nn.Module):
    """Halve both sides, by a stride-2 3x3 convolution or by averaging."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.corner = config.downsample == "corner"
        if config.downsample != "average":
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.corner else 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / 2, W / 2]."""
        if not hasattr(self, "conv"):
            return F.avg_pool2d(x_BCHW, 2)
        out: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)) if self.corner else x_BCHW)
        return out


class Upsample(nn.Module):
    """Double both sides: nearest neighbours and a 3x3 convolution, or a convolution whose channels become positions."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.nearest = config.upsample == "nearest"
        self.conv = nn.Conv2d(channels, channels if self.nearest else 4 * channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2 H, 2 W]."""
        if self.nearest:
            out: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
            return out
        # Channels are (row, column, C), where pixel_shuffle has (C, row, column).
        h_BCHW: Tensor = self.conv(x_BCHW)
        batch, channels, rows, columns = h_BCHW.shape
        h_BC4HW = h_BCHW.view(batch, 4, channels // 4, rows, columns).transpose(1, 2)
        return F.pixel_shuffle(h_BC4HW.flatten(1, 2), 2)


class Modulation(nn.Module):
    """Group normalisation without parameters, whose mean and deviation come from those of the latent."""

    def __init__(self, config: ConvConfig, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6, affine=False)
        self.gamma = nn.Linear(latent_channels, channels)
        self.beta = nn.Linear(latent_channels, channels)

    def forward(self, x_BCHW: Tensor, latent_BDhw: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        z_BDN = latent_BDhw.flatten(2)
        deviation_BD = (z_BDN.var(-1) + 1e-6).sqrt()
        scale_BC11, shift_BC11 = (
            part[..., None, None] for part in (self.gamma(deviation_BD), self.beta(z_BDN.mean(-1)))
        )
        out: Tensor = self.norm(x_BCHW) * scale_BC11 + shift_BC11
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
    """Residual blocks at the coarsest resolution, with attention after the first of them."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.blocks = config.middle_blocks
        for i in range(self.blocks):
            self.add_module(f"block_{i + 1}", ResBlock(config, channels, channels))
            if i == 0 and config.middle_attention:
                self.attn_1 = Attention(config, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        for i in range(self.blocks):
            x_BCHW = self.get_submodule(f"block_{i + 1}")(x_BCHW)
            if i == 0 and hasattr(self, "attn_1"):
                x_BCHW = self.attn_1(x_BCHW)
        return x_BCHW


class Encoder(nn.Module):
    """Image [B, image_channels, H, W] -> features [B, out_channels, H / f, W / f] with f = config.downsampling."""

    def __init__(self, config: ConvConfig, out_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        c, widths = config, config.widths
        self.patch, self.activation = c.patch, ACTIVATIONS[c.activation]
        self.conv_in = nn.Conv2d(c.image_channels * c.patch**2, c.channels, 3, padding=1, bias=c.bias)
        self.down = nn.ModuleList()
        for i, (width_in, width) in enumerate(zip([c.channels, *widths], widths, strict=False)):
            level = Level(c, [width_in] + [width] * c.per_level("blocks")[i], i in c.attention_levels)
            if i < len(widths) - 1:
                level.downsample = Downsample(c, width)
            self.down.append(level)
        self.mid = Middle(c, widths[-1])
        self.norm_out = normalisation(c, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, c.encoder_out, padding=c.encoder_out // 2)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode; both sides must be multiples of the downsampling."""
        h_BCHW = self.conv_in(F.pixel_unshuffle(image_BCHW, self.patch))
        for level in self.down:
            h_BCHW = level(h_BCHW)
        out: Tensor = self.conv_out(self.activation(self.norm_out(self.mid(h_BCHW))))
        return out


class Decoder(nn.Module):
    """Features [B, in_channels, h, w] -> image [B, image_channels, h * f, w * f]."""

    def __init__(self, config: ConvConfig, in_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        c, widths = config, config.decoder_widths
        inputs = [*widths[1:], widths[-1]]  # of each level, counted from full resolution
        attention = c.attention_levels if c.decoder_attention_levels is None else c.decoder_attention_levels
        self.patch, self.activation = c.patch, ACTIVATIONS[c.activation]
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = Middle(c, widths[-1])
        self.up = nn.ModuleList()
        for i, (width, width_in) in enumerate(zip(widths, inputs, strict=True)):
            level = Level(c, [width_in] + [width] * c.per_level("decoder_blocks")[i], i in attention)
            if i > 0:
                level.upsample = Upsample(c, width)
            self.up.append(level)
        if c.modulation:
            self.adaptive = nn.ModuleList(Modulation(c, width, in_channels) for width in inputs)
        self.norm_out = normalisation(c, widths[0])
        self.conv_out = nn.Conv2d(widths[0], c.image_channels * c.patch**2, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight that adaptive loss weights take gradients at (VQGAN, https://arxiv.org/abs/2012.09841)."""
        return self.conv_out.weight

    def forward(self, latent_BDhw: Tensor) -> Tensor:
        """Decode to an image of about [-1, 1], not clamped."""
        h_BCHW = self.mid(self.conv_in(latent_BDhw))
        for i in reversed(range(len(self.up))):
            if hasattr(self, "adaptive"):
                h_BCHW = self.adaptive[i](h_BCHW, latent_BDhw)
            h_BCHW = self.up[i](h_BCHW)
        patches_BCHW = self.conv_out(self.activation(self.norm_out(h_BCHW)))
        return torch.pixel_shuffle(patches_BCHW, self.patch)
