"""Encoder + bottleneck + decoder = tokenizer. Continuous or discrete is the bottleneck's business alone.

Data flows one way: pixels -> what the net expects -> features -> codes or latents -> tokens; decoding mirrors it.

Shape letters: B batch, C channels, H and W pixels, h and w positions per side, N = h * w, S streams, D latent channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantizers
from quantizers import Gaussian, MultiScale, Quantized, Quantizer
from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.config import build
from tokenizers_mm.hub_mixin import HubMixin
from tokenizers_mm.nets import ConvConfig, NetConfig, build_nets
from tokenizers_mm.nets.precision import run


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A tokenizer made of an encoder, a bottleneck and a decoder.

    image_size       (height, width) its spec is stated for; any multiple of the downsampling works, unless the
                     bottleneck is multi-scale: its finest scale takes one size
    bottleneck       {"kind": one of quantizers.KINDS, **its constructor arguments}
    net              the encoder-decoder, see `tokenizers_mm.nets`
    z_channels       width between the nets and the convolutions around the bottleneck
    quant_conv       kernel of the convolution before the bottleneck; 0 has none, and then the widths must agree
    post_quant_conv  kernel of the one after it (default: the same)
    linear           adds a linear code of each downsampling x downsampling patch beside both nets, as JPEG has; with
                     `linear_start.start_linear` training begins at the best linear code instead of finding it slowly
    pixel_mean, pixel_std  what the nets see is (p - mean) / std of pixels p in [0, 1], one number or one per channel;
                     tokenizers take and give [-1, 1] whatever this says
    latent_patch     positions per side whose channels are stacked (channel, row, column) into one latent, after the
                     bottleneck (FLUX.2: 2); continuous bottlenecks only
    latent_positions statistics of the latents for every position of image_size, not for every channel alone
    """

    image_size: tuple[int, int]
    bottleneck: dict[str, Any]
    net: NetConfig = field(default_factory=ConvConfig)
    z_channels: int = 4
    quant_conv: int = 1
    post_quant_conv: int | None = None
    linear: bool = False
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_std: tuple[float, ...] = (0.5,)
    latent_patch: int = 1
    latent_positions: bool = False

    def __post_init__(self) -> None:
        """Refuse kernels without a centre, pixels that cannot be normalised, and patches below 1."""
        for name in ("quant_conv", "post_quant_conv"):
            kernel = getattr(self, name)
            if kernel is not None and kernel != 0 and (kernel < 0 or kernel % 2 == 0):
                raise ValueError(f"{name}={kernel}: expected an odd kernel, or 0 for no convolution")
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name)) not in (1, self.net.image_channels):
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or {self.net.image_channels} numbers")
        if min(self.pixel_std) <= 0 or self.latent_patch < 1:
            raise ValueError(f"pixel_std={self.pixel_std}, latent_patch={self.latent_patch}: expected positive numbers")

    @property
    def downsampling(self) -> int:
        """Pixels per position, along each side."""
        return self.net.downsampling * self.latent_patch


class Autoencoder(nn.Module, HubMixin):
    """A `Tokenizer` made of parts that are already built; see `build_autoencoder` for the usual way to get one.

    Continuous latents leave `encode` with zero mean and unit variance: `calibrate` measures the statistics, or
    `set_statistics` takes known ones; they are saved with the weights. `origin` says where public weights came from.
    Nets may be bfloat16 or float16 (`.to`): what decides about codes, the bottleneck and the statistics of latents,
    stays float32, as images and tokens do, and a net whose float16 activations overflow is run again in float32.
    """

    latent_mean_D: Tensor
    latent_std_D: Tensor

    def __init__(
        self, config: AutoencoderConfig, encoder: nn.Module, bottleneck: Quantizer, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.config, self.downsampling = config, config.downsampling
        self.spec = _spec_of(bottleneck, config)
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        z, z_in = config.z_channels, _encoder_channels(config, bottleneck)
        post = config.quant_conv if config.post_quant_conv is None else config.post_quant_conv
        self.quant_conv = _convolution(z_in, bottleneck.in_dim, config.quant_conv, f"z_channels={z}", bottleneck)
        self.post_quant_conv = _convolution(bottleneck.dim, z, post, f"z_channels={z}", bottleneck)
        if config.linear:
            patch_channels = config.net.image_channels * config.net.downsampling**2
            self.linear_in = nn.Conv2d(patch_channels, bottleneck.in_dim, 1)
            self.linear_out = nn.Conv2d(bottleneck.dim, patch_channels, 1)
        if not bottleneck.codes:
            shape = (self.spec.length, self.spec.dim) if config.latent_positions else (self.spec.dim,)
            self.register_buffer("latent_mean_D", torch.zeros(shape))
            self.register_buffer("latent_std_D", torch.ones(shape))

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Quantized]:
        """Training pass: reconstruction [B, C, H, W] and the bottleneck's output."""
        h_BND, grid = self.features(image_BCHW)
        quantized: Quantized = self.bottleneck(h_BND)
        return self.pixels(quantized.z_BND, grid), quantized

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor, *, sample: torch.Generator | None = None) -> Tokens:
        """Codes, or latents of unit variance, of images in [-1, 1].

        Latents are those of the posterior's mode; `sample` draws from the posterior instead, with this generator.
        Raises `ValueError` for sides that are not multiples of the downsampling and for non-finite pixels.
        """
        h_BND, grid = self.features(image_BCHW)
        return self.tokens_of(h_BND, grid, sample=sample)

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
        return self.pixels(*self.vectors(tokens))

    @torch.no_grad()
    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, N, D] before normalisation; `ValueError` where the bottleneck has none."""
        return self._gaussian().posterior(self.features(image_BCHW)[0])

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the latent statistics from images, so that `encode` gives zero mean and unit variance per channel.

        Per position (`latent_positions`) all images must be of the tokenizer's own size.
        """
        if self.spec.discrete:
            return
        latents_BND = [self._latents(*self.features(batch), None)[0] for batch in batches]
        kept = 1 if self.config.latent_positions else 2
        values = torch.cat(latents_BND) if kept == 1 else torch.cat([part.flatten(0, 1) for part in latents_BND])
        self.set_statistics(values.mean(0), values.std(0).clamp(min=1e-6))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor | float, std: Tensor | float) -> None:
        """Latents become (z - mean) / std: numbers, or tensors that broadcast to [D], or to [N, D] per position.

        A published scale s and shift m are mean = m and std = 1 / s. `ValueError` for what does not fit.
        """
        if self.spec.discrete:
            raise ValueError(f"bottleneck {self.bottleneck.kind} gives codes: only latents have statistics")
        for buffer, value in ((self.latent_mean_D, mean), (self.latent_std_D, std)):
            given = torch.as_tensor(value, dtype=buffer.dtype, device=buffer.device)
            if given.ndim and given.shape != buffer.shape[-given.ndim :]:
                raise ValueError(f"statistics of shape {tuple(given.shape)}: expected {tuple(buffer.shape)}")
            if not bool(torch.isfinite(given).all()) or (buffer is self.latent_std_D and float(given.min()) <= 0):
                raise ValueError("statistics must be finite, and deviations positive")
            buffer.copy_(given)

    def with_scales(self, scales: Sequence[int | Sequence[int]]) -> Self:
        """The same weights, shared, for images of another size or with other scales (multi-scale bottlenecks).

        scales  from coarse to fine, each a side or (h, w); the last one is the grid, which gives the image size
        """
        if not isinstance(self.bottleneck, MultiScale):
            raise ValueError(f"bottleneck {self.bottleneck.kind} has no scales: it takes any image size as it is")
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.bottleneck = self.bottleneck.with_scales(scales)
        height, width = (side * self.config.net.downsampling for side in other.bottleneck.scales[-1])
        other.config = replace(self.config, image_size=(height, width), bottleneck=other.bottleneck.options())
        other.spec = _spec_of(other.bottleneck, other.config)
        return other

    def features(self, image_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What the bottleneck receives, [B, N, in_dim], and its grid; `ValueError` for images it cannot take."""
        channels = self.config.net.image_channels
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != channels:
            raise ValueError(f"image_BCHW has shape {tuple(image_BCHW.shape)}: expected [batch, {channels}, H, W]")
        if not image_BCHW.is_floating_point():
            raise ValueError(f"image_BCHW is {image_BCHW.dtype}: expected a float type, pixels in [-1, 1]")
        self.spec.resized((image_BCHW.shape[2], image_BCHW.shape[3]))  # refuses sides that are not multiples
        x_BCHW = self._normalised(image_BCHW)
        h_BChw = run(self.quant_conv, run(self.encoder, x_BCHW))
        if self.config.linear:
            h_BChw = h_BChw + run(self.linear_in, F.pixel_unshuffle(x_BCHW, self.config.net.downsampling))
        return h_BChw.flatten(2).transpose(1, 2), (h_BChw.shape[2], h_BChw.shape[3])

    def tokens_of(self, h_BND: Tensor, grid: tuple[int, int], *, sample: torch.Generator | None = None) -> Tokens:
        """Tokens of what `features` gave: the second half of `encode`."""
        if not bool(torch.isfinite(h_BND).all()):
            raise ValueError("image_BCHW gives NaN or Inf features: check the pixels (expected finite, in [-1, 1])")
        if self.spec.discrete:
            if sample is not None:
                raise ValueError(f"sample: bottleneck {self.bottleneck.kind} has no posterior to draw from")
            codes_BNS = self.bottleneck.encode(h_BND)
            return Tokens(codes_BNS=codes_BNS, grid=self.spec.grid if self.spec.order == "scales" else grid)
        z_BND, grid = self._latents(h_BND, grid, sample)
        self._check_positions(grid)
        return Tokens(latents_BND=(z_BND - self.latent_mean_D) / self.latent_std_D, grid=grid)

    def vectors(self, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        """What goes to the decoder, [B, N, dim], and its grid: the first half of `decode`."""
        if isinstance(self.bottleneck, MultiScale):
            if tokens.check(self.spec).grid != self.spec.grid:
                raise ValueError(f"grid={tokens.grid}: this tokenizer decodes the scales {self.spec.grid}")
            return self.bottleneck.decode(tokens.data), self.bottleneck.scales[-1]
        z_BND = self.embed(tokens)
        if len(tokens.grid) != 2 or isinstance(tokens.grid[0], tuple):
            raise ValueError(f"grid={tokens.grid}: this tokenizer decodes (rows, columns)")
        rows, columns = tokens.grid
        if self.spec.discrete:
            return z_BND, (rows, columns)
        self._check_positions((rows, columns))
        z_BND, patch = z_BND.float() * self.latent_std_D + self.latent_mean_D, self.config.latent_patch
        z_BDhw = F.pixel_shuffle(_map(z_BND, (rows, columns)), patch)
        return z_BDhw.flatten(2).transpose(1, 2), (rows * patch, columns * patch)

    def pixels(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images [B, C, H, W] of the bottleneck's vectors: the second half of `decode`."""
        z_BDhw = _map(z_BND, grid)
        x_BCHW = run(self.decoder, run(self.post_quant_conv, z_BDhw))
        if self.config.linear:
            x_BCHW = x_BCHW + F.pixel_shuffle(run(self.linear_out, z_BDhw), self.config.net.downsampling)
        return self._normalised(x_BCHW, back=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.half`, `.cuda` and others go through: no fewer bits for bottleneck and statistics."""

        def kept(value: Tensor) -> Tensor:
            out = fn(value)
            return out if out.element_size() >= value.element_size() else value.to(out.device)

        for name, module in self.named_children():
            module._apply(kept if name == "bottleneck" else fn)  # type: ignore[no-untyped-call]
        super()._apply(kept, recurse=False)  # type: ignore[no-untyped-call]
        return self

    def _normalised(self, image_BCHW: Tensor, *, back: bool = False) -> Tensor:
        """Images in [-1, 1] to what the nets expect, or back."""
        config = self.config
        if set(config.pixel_mean) == set(config.pixel_std) == {0.5}:
            return image_BCHW
        mean_C11, std_C11 = (image_BCHW.new_tensor(v)[:, None, None] for v in (config.pixel_mean, config.pixel_std))
        if back:
            return (image_BCHW * std_C11 + mean_C11) * 2 - 1
        return ((image_BCHW + 1) / 2 - mean_C11) / std_C11

    def _latents(
        self, h_BND: Tensor, grid: tuple[int, int], sample: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Latents [B, N, D] before normalisation, and their grid."""
        if sample is None:
            z_BND = self.bottleneck.encode(h_BND)
        else:
            mean_BND, logvar_BND = self._gaussian().posterior(h_BND)
            noise_BND = torch.randn(mean_BND.shape, generator=sample, device=sample.device).to(mean_BND.device)
            z_BND = mean_BND + (0.5 * logvar_BND).exp() * noise_BND
        z_BDhw = F.pixel_unshuffle(_map(z_BND, grid), self.config.latent_patch)
        return z_BDhw.flatten(2).transpose(1, 2), (z_BDhw.shape[2], z_BDhw.shape[3])

    def _gaussian(self) -> Gaussian:
        if not isinstance(self.bottleneck, Gaussian):
            raise ValueError(f"bottleneck {self.bottleneck.kind} has no posterior: only gaussian has")
        return self.bottleneck

    def _check_positions(self, grid: tuple[int, int]) -> None:
        if self.config.latent_positions and grid != self.spec.grid:
            raise ValueError(f"grid={grid}: latent statistics are per position, of a grid of {self.spec.grid} only")


def _map(z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, N, D] in raster order to [B, D, h, w]."""
    return z_BND.transpose(1, 2).reshape(z_BND.shape[0], z_BND.shape[2], *grid)


def _encoder_channels(config: AutoencoderConfig, bottleneck: Quantizer) -> int:
    return config.z_channels * (2 if isinstance(bottleneck, Gaussian) else 1)


def _convolution(channels: int, out_channels: int, kernel: int, where: str, bottleneck: Quantizer) -> nn.Module:
    if kernel:
        return nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
    if channels != out_channels:
        raise ValueError(
            f"{where}: without quant_conv the bottleneck {bottleneck.kind} needs {bottleneck.dim} channels"
        )
    return nn.Identity()


def _spec_of(bottleneck: Quantizer, config: AutoencoderConfig) -> TokenSpec:
    """Spec at the configured image size: a raster of positions, or the scales of a multi-scale bottleneck."""
    f, patch = config.downsampling, config.latent_patch
    if patch > 1 and bottleneck.codes:
        raise ValueError(f"latent_patch={patch}: bottleneck {bottleneck.kind} gives codes, which cannot be stacked")
    one = TokenSpec(image_size=(f, f), grid=(1, 1), dim=bottleneck.dim * patch**2, codes=bottleneck.codes)
    spec = one.resized(config.image_size)
    if not isinstance(bottleneck, MultiScale):
        return spec
    if spec.grid != bottleneck.scales[-1]:
        raise ValueError(
            f"image_size={spec.image_size}: gives a grid of {spec.grid} at downsampling {f}, "
            f"the finest of the bottleneck's scales is {bottleneck.scales[-1]}"
        )
    return replace(spec, grid=bottleneck.scales, order="scales")


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Build encoder, bottleneck and decoder, and put them together. Raises `ValueError` naming the bad option."""
    bottleneck = build(quantizers.KINDS, config.bottleneck, "bottleneck")
    encoder, decoder = build_nets(config.net, _encoder_channels(config, bottleneck), config.z_channels)
    return Autoencoder(config, encoder, bottleneck, decoder)


def config_dict(autoencoder: Autoencoder) -> dict[str, Any]:
    """JSON-able configuration that builds the same architecture again."""
    return asdict(autoencoder.config) | {"bottleneck": autoencoder.bottleneck.options()}
