"""One-dimensional tokenizers: a fixed number of tokens that belong to no place in the image.

TiTok, "An Image is Worth 32 Tokens" (https://arxiv.org/abs/2406.07550): latent tokens are appended to the patches, a
ViT mixes all of them, and only the latent tokens are kept; the decoder is a ViT over them and one mask token per patch.
`nested` is FlexTok (https://arxiv.org/abs/2502.13967): token k sees patches and tokens up to k alone, and in training a
random number of the last tokens is missing, so any prefix of the tokens is a coarser picture of the same image.

Features are [B, C, 1, N], so that the convolutions around a bottleneck fit. Images have the one size of the geometry:
patches have learned positions in addition to the rotary ones, latent tokens stand in the middle and have their own.

Shape letters: B batch, C channels, H and W pixels, L patches, N latent tokens, X = L + N, E width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tokenizers_mm.api import Layout
from tokenizers_mm.blocks import PatchEmbed, PatchUnembed, grid_positions, scaled
from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.options import NetOptions
from tokenizers_mm.nets.transformer import GridTransformer, TransformerConfig

_DEVIATION = 0.02  # of learned positions at the start


@dataclass(frozen=True, kw_only=True)
class QueryConfig(NetOptions):
    """An encoder and a decoder, of independent sizes.

    patch   pixels per side of a patch; image sides must be multiples of it
    tokens  latent tokens, N
    encoder  size of the encoder; decoder  of the decoder (default: the same)
    smooth  a 3x3 convolution over the decoded image, as the public TiTok has
    nested  any prefix of the tokens decodes
    prefixes  which prefixes are trained: of every length alike ("uniform"), or of 1, 2, 4, ... N tokens ("powers")
    whole  share of the images that keep all tokens whatever `prefixes` draws: else the last tokens, which few prefixes
           have, can learn next to nothing
    """

    kind: Literal["query"] = "query"
    patch: int = 16
    tokens: int = 32
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig | None = None
    smooth: bool = False
    nested: bool = False
    prefixes: Literal["uniform", "powers"] = "uniform"
    whole: float = 0.0
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse counts below one, and a share that is none."""
        if min(self.patch, self.tokens, self.image_channels) < 1:
            raise ValueError(
                f"patch={self.patch}, tokens={self.tokens}, image_channels={self.image_channels}: expected at least 1"
            )
        if not 0 <= self.whole < 1:
            raise ValueError(f"whole={self.whole}: expected a share in [0, 1)")

    @property
    def downsampling(self) -> int:
        """Sides of images are multiples of this; there are no positions along them."""
        return self.patch

    @property
    def layout(self) -> Layout:
        """A sequence; nested where any prefix decodes."""
        return "nested" if self.nested else "sequence"


def prefix_mask(patches: int, tokens: int) -> Tensor:
    """Who may look at whom [X, X]: everybody at the patches, and token k at tokens up to k; patches at no token."""
    mask_XX = torch.ones(patches + tokens, patches + tokens, dtype=torch.bool).tril()
    mask_XX[:, :patches] = True
    return mask_XX


class QueryEncoder(nn.Module):
    """Image [B, image_channels, H, W] of the geometry's size -> features [B, out_channels, 1, N]."""

    def __init__(self, config: QueryConfig, out_channels: int, geometry: Geometry) -> None:
        super().__init__()
        width, patches = config.encoder.width, _grid(config, geometry)[0] * _grid(config, geometry)[1]
        self.grid, self.nested = _grid(config, geometry), config.nested
        self.patches = PatchEmbed(config.patch, config.image_channels, width)
        self.position_LE = nn.Parameter(torch.randn(patches, width) * _DEVIATION)
        self.query_NE = nn.Parameter(torch.randn(config.tokens, width))
        self.trunk = GridTransformer(config.encoder)
        self.project = scaled(nn.Linear(width, out_channels))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode; other sizes than the geometry's do not fit the learned positions."""
        patches, tokens = len(self.position_LE), len(self.query_NE)
        x_BLE = self.patches(image_BCHW) + self.position_LE
        query_BNE = self.query_NE.to(x_BLE.dtype).expand(len(x_BLE), -1, -1)
        mask_XX = prefix_mask(patches, tokens).to(x_BLE.device) if self.nested else None
        x_BXE = self.trunk(torch.cat([x_BLE, query_BNE], 1), _positions(self.grid, tokens, x_BLE.device), mask_XX)
        out: Tensor = self.project(x_BXE[:, patches:]).transpose(1, 2)[:, :, None]
        return out


class QueryDecoder(nn.Module):
    """Features [B, in_channels, 1, N] -> image [B, image_channels, H, W] of the geometry's size."""

    def __init__(self, config: QueryConfig, in_channels: int, geometry: Geometry) -> None:
        super().__init__()
        size = config.decoder or config.encoder
        self.grid = _grid(config, geometry)
        self.embed = scaled(nn.Linear(in_channels, size.width))
        self.position_NE = nn.Parameter(torch.randn(config.tokens, size.width) * _DEVIATION)
        self.mask_LE = nn.Parameter(torch.randn(self.grid[0] * self.grid[1], size.width))
        self.trunk = GridTransformer(size)
        self.pixels = PatchUnembed(config.patch, config.image_channels, size.width, smooth=config.smooth)

    @property
    def last_layer(self) -> Tensor:
        """Weight that adaptive loss weights take gradients at (VQGAN, https://arxiv.org/abs/2012.09841)."""
        return self.pixels.last_layer

    def forward(self, latent_BD1N: Tensor) -> Tensor:
        """Decode to an image of about [-1, 1], not clamped."""
        token_BNE = self.embed(latent_BD1N.flatten(2).transpose(1, 2)) + self.position_NE
        mask_BLE = self.mask_LE.to(token_BNE.dtype).expand(len(token_BNE), -1, -1)
        position_X2 = _positions(self.grid, len(self.position_NE), token_BNE.device)
        x_BXE = self.trunk(torch.cat([mask_BLE, token_BNE], 1), position_X2)
        image_BCHW: Tensor = self.pixels(x_BXE[:, : len(self.mask_LE)], self.grid)
        return image_BCHW


def _grid(config: QueryConfig, geometry: Geometry) -> tuple[int, int]:
    height, width = geometry.image_size
    if height % config.patch or width % config.patch:
        raise ValueError(f"image_size={geometry.image_size}: both sides must be multiples of patch={config.patch}")
    return height // config.patch, width // config.patch


def _positions(grid: tuple[int, int], tokens: int, device: torch.device) -> Tensor:
    """Of the patches, then of the tokens, which stand in the middle."""
    return torch.cat([grid_positions(*grid, device=device), torch.zeros(tokens, 2, device=device)])
