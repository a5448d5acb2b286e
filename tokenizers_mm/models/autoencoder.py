"""Encoder + bottleneck + decoder = tokenizer. Continuous or discrete is the bottleneck's business alone.

Data flows one way: pixels -> what the net expects -> features -> codes or latents -> tokens; decoding mirrors it.

    encode           features    image -> vectors for the bottleneck      tokens_of  -> codes or latents
    decode           vectors     tokens -> the bottleneck's vectors       pixels     -> image
    training pass    quantized   image -> vectors, with gradients         pixels     -> image

Shape letters: B batch, C channels, H and W pixels, h and w positions per side, N = h * w, S streams, D latent channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers import Quantized, Quantizer
from tokenizers_mm.api import Tokens
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig as AutoencoderConfig, spec_of
from tokenizers_mm.models.latents import AutoencoderLatents
from tokenizers_mm.models.parts import build_parts, convolutions
from tokenizers_mm.models.prefixes import fill_up, hide_last
from tokenizers_mm.models.saved_autoencoder import SavedAutoencoder
from tokenizers_mm.models.semantic_head import SemanticHead
from tokenizers_mm.models.vectors import Vectors, decodable
from tokenizers_mm.nets import run
from tokenizers_mm.semantics import Semantics, mean_semantics


class Autoencoder(AutoencoderLatents, SavedAutoencoder):
    """A `Tokenizer` made of parts that are already built; see `build_autoencoder` for the usual way to get one.

    Continuous latents leave `encode` with zero mean and unit variance: `calibrate` measures the statistics, or
    `set_statistics` takes known ones; they are saved with the weights. `provenance` says where public ones are from.
    Nets may be bfloat16 or float16 (`.to`): what decides about codes, the bottleneck and the statistics of latents,
    stays float32, as images and tokens do, and a net whose float16 activations overflow is run again in float32.
    """

    full_precision = ("bottleneck",)

    def __init__(
        self,
        config: AutoencoderConfig,
        encoder: nn.Module,
        bottleneck: Quantizer,
        decoder: nn.Module,
        semantic: SemanticHead | None = None,
    ) -> None:
        super().__init__()
        self.config, self.downsampling = config, config.downsampling
        self.spec = spec_of(bottleneck, config)
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.quant_conv, self.post_quant_conv = convolutions(config, bottleneck)
        if config.linear:
            patch_channels = config.net.image_channels * config.net.downsampling**2
            self.linear_in = nn.Conv2d(patch_channels, bottleneck.in_dim, 1)
            self.linear_out = nn.Conv2d(bottleneck.dim, patch_channels, 1)
        self.semantic = semantic
        if config.noise and bottleneck.codes:
            raise ValueError(
                f"noise={config.noise}: bottleneck {bottleneck.kind} gives codes, not latents; set it to 0"
            )
        if self.spec.layout == "nested":
            self.mask_token_D = nn.Parameter(torch.randn(bottleneck.dim))
        if not bottleneck.codes:
            self.register_statistics(*([self.spec.length] if config.latent_positions else []), self.spec.dim)

    # ------------------------------------------------------------------------------------------- what it is

    @property
    def quantizer(self) -> Quantizer:
        """What codes come from: the bottleneck."""
        return self.bottleneck

    @property
    def generative(self) -> bool:
        """True where the decoder is a flow: it learns from `velocity_loss`, and `pixels` samples with a fixed seed."""
        return self.config.decoder.generative

    @property
    def last_layer(self) -> Tensor:
        """The decoder's weight next to the image, where adaptive loss weights are taken (VQGAN, arXiv 2012.09841)."""
        weight: Tensor = self.decoder.last_layer  # type: ignore[assignment]
        return weight

    @property
    def last_encoder_layer(self) -> Tensor:
        """The last trainable weight before the bottleneck; `ValueError` where everything before it is frozen."""
        for part in (self.quant_conv, self.encoder):
            weights = [weight for weight in part.parameters() if weight.requires_grad and weight.ndim > 1]
            if weights:
                return weights[-1]
        raise ValueError("last_encoder_layer: nothing before the bottleneck is trained; set quant_conv, or unfreeze it")

    # ------------------------------------------------------------------------------------------- training

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Quantized]:
        """Training pass: reconstruction [B, C, H, W] and the bottleneck's output."""
        quantized, vectors = self.quantized(image_BCHW)
        return self.pixels(vectors), quantized

    def quantized(self, image_BCHW: Tensor) -> tuple[Quantized, Vectors]:
        """First half of a training pass: the bottleneck's output, and its vectors as `pixels` takes them.

        In training mode latents are noised (`noise`) and the last of nested tokens hidden, with torch's global random
        numbers.
        """
        h_BND, grid = self.features(image_BCHW)
        quantized: Quantized = self.bottleneck(h_BND)
        vectors = Vectors(quantized.z_BND, grid)
        if self.training and self.config.noise:
            vectors = self.noised(vectors)
        if self.training and self.spec.layout == "nested":
            options: Any = self.config.net
            vectors = hide_last(vectors, self.mask_token_D, options)
        return replace(quantized, z_BND=vectors.z_BND), vectors

    def velocity_loss(self, vectors: Vectors, image_BCHW: Tensor) -> Tensor:
        """Scalar loss of a flow decoder (`generative`): what it is asked to paint, given the vectors of `quantized`."""
        if not self.generative:
            raise ValueError("velocity_loss: this decoder is no flow; compare `pixels` with the image instead")
        decoder: Any = self.decoder
        latent_BDhw = run(self.post_quant_conv, self._decoder_map(vectors))
        loss: Tensor = decoder.velocity_loss(latent_BDhw, self.config.pixel_range.normalise(image_BCHW))
        return loss

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the latent statistics from images, so that `encode` gives zero mean and unit variance per channel.

        Per position (`latent_positions`) all images must be of the tokenizer's own size.
        """
        if self.spec.discrete:
            return
        encoded = (self._encoded(self.features(image_BCHW)) for image_BCHW in batches)
        self.measure_statistics(vectors.stacked(self.latent_patch).z_BND for vectors in encoded)

    # ------------------------------------------------------------------------------------------- image -> tokens

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor, *, sample: torch.Generator | None = None) -> Tokens:
        """Codes, or latents of unit variance, of images in [-1, 1].

        Latents are those of the posterior's mode; `sample` draws from the posterior instead, with this generator.
        Raises `ValueError` for sides that are not multiples of the downsampling and for non-finite pixels.
        """
        return self.tokens_of(self.features(image_BCHW), sample=sample)

    def features(self, image_BCHW: Tensor) -> Vectors:
        """What the bottleneck receives, [B, N, in_dim]; `ValueError` for images it cannot take."""
        net = self.config.net
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != net.image_channels:
            expected = f"expected [batch, {net.image_channels}, H, W]"
            raise ValueError(f"image_BCHW has shape {tuple(image_BCHW.shape)}: {expected}")
        if not image_BCHW.is_floating_point():
            raise ValueError(f"image_BCHW is {image_BCHW.dtype}: expected a float type, pixels in [-1, 1]")
        self.spec.resized((image_BCHW.shape[2], image_BCHW.shape[3]))  # refuses sides that are not multiples
        x_BCHW = self.config.pixel_range.normalise(image_BCHW)
        h_BChw = run(self.quant_conv, run(self.encoder, x_BCHW))
        if self.config.linear:
            h_BChw = h_BChw + run(self.linear_in, F.pixel_unshuffle(x_BCHW, net.downsampling))
        h_BND, grid = Vectors.of_map(h_BChw)
        return Vectors(h_BND, grid if net.tokens is None else grid[1:])

    def tokens_of(self, features: Vectors, *, sample: torch.Generator | None = None) -> Tokens:
        """Tokens of what `features` gave: the second half of `encode`."""
        if not bool(torch.isfinite(features.z_BND).all()):
            raise ValueError("image_BCHW gives NaN or Inf features: check the pixels (expected finite, in [-1, 1])")
        encoded = self._encoded(features, sample)
        if self.spec.discrete:
            return Tokens(codes_BNS=encoded.z_BND, grid=self.bottleneck.code_grid(encoded.grid))
        latents = self.latents_of(encoded)
        return Tokens(latents_BND=latents.z_BND, grid=latents.grid)

    @torch.no_grad()
    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, N, D] before normalisation; `ValueError` where the bottleneck has none."""
        return self.bottleneck.posterior(self.features(image_BCHW).z_BND)

    # ------------------------------------------------------------------------------------------- tokens -> image

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images [B, C, H, W] of about [-1, 1], not clamped; the tokens' grid gives the size."""
        return self.pixels(self.vectors(tokens))

    def vectors(self, tokens: Tokens) -> Vectors:
        """What goes to the decoder, [B, N, dim]: the first half of `decode`."""
        data, grid = tokens.check(self.spec).data, self.bottleneck.input_grid(decodable(tokens.grid, self.spec))
        if self.spec.discrete:
            return Vectors(self.bottleneck.decode(data), grid)
        return self.vectors_of(Vectors(data, grid))

    def pixels(self, vectors: Vectors) -> Tensor:
        """Images [B, C, H, W] of the bottleneck's vectors: the second half of `decode`."""
        z_BDhw = self._decoder_map(vectors)
        x_BCHW = run(self.decoder, run(self.post_quant_conv, z_BDhw))
        if self.config.linear:
            x_BCHW = x_BCHW + F.pixel_shuffle(run(self.linear_out, z_BDhw), self.config.net.downsampling)
        return self.config.pixel_range.restore(x_BCHW)

    # ------------------------------------------------------------------------------------------- tokens -> features

    @torch.no_grad()
    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors [B, N, D]: of the codes, or the unit-variance latents themselves."""
        data = tokens.check(self.spec).data
        return self.bottleneck.vectors(data) if self.spec.discrete else data

    @torch.no_grad()
    def semantics(self, image_BCHW: Tensor) -> Semantics:
        """What the tokens say about images in [-1, 1]: see `token_semantics`."""
        return self.token_semantics(self.encode(image_BCHW))

    @torch.no_grad()
    def token_semantics(self, tokens: Tokens) -> Semantics:
        """Features that the semantic head reads off tokens; without a head the vectors of `embed` and their mean."""
        if self.semantic is None:
            return mean_semantics(self.embed(tokens), tokens.grid)
        semantics: Semantics = self.semantic(*self.vectors(tokens))
        return semantics

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Vectors [B, D] of captions in the space of pooled semantics; `ValueError` without a text encoder."""
        if self.semantic is None:
            raise ValueError("text_features: this tokenizer has no semantic head, and so no text encoder")
        return self.semantic.text_features(captions)

    # ------------------------------------------------------------------------------------------- another grid

    def with_scales(self, scales: Sequence[int | Sequence[int]]) -> Self:
        """The same weights, shared, for images of another size or with other scales (multi-scale bottlenecks).

        scales  from coarse to fine, each a side or (h, w); the last one is the grid, which gives the image size
        """
        bottleneck: Any = self.bottleneck.with_scales(scales)
        height, width = (side * self.config.net.downsampling for side in bottleneck.scales[-1])
        other = copy.copy(self)
        other._modules = self._modules | {"bottleneck": bottleneck}
        other.config = replace(self.config, image_size=(height, width), bottleneck=bottleneck.options())
        other.spec = spec_of(bottleneck, other.config)
        return other

    def _encoded(self, features: Vectors, sample: torch.Generator | None = None) -> Vectors:
        """Codes, or latents before normalisation, on the features' grid."""
        h_BND, grid = features
        quantizer = self.bottleneck
        return Vectors(quantizer.encode(h_BND) if sample is None else quantizer.sample(h_BND, sample), grid)

    def _decoder_map(self, vectors: Vectors) -> Tensor:
        """Vectors as a map; the tokens that a prefix lacks are filled in."""
        if self.spec.layout == "nested":
            vectors = fill_up(vectors, self.mask_token_D, self.spec.length)
        return vectors.as_map()


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Build encoder, bottleneck and decoder, and put them together. Raises `ValueError` naming the bad option."""
    return Autoencoder(config, *build_parts(config))
