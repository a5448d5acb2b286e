"""Encoder + bottleneck + decoder = tokenizer. Continuous or discrete is the bottleneck's business alone.

Shape letters: B batch, C channels, H and W pixels, h and w positions per side, N = h * w, S streams, D latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantizers
from quantizers import Gaussian, Quantized, Quantizer
from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.config import build
from tokenizers_mm.nets.conv import ConvConfig, Decoder, Encoder

# Log-variance of a Gaussian bottleneck that starts from whitened latents: a noise of 5 % of their deviation.
_START_LOGVAR = -6.0


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A convolutional tokenizer.

    image_size  (height, width) its spec is stated for; any multiple of the downsampling works
    bottleneck  {"kind": one of quantizers.KINDS, **its constructor arguments}
    z_channels  width between the nets and the 1x1 convolutions around the bottleneck
    quant_conv  whether those convolutions exist; without them the widths must agree
    linear      adds a linear code of each downsampling x downsampling patch beside both nets, as JPEG has; with
                `start_linear` training begins at the best linear code instead of finding it slowly
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
        height, width = config.image_size
        self.spec = TokenSpec(image_size=(f, f), grid=(1, 1), dim=bottleneck.dim, codes=bottleneck.codes).resized(
            (height, width)
        )
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
        h_BND, grid = self._features(image_BCHW)
        quantized: Quantized = self.bottleneck(h_BND)
        return self._pixels(quantized.z_BND, grid), quantized

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tokens:
        """Codes, or latents (the posterior mean) of unit variance, of images in [-1, 1].

        Raises `ValueError` for sides that are not multiples of the downsampling and for non-finite pixels.
        """
        h_BND, grid = self._features(image_BCHW)
        if not bool(torch.isfinite(h_BND).all()):
            raise ValueError("image_BCHW gives NaN or Inf features: check the pixels (expected finite, in [-1, 1])")
        payload = self.bottleneck.encode(h_BND)
        if self.spec.discrete:
            return Tokens(codes_BNS=payload, grid=grid)
        return Tokens(latents_BND=(payload - self.latent_mean_D) / self.latent_std_D, grid=grid)

    @torch.no_grad()
    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors [B, N, D]: of the codes, or the unit-variance latents themselves."""
        tokens.check(self.spec)
        return self.bottleneck.decode(tokens.data) if self.spec.discrete else tokens.data

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images [B, C, H, W] of about [-1, 1], not clamped; the tokens' grid gives the size."""
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
        return self.bottleneck.posterior(self._features(image_BCHW)[0])

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the latent statistics from images, so that `encode` gives zero mean and unit variance per channel."""
        if self.spec.discrete:
            return
        means_ND = torch.cat([self.posterior(batch)[0].flatten(0, 1) for batch in batches])
        self.latent_mean_D.copy_(means_ND.mean(0))
        self.latent_std_D.copy_(means_ND.std(0).clamp(min=1e-6))

    def _features(self, image_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
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


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Build encoder, bottleneck and decoder, and put them together. Raises `ValueError` naming the bad option."""
    bottleneck = build(quantizers.KINDS, config.bottleneck, "bottleneck")
    double = 2 if isinstance(bottleneck, Gaussian) else 1
    encoder = Encoder(config.net, double * config.z_channels)
    decoder = Decoder(config.net, config.z_channels)
    return Autoencoder(config, encoder, bottleneck, decoder)


@torch.no_grad()
def start_linear(autoencoder: Autoencoder, image_BCHW: Tensor) -> None:
    """Start at the best linear code of these images: PCA into the bottleneck, least squares out of it.

    The optimum of a linear autoencoder is the PCA (Baldi and Hornik, 1989), yet gradient descent takes thousands of
    steps to get near it. Both nets start at zero and learn what the linear code leaves. Needs `linear: true`.
    """
    if not autoencoder.config.linear:
        raise ValueError("start_linear needs a tokenizer built with linear: true")
    bottleneck, f = autoencoder.bottleneck, autoencoder.downsampling
    patch_ND = F.pixel_unshuffle(image_BCHW, f).permute(0, 2, 3, 1).flatten(0, 2)
    mean_D = patch_ND.mean(0)
    variance_K, basis_DK = torch.linalg.eigh(torch.cov(patch_ND.T))
    count = min(bottleneck.dim, len(mean_D))
    code_KD = basis_DK.flip(1).T[:count]  # flipped: largest variance first
    deviation_K = variance_K.flip(0)[:count].clamp(min=1e-8).sqrt()
    code_KD = _spread(deviation_K) @ code_KD if bottleneck.codes else code_KD / deviation_K[:, None]
    for module in (autoencoder.quant_conv, getattr(autoencoder.decoder, "conv_out", None)):
        for parameter in module.parameters() if module is not None else ():
            parameter.zero_()
    weight_OP = torch.zeros(bottleneck.in_dim, len(mean_D))
    weight_OP[:count] = code_KD
    bias_O = -weight_OP @ mean_D
    if isinstance(bottleneck, Gaussian):
        bias_O[bottleneck.dim :] = _START_LOGVAR
    _set_linear(autoencoder.linear_in, weight_OP, bias_O)
    code_NK = bottleneck(autoencoder._features(image_BCHW)[0]).z_BND.flatten(0, 1)
    design_NK = torch.cat([code_NK, torch.ones_like(code_NK[:, :1])], 1)
    solution_KD = torch.linalg.lstsq(design_NK, patch_ND).solution
    _set_linear(autoencoder.linear_out, solution_KD[:-1].T, solution_KD[-1])


def _spread(deviation_K: Tensor) -> Tensor:
    """Matrix [K, K] from principal components to channels of unit variance that share every component.

    A quantizer gives its channels about equal precision, while brightness needs far more of it than the next
    component does. Half-whitening keeps part of that difference, and an orthogonal rotation (the DCT) spreads it over
    all channels: twice the levels where one component had them.
    """
    place_K = torch.arange(len(deviation_K), device=deviation_K.device)
    dct_KK = torch.cos(math.pi * (place_K[:, None] + 0.5) * place_K / len(place_K))
    mixed_KK = dct_KK / torch.linalg.vector_norm(dct_KK, dim=0) / deviation_K.sqrt()
    spread_KK: Tensor = mixed_KK / torch.linalg.vector_norm(mixed_KK * deviation_K, dim=1, keepdim=True)
    return spread_KK


def _set_linear(layer: nn.Conv2d, weight_OP: Tensor, bias_O: Tensor) -> None:
    layer.load_state_dict({"weight": weight_OP[..., None, None], "bias": bias_O})


def config_dict(autoencoder: Autoencoder) -> dict[str, Any]:
    """JSON-able configuration that builds the same architecture again."""
    return asdict(autoencoder.config) | {"bottleneck": autoencoder.bottleneck.options()}
