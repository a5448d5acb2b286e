"""Vision transformers as encoder and decoder: one token per patch in, one patch per token out.

"An Image is Worth 16x16 Words" (https://arxiv.org/abs/2010.11929); as a tokenizer ViT-VQGAN
(https://arxiv.org/abs/2110.04627) and ViTok (https://arxiv.org/abs/2501.09755). Positions are rotary, so any image size
works whose sides are multiples of the patch; what was trained at one size is best near it.

Shape letters: B batch, C channels, H and W pixels, h and w rows and columns of patches, L = h * w, E width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from tokenizers_mm.blocks import PatchEmbed, PatchUnembed, grid_positions, scaled
from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.options import NetOptions
from tokenizers_mm.nets.transformer import GridTransformer, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class ViTConfig(NetOptions):
    """An encoder and a decoder, of independent sizes.

    patch    pixels per side of what becomes one position: the downsampling
    encoder  size of the encoder; decoder  of the decoder (default: the same)
    smooth   a 3x3 convolution over the decoded image, which can even out the seams between patches
    """

    kind: Literal["vit"] = "vit"
    patch: int = 16
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig | None = None
    smooth: bool = False
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse patches and channels that are not there."""
        if min(self.patch, self.image_channels) < 1:
            raise ValueError(f"patch={self.patch}, image_channels={self.image_channels}: expected at least 1")

    @property
    def downsampling(self) -> int:
        """Pixels per position, along each side."""
        return self.patch


class ViTEncoder(nn.Module):
    """Image [B, image_channels, H, W] -> features [B, out_channels, H / f, W / f] with f = config.patch."""

    def __init__(self, config: ViTConfig, out_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        size = config.encoder
        self.patches = PatchEmbed(config.patch, config.image_channels, size.width)
        self.trunk = GridTransformer(size)
        self.project = scaled(nn.Linear(size.width, out_channels))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode; both sides must be multiples of the patch."""
        grid = (image_BCHW.shape[2] // self.patches.patch, image_BCHW.shape[3] // self.patches.patch)
        x_BLE = self.trunk(self.patches(image_BCHW), grid_positions(*grid, device=image_BCHW.device))
        out: Tensor = self.project(x_BLE).transpose(1, 2).unflatten(2, grid)
        return out


class ViTDecoder(nn.Module):
    """Features [B, in_channels, h, w] -> image [B, image_channels, h * f, w * f]."""

    def __init__(self, config: ViTConfig, in_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        size = config.decoder or config.encoder
        self.embed = scaled(nn.Linear(in_channels, size.width))
        self.trunk = GridTransformer(size)
        self.pixels = PatchUnembed(config.patch, config.image_channels, size.width, smooth=config.smooth)

    @property
    def last_layer(self) -> Tensor:
        """Weight that adaptive loss weights take gradients at (VQGAN, https://arxiv.org/abs/2012.09841)."""
        return self.pixels.last_layer

    @property
    def conv_out(self) -> nn.Module:
        """The layer that a linear start sets to zero, under the name it has in convolutional nets."""
        return self.pixels.project

    def forward(self, latent_BDhw: Tensor) -> Tensor:
        """Decode to an image of about [-1, 1], not clamped."""
        grid = (latent_BDhw.shape[2], latent_BDhw.shape[3])
        x_BLE = self.embed(latent_BDhw.flatten(2).transpose(1, 2))
        image_BCHW: Tensor = self.pixels(self.trunk(x_BLE, grid_positions(*grid, device=x_BLE.device)), grid)
        return image_BCHW
