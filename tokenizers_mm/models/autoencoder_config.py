"""Options of an autoencoder, and what follows from them before anything is built: its token spec."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from quantizers import Quantizer
from tokenizers_mm.api import TokenSpec
from tokenizers_mm.geometry import single_grids
from tokenizers_mm.models.pixel_range import PixelRange
from tokenizers_mm.models.semantic_head import SemanticConfig
from tokenizers_mm.nets import ConvConfig, DecoderConfig, NetConfig, check_pair


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A tokenizer made of an encoder, a bottleneck and a decoder.

    image_size       (height, width) its spec is stated for; any multiple of the downsampling works, unless the
                     bottleneck is multi-scale (its finest scale takes one size) or the net one-dimensional
    bottleneck       {"kind": one of quantizers.KINDS, **its constructor arguments}
    net              the encoder-decoder, see `tokenizers_mm.nets`
    decoder_net      a decoder of another kind or size than that of `net`, with the same downsampling; "flow" is a
                     generative one
    z_channels       width between the nets and the convolutions around the bottleneck
    quant_conv       kernel of the convolution before the bottleneck; 0 has none, and then the widths must agree
    post_quant_conv  kernel of the one after it (default: the same)
    linear           adds a linear code of each downsampling x downsampling patch beside both nets, as JPEG has; with
                     `training.pca_initialise` training begins at the best linear code instead of finding it slowly
    pixel_mean, pixel_std  what the nets see is (p - mean) / std of pixels p in [0, 1], one number or one per channel;
                     tokenizers take and give [-1, 1] whatever this says
    latent_patch     positions per side whose channels are stacked (channel, row, column) into one latent, after the
                     bottleneck (FLUX.2: 2); continuous bottlenecks only
    latent_positions statistics of the latents for every position of image_size, not for every channel alone
    noise            largest deviation of the noise that training adds to unit-variance latents, drawn uniformly for
                     every image, so that the decoder forgives what generators miss (RAE, arXiv 2510.11690: 0.8)
    semantic         reads features off the bottleneck's vectors, and may have a text encoder beside it
    """

    image_size: tuple[int, int]
    bottleneck: dict[str, Any]
    net: NetConfig = field(default_factory=ConvConfig)
    decoder_net: DecoderConfig | None = None
    z_channels: int = 4
    quant_conv: int = 1
    post_quant_conv: int | None = None
    linear: bool = False
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_std: tuple[float, ...] = (0.5,)
    latent_patch: int = 1
    latent_positions: bool = False
    noise: float = 0.0
    semantic: SemanticConfig | None = None

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
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise={self.noise}: expected a deviation of at least 0")
        check_pair(self.net, self.decoder_net)
        mapped = self.net.tokens is None
        if self.linear and (not mapped or self.decoder.generative):
            raise ValueError("linear=True: needs a map of positions and a decoder that is no flow")
        if not mapped and max(self.latent_patch, self.quant_conv, self.post_quant_conv or 0) > 1:
            raise ValueError(
                f"latent_patch={self.latent_patch}, quant_conv={self.quant_conv}, "
                f"post_quant_conv={self.post_quant_conv}: tokens of net {self.net.kind} have no neighbours, expected "
                "at most 1"
            )

    @property
    def decoder(self) -> DecoderConfig:
        """Options of the decoder: those of `decoder_net`, or of `net`, which then has both."""
        return self.net if self.decoder_net is None else self.decoder_net

    @property
    def pixel_range(self) -> PixelRange:
        """What the nets see of images."""
        return PixelRange(self.pixel_mean, self.pixel_std)

    @property
    def downsampling(self) -> int:
        """Pixels per position, along each side."""
        return self.net.downsampling * self.latent_patch


def encoder_channels(config: AutoencoderConfig, bottleneck: Quantizer) -> int:
    """Channels the encoder gives: z_channels for each moment of the bottleneck; a frozen one gives what it gives."""
    return config.z_channels * (1 if config.net.frozen else bottleneck.moments)


def spec_of(bottleneck: Quantizer, config: AutoencoderConfig) -> TokenSpec:
    """Spec at the configured image size, before any net is built; `ValueError` for what does not fit together."""
    net, f, patch, codes = config.net, config.downsampling, config.latent_patch, bottleneck.codes
    if patch > 1 and codes:
        raise ValueError(f"latent_patch={patch}: bottleneck {bottleneck.kind} gives codes, which cannot be stacked")
    spec = TokenSpec(image_size=(f, f), grid=(1, 1), dim=bottleneck.dim * patch**2, codes=codes)
    if net.tokens is None:
        spec = spec.resized(config.image_size)
    else:
        spec = replace(spec, image_size=config.image_size, grid=(net.tokens,), layout=net.layout)
    try:
        grid = bottleneck.code_grid(spec.grid)
    except ValueError as error:
        raise ValueError(
            f"image_size={spec.image_size}: net {net.kind} gives a grid of {spec.grid} at downsampling {f}, which "
            f"bottleneck {bottleneck.kind} does not take: {error}"
        ) from error
    return spec if single_grids(grid) == (grid,) else replace(spec, grid=grid, layout="scales")
