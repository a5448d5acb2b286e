"""Encoder + bottleneck + decoder = tokenizer. Continuous or discrete is the bottleneck's business alone.

Shape letters: B batch, C channels, H and W pixels, h and w positions per side, N = h * w, S streams, D latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantizers
from quantizers import Gaussian, MultiScale, Quantized, Quantizer
from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.config import build
from tokenizers_mm.nets.conv import ConvConfig, Decoder, Encoder


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A convolutional tokenizer.

    image_size  (height, width) its spec is stated for; any multiple of the downsampling works, unless the bottleneck
                is multi-scale: its finest scale takes one size
    bottleneck  {"kind": one of quantizers.KINDS, **its constructor arguments}
    z_channels  width between the nets and the 1x1 convolutions around the bottleneck
    quant_conv  whether those convolutions exist; without them the widths must agree
    linear      adds a linear code of each downsampling x downsampling patch beside both nets, as JPEG has; with
                `linear_start.start_linear` training begins at the best linear code instead of finding it slowly
    """

    image_size: tuple[int, int]
    bottleneck: dict[str, Any]
    net: ConvConfig = field(default_factory=ConvConfig)
    z_channels: int = 4
    quant_conv: bool = True
    linear: bool = False


class Autoencoder(nn.Module):
    """A `Tokenizer` made of parts that are already built; see `build_autoencoder` for the usual way to get one.

    Continuous latents leave `encode` with zero mean and unit variance per channel: `calibrate` measures the statistics,
    which are saved with the weights.
    """

    latent_mean_D: Tensor
    latent_std_D: Tensor

    def __init__(
        self, config: AutoencoderConfig, encoder: nn.Module, bottleneck: Quantizer, decoder: nn.Module
    ) -> None:
        super().__init__()
        f = config.net.downsampling
        self.config, self.downsampling = config, f
        self.spec = _spec_of(bottleneck, f, config.image_size)
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        z, z_out = config.z_channels, config.z_channels * (2 if isinstance(bottleneck, Gaussian) else 1)
        if config.quant_conv:
            self.quant_conv: nn.Module = nn.Conv2d(z_out, bottleneck.in_dim, 1)
            self.post_quant_conv: nn.Module = nn.Conv2d(bottleneck.dim, z, 1)
        elif (z_out, z) != (bottleneck.in_dim, bottleneck.dim):
            raise ValueError(
                f"z_channels={z}: without quant_conv the bottleneck {bottleneck.kind} needs {bottleneck.dim} channels"
            )
        else:
            self.quant_conv, self.post_quant_conv = nn.Identity(), nn.Identity()
        if config.linear:
            patch_channels = config.net.image_channels * f**2
            self.linear_in = nn.Conv2d(patch_channels, bottleneck.in_dim, 1)
            self.linear_out = nn.Conv2d(bottleneck.dim, patch_channels, 1)
        if not bottleneck.codes:
            self.register_buffer("latent_mean_D", torch.zeros(bottleneck.dim))
            self.register_buffer("latent_std_D", torch.ones(bottleneck.dim))

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Quantized]:
        """Training pass: reconstruction [B, C, H, W] and the bottleneck's output."""
        h_BND, grid = self.features(image_BCHW)
        quantized: Quantized = self.bottleneck(h_BND)
        return self._pixels(quantized.z_BND, grid), quantized

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tokens:
        """Codes, or latents (the posterior mean) of unit variance, of images in [-1, 1].

        Raises `ValueError` for sides that are not multiples of the downsampling and for non-finite pixels.
        """
        h_BND, grid = self.features(image_BCHW)
        if not bool(torch.isfinite(h_BND).all()):
            raise ValueError("image_BCHW gives NaN or Inf features: check the pixels (expected finite, in [-1, 1])")
        payload = self.bottleneck.encode(h_BND)
        if self.spec.discrete:
            return Tokens(codes_BNS=payload, grid=self.spec.grid if self.spec.order == "scales" else grid)
        return Tokens(latents_BND=(payload - self.latent_mean_D) / self.latent_std_D, grid=grid)

    @torch.no_grad()
    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors [B, N, D]: of the codes, or the unit-variance latents themselves."""
        tokens.check(self.spec)
        if isinstance(self.bottleneck, MultiScale):
            return self.bottleneck.rows(tokens.data)
        return self.bottleneck.decode(tokens.data) if self.spec.discrete else tokens.data

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images [B, C, H, W] of about [-1, 1], not clamped; the tokens' grid gives the size."""
        if isinstance(self.bottleneck, MultiScale):
            if tokens.check(self.spec).grid != self.spec.grid:
                raise ValueError(f"grid={tokens.grid}: this tokenizer decodes the scales {self.spec.grid}")
            return self._pixels(self.bottleneck.decode(tokens.data), self.bottleneck.scales[-1])
        z_BND = self.embed(tokens)
        if len(tokens.grid) != 2 or isinstance(tokens.grid[0], tuple):
            raise ValueError(f"grid={tokens.grid}: this tokenizer decodes (rows, columns)")
        if not self.spec.discrete:
            z_BND = z_BND * self.latent_std_D + self.latent_mean_D
        return self._pixels(z_BND, tokens.grid)

    @torch.no_grad()
    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, N, D] before normalisation; `ValueError` where the bottleneck is discrete."""
        if not isinstance(self.bottleneck, Gaussian):
            raise ValueError(f"bottleneck {self.bottleneck.kind} has no posterior: only gaussian has")
        return self.bottleneck.posterior(self.features(image_BCHW)[0])

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the latent statistics from images, so that `encode` gives zero mean and unit variance per channel."""
        if self.spec.discrete:
            return
        means_ND = torch.cat([self.posterior(batch)[0].flatten(0, 1) for batch in batches])
        self.latent_mean_D.copy_(means_ND.mean(0))
        self.latent_std_D.copy_(means_ND.std(0).clamp(min=1e-6))

    def features(self, image_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What the bottleneck receives, [B, N, in_dim], and the grid; `ValueError` for images it cannot take."""
        channels = self.config.net.image_channels
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != channels:
            raise ValueError(f"image_BCHW has shape {tuple(image_BCHW.shape)}: expected [batch, {channels}, H, W]")
        if not image_BCHW.is_floating_point():
            raise ValueError(f"image_BCHW is {image_BCHW.dtype}: expected a float type, pixels in [-1, 1]")
        self.spec.resized((image_BCHW.shape[2], image_BCHW.shape[3]))  # refuses sides that are not multiples
        h_BChw = self.quant_conv(self.encoder(image_BCHW))
        if self.config.linear:
            h_BChw = h_BChw + self.linear_in(F.pixel_unshuffle(image_BCHW, self.downsampling))
        return h_BChw.flatten(2).transpose(1, 2), (h_BChw.shape[2], h_BChw.shape[3])

    def _pixels(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        z_BDhw = z_BND.transpose(1, 2).reshape(len(z_BND), -1, *grid)
        image_BCHW: Tensor = self.decoder(self.post_quant_conv(z_BDhw))
        if self.config.linear:
            image_BCHW = image_BCHW + F.pixel_shuffle(self.linear_out(z_BDhw), self.downsampling)
        return image_BCHW


def _spec_of(bottleneck: Quantizer, downsampling: int, image_size: tuple[int, int]) -> TokenSpec:
    """Spec at this image size: a raster of positions, or the scales of a multi-scale bottleneck."""
    one = TokenSpec(image_size=(downsampling, downsampling), grid=(1, 1), dim=bottleneck.dim, codes=bottleneck.codes)
    spec = one.resized(image_size)
    if not isinstance(bottleneck, MultiScale):
        return spec
    if spec.grid != bottleneck.scales[-1]:
        raise ValueError(
            f"image_size={spec.image_size}: gives a grid of {spec.grid} at downsampling {downsampling}, "
            f"the finest of the bottleneck's scales is {bottleneck.scales[-1]}"
        )
    return replace(spec, grid=bottleneck.scales, order="scales")


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Build encoder, bottleneck and decoder, and put them together. Raises `ValueError` naming the bad option."""
    bottleneck = build(quantizers.KINDS, config.bottleneck, "bottleneck")
    double = 2 if isinstance(bottleneck, Gaussian) else 1
    encoder = Encoder(config.net, double * config.z_channels)
    decoder = Decoder(config.net, config.z_channels)
    return Autoencoder(config, encoder, bottleneck, decoder)


def config_dict(autoencoder: Autoencoder) -> dict[str, Any]:
    """JSON-able configuration that builds the same architecture again."""
    return asdict(autoencoder.config) | {"bottleneck": autoencoder.bottleneck.options()}
