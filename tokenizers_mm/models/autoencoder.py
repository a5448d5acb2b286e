"""Encoder + bottleneck + decoder = tokenizer. Continuous or discrete is the bottleneck's business alone.

Data flows one way: pixels -> what the net expects -> features -> codes or latents -> tokens; decoding mirrors it.

Shape letters: B batch, C channels, H and W pixels, h and w positions per side, N = h * w, S streams, D latent channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantizers
from quantizers import Gaussian, MultiScale, Quantized, Quantizer
from tokenizers_mm.api import Tokens
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.geometry import FeatureGrid, as_map, stacked, unstacked
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig as AutoencoderConfig, encoder_channels, spec_of
from tokenizers_mm.models.semantic_head import SemanticHead
from tokenizers_mm.nets import FlowDecoder, QueryConfig, build_nets, prefix_lengths, run
from tokenizers_mm.saving import CardFacts, HubMixin, Source, latent_statistics, title_of
from tokenizers_mm.semantics import Semantics, mean_semantics
from tokenizers_mm.towers import weight_count
from tokenizers_mm.weights import OPTIONS_MAY_DIFFER, CheckpointError, load_strict


class Autoencoder(nn.Module, HubMixin):
    """A `Tokenizer` made of parts that are already built; see `build_autoencoder` for the usual way to get one.

    Continuous latents leave `encode` with zero mean and unit variance: `calibrate` measures the statistics, or
    `set_statistics` takes known ones; they are saved with the weights. `provenance` says where public ones are from.
    Nets may be bfloat16 or float16 (`.to`): what decides about codes, the bottleneck and the statistics of latents,
    stays float32, as images and tokens do, and a net whose float16 activations overflow is run again in float32.
    """

    kind = "autoencoder"
    latent_mean_D: Tensor
    latent_std_D: Tensor

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
        z, z_in = config.z_channels, encoder_channels(config, bottleneck)
        post = config.quant_conv if config.post_quant_conv is None else config.post_quant_conv
        self.quant_conv = _convolution(z_in, bottleneck.in_dim, config.quant_conv, f"z_channels={z}", bottleneck)
        self.post_quant_conv = _convolution(bottleneck.dim, z, post, f"z_channels={z}", bottleneck)
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
            shape = (self.spec.length, self.spec.dim) if config.latent_positions else (self.spec.dim,)
            self.register_buffer("latent_mean_D", torch.zeros(shape))
            self.register_buffer("latent_std_D", torch.ones(shape))

    @property
    def quantizer(self) -> Quantizer:
        """What codes come from: the bottleneck."""
        return self.bottleneck

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Quantized]:
        """Training pass: reconstruction [B, C, H, W] and the bottleneck's output."""
        quantized, grid = self.quantized(image_BCHW)
        return self.pixels(quantized.z_BND, grid), quantized

    def quantized(self, image_BCHW: Tensor) -> tuple[Quantized, FeatureGrid]:
        """First half of a training pass: the bottleneck's output, and the grid that `pixels` takes with its vectors.

        In training mode latents are noised (`noise`) and the last of nested tokens hidden, with torch's global random
        numbers.
        """
        h_BND, grid = self.features(image_BCHW)
        quantized: Quantized = self.bottleneck(h_BND)
        z_BND = quantized.z_BND
        if self.training and self.config.noise:
            z_BND = self._noised(z_BND, grid)
        if self.training and isinstance(self.config.net, QueryConfig) and self.config.net.nested:
            net = self.config.net
            kept_B = prefix_lengths(len(z_BND), z_BND.shape[1], net.prefixes, net.whole).to(z_BND.device)
            hidden_BN = torch.arange(z_BND.shape[1], device=z_BND.device) >= kept_B[:, None]
            z_BND = torch.where(hidden_BN[..., None], self.mask_token_D.to(z_BND.dtype), z_BND)
        return replace(quantized, z_BND=z_BND), grid

    @property
    def generative(self) -> bool:
        """True where the decoder is a flow: it learns from `velocity_loss`, and `pixels` samples with a fixed seed."""
        return isinstance(self.decoder, FlowDecoder)

    def velocity_loss(self, z_BND: Tensor, grid: FeatureGrid, image_BCHW: Tensor) -> Tensor:
        """Scalar loss of a flow decoder (`generative`): what it is asked to paint, given the vectors of `quantized`."""
        if not isinstance(self.decoder, FlowDecoder):
            raise ValueError("velocity_loss: this decoder is no flow; compare `pixels` with the image instead")
        latent_BDhw = run(self.post_quant_conv, self._decoder_map(z_BND, grid))
        return self.decoder.velocity_loss(latent_BDhw, self._normalised(image_BCHW))

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
            return self.bottleneck.vectors(tokens.data)
        return self.bottleneck.decode(tokens.data) if self.spec.discrete else tokens.data

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images [B, C, H, W] of about [-1, 1], not clamped; the tokens' grid gives the size."""
        return self.pixels(*self.vectors(tokens))

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
        other.spec = spec_of(other.bottleneck, other.config)
        return other

    def features(self, image_BCHW: Tensor) -> tuple[Tensor, FeatureGrid]:
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
        grid = (h_BChw.shape[3],) if isinstance(self.config.net, QueryConfig) else tuple(h_BChw.shape[2:])
        return h_BChw.flatten(2).transpose(1, 2), grid

    def tokens_of(self, h_BND: Tensor, grid: FeatureGrid, *, sample: torch.Generator | None = None) -> Tokens:
        """Tokens of what `features` gave: the second half of `encode`."""
        if not bool(torch.isfinite(h_BND).all()):
            raise ValueError("image_BCHW gives NaN or Inf features: check the pixels (expected finite, in [-1, 1])")
        if self.spec.discrete:
            if sample is not None:
                raise ValueError(f"sample: bottleneck {self.bottleneck.kind} has no posterior to draw from")
            codes_BNS = self.bottleneck.encode(h_BND)
            return Tokens(codes_BNS=codes_BNS, grid=self.spec.grid if self.spec.layout == "scales" else grid)
        z_BND, grid = self._latents(h_BND, grid, sample)
        mean, std = self._statistics(grid)
        return Tokens(latents_BND=(z_BND - mean) / std, grid=grid)

    def vectors(self, tokens: Tokens) -> tuple[Tensor, FeatureGrid]:
        """What goes to the decoder, [B, N, dim], and its grid: the first half of `decode`."""
        if isinstance(self.bottleneck, MultiScale):
            if tokens.check(self.spec).grid != self.spec.grid:
                raise ValueError(f"grid={tokens.grid}: this tokenizer decodes the scales {self.spec.grid}")
            return self.bottleneck.decode(tokens.data), self.bottleneck.scales[-1]
        z_BND, grid = self.embed(tokens), self._decodable(tokens.grid)
        if self.spec.discrete:
            return z_BND, grid
        mean, std = self._statistics(grid)
        return unstacked(z_BND.float() * std + mean, grid, self.config.latent_patch)

    def pixels(self, z_BND: Tensor, grid: FeatureGrid) -> Tensor:
        """Images [B, C, H, W] of the bottleneck's vectors: the second half of `decode`."""
        z_BDhw = self._decoder_map(z_BND, grid)
        x_BCHW = run(self.decoder, run(self.post_quant_conv, z_BDhw))
        if self.config.linear:
            x_BCHW = x_BCHW + F.pixel_shuffle(run(self.linear_out, z_BDhw), self.config.net.downsampling)
        return self._normalised(x_BCHW, back=True)

    def options(self) -> dict[str, Any]:
        """JSON-able configuration that builds the same architecture again, of `AutoencoderConfig`.

        Options that came later are left out where they say nothing, so that older tokenizers keep their fingerprints.
        """
        options = asdict(self.config) | {"bottleneck": self.bottleneck.options()}
        return {key: value for key, value in options.items() if key not in _LATER or value != _LATER[key]}

    def identity(self) -> dict[str, Any]:
        """The options alone, as fingerprints were made when there was one kind of tokenizer only."""
        return self.options()

    def card(self) -> CardFacts:
        """What stands on its model card beside its geometry: the nets and their sizes, statistics of the latents."""
        net, other, head = self.config.net, self.config.decoder_net, self.config.semantic
        total, *halves = (f"{weight_count(part) / 1e6:.2f} M" for part in (self, self.encoder, self.decoder))
        facts = {
            "bottleneck": self.bottleneck.kind,
            "networks": net.kind if other is None else f"{net.kind}, decoder {other.kind}",
            "parameters": f"{total} (encoder {halves[0]}, decoder {halves[1]})",
        }
        if head is not None:
            texts = "no text encoder" if head.text is None else "text encoder beside it"
            facts["semantics"] = f"features of {head.dim} channels, {texts}"
        return CardFacts(
            title=title_of(self.spec, self.downsampling),
            tag=self.bottleneck.kind,
            facts=facts,
            sources=(Source(provenance=self.provenance),),
            reads_texts=head is not None and head.text is not None,
            sections=() if self.spec.discrete else (latent_statistics(self.latent_mean_D, self.latent_std_D),),
        )

    @classmethod
    def rebuild(cls, options: Any, state: Mapping[str, Tensor], *, where: str, weights: str) -> Autoencoder:
        """The tokenizer that `options` and `state_dict` gave, around these very tensors, in eval mode.

        Raises `CheckpointError` that starts with `where` for the options, with `weights` for the state.
        """
        return build_empty(options, where).adopt(state, weights)

    def adopt(self, state: Mapping[str, Tensor], where: Path | str) -> Self:
        """Take the very tensors of a state dict, mapped from a file or shared with another module; in eval mode.

        Codebooks of half precision become float32, in which codes are decided. Raises the `CheckpointError` of
        `load_strict` that starts with `where`.
        """
        load_strict(self, state, where, remedy=OPTIONS_MAY_DIFFER, assign=True)
        if any(value.is_meta for value in self.bottleneck.buffers()):  # what a constructor computes and no file holds
            made = quantizers.build(self.config.bottleneck, "bottleneck")
            made.load_state_dict(self.bottleneck.state_dict(), assign=True)
            self.bottleneck = made
        self.bottleneck.float()
        return self.eval()

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

    def _latents(self, h_BND: Tensor, grid: FeatureGrid, sample: torch.Generator | None) -> tuple[Tensor, FeatureGrid]:
        """Latents [B, N, D] before normalisation, and their grid."""
        if sample is None:
            z_BND = self.bottleneck.encode(h_BND)
        else:
            mean_BND, logvar_BND = self._gaussian().posterior(h_BND)
            noise_BND = torch.randn(mean_BND.shape, generator=sample, device=sample.device).to(mean_BND.device)
            z_BND = mean_BND + (0.5 * logvar_BND).exp() * noise_BND
        return stacked(z_BND, grid, self.config.latent_patch)

    def _noised(self, z_BND: Tensor, grid: FeatureGrid) -> Tensor:
        """Noise added to each image's latents, of a deviation drawn up to `noise` times theirs."""
        like_BND, latent_grid = stacked(z_BND.detach(), grid, self.config.latent_patch)
        sigma_B11 = self.config.noise * torch.rand(len(z_BND), 1, 1, device=z_BND.device)
        noise_BND = sigma_B11 * torch.randn_like(like_BND) * self._statistics(latent_grid)[1]
        return z_BND + unstacked(noise_BND, latent_grid, self.config.latent_patch)[0]

    def _decoder_map(self, z_BND: Tensor, grid: FeatureGrid) -> Tensor:
        """Vectors as a map; the tokens that a prefix lacks are filled in."""
        missing = self.spec.length - z_BND.shape[1] if self.spec.layout == "nested" else 0
        if missing:
            mask_BND = self.mask_token_D.to(z_BND.dtype).expand(len(z_BND), missing, -1)
            z_BND, grid = torch.cat([z_BND, mask_BND], 1), (self.spec.length,)
        return as_map(z_BND, grid)

    def _decodable(self, grid: tuple[Any, ...]) -> FeatureGrid:
        """The grid, if this tokenizer decodes tokens of it."""
        if self.spec.layout == "raster" and len(grid) == 2 and not isinstance(grid[0], tuple):
            return grid
        if self.spec.layout == "nested" and len(grid) == 1 and not isinstance(grid[0], tuple):
            if 1 <= grid[0] <= self.spec.length:
                return grid
        elif self.spec.layout != "raster" and grid == self.spec.grid:
            return grid
        takes = {"raster": "(rows, columns)", "nested": f"(1,) to {self.spec.grid}"}.get(
            self.spec.layout, self.spec.grid
        )
        raise ValueError(f"grid={grid}: this tokenizer decodes {takes}")

    def _gaussian(self) -> Gaussian:
        if not isinstance(self.bottleneck, Gaussian):
            raise ValueError(f"bottleneck {self.bottleneck.kind} has no posterior: only gaussian has")
        return self.bottleneck

    def _statistics(self, grid: FeatureGrid) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents on this grid, [D], or [N, D] of every position."""
        if not self.config.latent_positions:
            return self.latent_mean_D, self.latent_std_D
        prefix = self.spec.layout == "nested" and grid[0] <= self.spec.length
        if grid != self.spec.grid and not prefix:
            raise ValueError(f"grid={grid}: latent statistics are per position, of a grid of {self.spec.grid} only")
        return self.latent_mean_D[: math.prod(grid)], self.latent_std_D[: math.prod(grid)]


def _convolution(channels: int, out_channels: int, kernel: int, where: str, bottleneck: Quantizer) -> nn.Module:
    if kernel:
        return nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
    if channels != out_channels:
        raise ValueError(
            f"{where}: without quant_conv the bottleneck {bottleneck.kind} needs {bottleneck.dim} channels"
        )
    return nn.Identity()


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Build encoder, bottleneck and decoder, and put them together. Raises `ValueError` naming the bad option."""
    bottleneck = quantizers.build(config.bottleneck, "bottleneck")
    channels, other = encoder_channels(config, bottleneck), config.decoder_net
    encoder, decoder = build_nets(config.net, channels, config.z_channels, decoder=other, image_size=config.image_size)
    semantic = None if config.semantic is None else SemanticHead(config.semantic, bottleneck.dim)
    return Autoencoder(config, encoder, bottleneck, decoder, semantic)


def build_empty(options: Any, where: str) -> Autoencoder:
    """An autoencoder of these options whose tensors have no memory, for `Autoencoder.adopt`.

    Raises `CheckpointError` that starts with `where`.
    """
    try:
        config = parse(AutoencoderConfig, options, where)
        with torch.device("meta"):
            return build_autoencoder(config)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


# Options that configurations written before them do not have, and what stands for none of it.
_LATER: dict[str, Any] = {"decoder_net": None, "noise": 0.0, "semantic": None}
