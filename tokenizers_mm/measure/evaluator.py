"""Evaluation of a tokenizer on images: reconstruction and information, every figure with its protocol.

Only the `Tokenizer` protocol is used. One optional member more is understood: `posterior(image_BCHW)` returning mean
and log-variance [B, N, D] of a Gaussian posterior, for its KL in bits. A tokenizer whose `decode` raises `EncodeOnly`
gets the figures that need no reconstruction.

Shape letters: B batch, C image channels, H and W pixels, N positions, D channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tokenizers_mm.api import Tokenizer, Tokens, TokenSpec
from tokenizers_mm.data import pad_to_multiple, to_uint8, unpad
from tokenizers_mm.losses import Perceptual
from tokenizers_mm.measure.evaluation import Evaluation
from tokenizers_mm.measure.extractors import Extractor
from tokenizers_mm.measure.fidelity import Fidelity
from tokenizers_mm.measure.information import CodeStatistics, kl_bits
from tokenizers_mm.measure.protocol import Measurement, Protocol
from tokenizers_mm.measure.reconstruction import (
    mean_squared_error,
    perceptual_distance,
    psnr,
    psnr_of_mean_error,
    ssim,
)
from tokenizers_mm.measure.speed import Speed
from tokenizers_mm.towers import EncodeOnly

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer,
    images: Iterable[Tensor],
    *,
    protocol: Protocol,
    perceptual: Perceptual | None = None,
    extractor: Extractor | None = None,
    others: Iterable[Tensor] = (),
    pad: bool = False,
    speed: bool = False,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Encode, decode and measure batches of images.

    images    float tensors [B, C, H, W] in [-1, 1]; sizes may differ between batches
    protocol  what was done to the images before, and how to round and compare (`presets` has those of well-known
              evaluators); samples, hashes, padding, extractor and posterior are filled in here
    extractor network for a Frechet distance, which stands beside the distance of `others` (real images that are not
              among `images`: the training set) to the images
    speed     measure images per second and peak memory too; these figures differ from run to run
    pad       pad sides that are not a multiple of the downsampling, and cut the reconstruction back; the tokens of the
              padding are counted, the pixels are not. Off: such images raise `ValueError`.

    Raises `ValueError` on images the tokenizer cannot take, no images, or a tokenizer left in training mode.
    """
    if isinstance(tokenizer, nn.Module) and tokenizer.training:
        raise ValueError("the tokenizer is in training mode: call .eval() first, or codebooks and norms would change")
    fidelity = None if extractor is None else Fidelity(extractor, protocol)
    totals = _Totals(tokenizer, protocol, perceptual, pad, Speed(device))
    for image_BCHW in images:
        output_BCHW = totals.add(image_BCHW.to(device))
        if fidelity is not None and output_BCHW is not None:
            fidelity.add(output_BCHW, image_BCHW.to(device))
    if not totals.images:
        raise ValueError("images is empty: there is nothing to measure")
    protocol = totals.protocol()
    figures = totals.measurements(protocol)
    if fidelity is not None and totals.values["psnr"]:
        fidelity.add_others(image_BCHW.to(device) for image_BCHW in others)
        figures += fidelity.measurements(protocol)
    if speed:
        figures += totals.speed.measurements(protocol)
    return Evaluation(tuple(figures), totals.codes.result() if totals.codes else None)


class _Totals:
    """Running totals of one evaluation."""

    def __init__(
        self, tokenizer: Tokenizer, protocol: Protocol, perceptual: Perceptual | None, pad: bool, speed: Speed
    ) -> None:
        self.tokenizer, self.template, self.perceptual, self.pad = tokenizer, protocol, perceptual, pad
        self.speed = speed
        self.spec: TokenSpec = tokenizer.spec
        self.codes = CodeStatistics(self.spec) if self.spec.discrete else None
        self.hash = hashlib.sha256()
        self.images = self.pixels = self.tokens = 0
        self.padded = False
        self.values: dict[str, list[Tensor]] = {"error": [], "psnr": [], "ssim": [], "perceptual": [], "kl": []}

    def add(self, image_BCHW: Tensor) -> Tensor | None:
        """Count a batch; its reconstruction, or None where there is no decoder."""
        input_BCHW = self._prepare(image_BCHW)
        height, width = image_BCHW.shape[2:]
        self.padded |= input_BCHW.shape != image_BCHW.shape
        with self.speed.timed("encode", len(image_BCHW)):
            tokens = self.tokenizer.encode(input_BCHW)
        tokens.check(self.spec)
        output_BCHW = self._decoded(tokens)
        if output_BCHW is not None:
            output_BCHW = unpad(output_BCHW, (height, width))
            self._compare(output_BCHW, image_BCHW)
        if self.codes is not None:
            self.codes.update(tokens)
        elif hasattr(self.tokenizer, "posterior"):
            self.values["kl"].append(kl_bits(*self.tokenizer.posterior(input_BCHW)).cpu())
        self.images += len(image_BCHW)
        self.pixels += len(image_BCHW) * height * width
        self.tokens += len(image_BCHW) * tokens.data.shape[1]
        for pixels_CHW in to_uint8(image_BCHW).cpu().numpy():
            self.hash.update(f"{pixels_CHW.shape}".encode() + pixels_CHW.tobytes())
        return output_BCHW

    def _decoded(self, tokens: Tokens) -> Tensor | None:
        try:
            with self.speed.timed("decode", len(tokens)):
                return self.tokenizer.decode(tokens)
        except EncodeOnly:
            return None

    def _prepare(self, image_BCHW: Tensor) -> Tensor:
        """Images the tokenizer can take; `ValueError` says what to do about others."""
        if image_BCHW.ndim != 4 or not image_BCHW.is_floating_point():
            kind = f"{image_BCHW.dtype} {tuple(image_BCHW.shape)}"
            raise ValueError(f"images yields {kind}: expected float batches [B, C, H, W] in [-1, 1]")
        low, high = float(image_BCHW.min()), float(image_BCHW.max())
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(f"images lie in [{low:.3g}, {high:.3g}]: expected [-1, 1]; uint8 x becomes x / 127.5 - 1")
        # Images of the tokenizer's own size fit, even where its positions are no whole number of pixels.
        if self.pad and self.spec.layout == "raster" and tuple(image_BCHW.shape[2:]) != self.spec.image_size:
            steps = [pixels // cells for pixels, cells in zip(self.spec.image_size, self.spec.grid, strict=True)]  # type: ignore[operator]
            image_BCHW, _ = pad_to_multiple(image_BCHW, math.lcm(*steps))
        try:
            self.spec.resized((image_BCHW.shape[2], image_BCHW.shape[3]))
        except ValueError as error:
            raise ValueError(f"{error}; crop the images, or pass pad=True where the grid is a raster") from error
        return image_BCHW

    def _compare(self, output_BCHW: Tensor, image_BCHW: Tensor) -> None:
        how = self.template
        pair = (output_BCHW, image_BCHW, how.rounding, how.original)
        self.values["error"].append(mean_squared_error(*pair).cpu())
        self.values["psnr"].append(psnr(*pair).cpu())
        self.values["ssim"].append(ssim(*pair, window=how.ssim, data_range=how.ssim_range).cpu())
        if self.perceptual is not None:
            distance_B = perceptual_distance(self.perceptual, output_BCHW, image_BCHW, how.rounding)
            self.values["perceptual"].append(distance_B.cpu())

    def protocol(self) -> Protocol:
        """The template with what is known now."""
        return replace(
            self.template,
            samples=self.images,
            reference_sha256=self.hash.hexdigest(),
            padding="mirrored to a multiple, cut off again" if self.padded else "none",
            posterior="none" if self.spec.discrete else "mode",
        )

    def measurements(self, protocol: Protocol) -> list[Measurement]:
        """All figures, those of pixels first."""
        mean = {name: float(torch.cat(parts).mean()) for name, parts in self.values.items() if parts}
        figures = self._pixels(mean, protocol) if "psnr" in mean else []
        figures += self._rate(protocol)
        if "kl" in mean:
            figures.append(Measurement("KL", mean["kl"], "bits per image", protocol))
            figures.append(Measurement("KL per pixel", mean["kl"] * self.images / self.pixels, "bits", protocol))
        return figures

    def _pixels(self, mean: dict[str, float], protocol: Protocol) -> list[Measurement]:
        window = "Gaussian window of 11" if protocol.ssim == "gaussian" else "uniform window of 7"
        range_note = "" if protocol.ssim_range == 255 else " (2 for values in [0, 1]: too high)"
        figures = [
            Measurement("PSNR", mean["psnr"], "dB", protocol, "PSNR is the mean over images"),
            Measurement("PSNR of mean error", psnr_of_mean_error(torch.cat(self.values["error"])), "dB", protocol),
            Measurement(
                "SSIM", mean["ssim"], "", protocol, f"SSIM: {window}, data range {protocol.ssim_range:g}{range_note}"
            ),
        ]
        if self.perceptual is not None:
            name, digest = self.perceptual.name, self.perceptual.weights_sha256
            figures.append(
                Measurement(name, mean["perceptual"], "", replace(protocol, extractor=name, extractor_sha256=digest))
            )
        return figures

    def _rate(self, protocol: Protocol) -> list[Measurement]:
        """Bits the tokens can carry and, of codes, those they do."""
        per_token, density = self.spec.bits_per_image / self.spec.length, self.tokens / self.pixels
        note = "" if self.spec.discrete else "latents are counted as 16 bits a channel"
        figures = [
            Measurement("Rate", per_token, "bits per token", protocol, note),
            Measurement("Rate per image", per_token * self.tokens / self.images, "bits", protocol, note),
            Measurement("Rate per pixel", per_token * density, "bits", protocol, note),
        ]
        if self.codes is None:
            return figures
        codes = self.codes.result()
        streams = f", mean of {self.spec.streams} streams" if self.spec.streams > 1 else ""
        usage = 100 * sum(codes.usage) / len(codes.usage)
        perplexity = 2 ** (codes.bits_per_token / len(codes.entropy))
        entropy = codes.bits_per_token
        return [
            *figures,
            Measurement("Code usage", usage, f"% ever used{streams}", protocol, codes.note),
            Measurement("Perplexity", perplexity, f"codes{streams}", protocol, codes.note),
            Measurement("Marginal entropy", entropy, "bits per token", protocol, codes.note),
            Measurement("Marginal entropy per pixel", entropy * density, "bits", protocol, codes.note),
        ]
