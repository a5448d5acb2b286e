from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from tokenizers_mm.api import Tokenizer, Tokens, TokenSpec
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.measure.evaluate import Evaluation, evaluate
from tokenizers_mm.measure.protocol import Protocol

PROTOCOL = Protocol(reference="blocks", resize="none")


class BlockMeans:
    """The smallest tokenizer there is: the mean colour of each 4x4 block, a stream of 8 levels for each channel."""

    def __init__(self) -> None:
        self.spec = TokenSpec(image_size=(32, 32), grid=(8, 8), dim=3, codes=(8, 8, 8))

    def encode(self, image_BCHW: Tensor) -> Tokens:
        mean_BChw = F.avg_pool2d(image_BCHW, 4)
        codes = ((mean_BChw + 1) * 3.5).round().long().clamp(0, 7)
        return Tokens(codes_BNS=codes.flatten(2).transpose(1, 2), grid=tuple(mean_BChw.shape[2:]))

    def embed(self, tokens: Tokens) -> Tensor:
        return tokens.data / 3.5 - 1

    def decode(self, tokens: Tokens) -> Tensor:
        h, w = tokens.grid
        z_BChw = self.embed(tokens).transpose(1, 2).reshape(len(tokens), 3, h, w)  # type: ignore[arg-type]
        return F.interpolate(z_BChw, scale_factor=4.0)


class Gaussian(nn.Module):
    """Continuous and lossless: 2x2 pixels a position; offers a posterior of known KL."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = TokenSpec(image_size=(32, 32), grid=(16, 16), dim=12)

    def encode(self, image_BCHW: Tensor) -> Tokens:
        z_BDhw = F.pixel_unshuffle(image_BCHW, 2)
        return Tokens(latents_BND=z_BDhw.flatten(2).transpose(1, 2), grid=tuple(z_BDhw.shape[2:]))

    def embed(self, tokens: Tokens) -> Tensor:
        return tokens.data

    def decode(self, tokens: Tokens) -> Tensor:
        h, w = tokens.grid
        return F.pixel_shuffle(tokens.data.transpose(1, 2).reshape(len(tokens), 12, h, w), 2)  # type: ignore[arg-type]

    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.ones_like(self.encode(image_BCHW).data)
        return mean, torch.zeros_like(mean)


def blocks(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Images that `BlockMeans` keeps exactly."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 8, (count, 3, -(-height // 4), -(-width // 4)), generator=generator)
    image = F.interpolate(codes / 3.5 - 1, scale_factor=4.0)[..., :height, :width]
    return torch.round((image + 1) * 127.5) / 127.5 - 1


def test_the_doubles_are_tokenizers() -> None:
    assert isinstance(BlockMeans(), Tokenizer)
    assert isinstance(Gaussian(), Tokenizer)


def test_an_exact_codec_is_exact_and_its_rate_is_known() -> None:
    result = evaluate(BlockMeans(), [blocks(3), blocks(5, seed=1)], protocol=PROTOCOL)
    assert result["PSNR"].value == math.inf
    assert result["SSIM"].value == pytest.approx(1.0, abs=1e-9)
    assert result["Rate"].value == pytest.approx(9.0)
    assert result["Rate per image"].value == pytest.approx(64 * 9.0)
    assert result["Rate per pixel"].value == pytest.approx(9 / 16)
    assert result["Code usage"].value == pytest.approx(100.0)
    assert 8.8 < result["Marginal entropy"].value <= 9.0
    assert result["Marginal entropy per pixel"].value == pytest.approx(result["Marginal entropy"].value / 16)
    assert result["PSNR"].protocol.samples == 8


def test_figures_do_not_depend_on_the_batches() -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    distance = perceptual("lite0", stages=(0,), random_init=True)
    one = evaluate(BlockMeans(), [images], protocol=PROTOCOL, perceptual=distance)
    many = evaluate(BlockMeans(), torch.split(images, 4), protocol=PROTOCOL, perceptual=distance)
    for a, b in zip(one.measurements, many.measurements, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5)
        assert a.protocol == b.protocol
    named = one[distance.name]
    assert named.protocol.extractor_sha256 == distance.weights_sha256
    assert one["PSNR"].protocol.extractor == "none"


def test_noise_does_worse_than_blocks() -> None:
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = evaluate(BlockMeans(), [noise], protocol=PROTOCOL)
    assert 8 < result["PSNR"].value < 14
    assert result["PSNR of mean error"].value <= result["PSNR"].value
    assert result["SSIM"].value < 0.6


def test_gaussian_latents_report_their_kl() -> None:
    result = evaluate(Gaussian().eval(), [blocks(2)], protocol=PROTOCOL)
    bits = 0.5 * 16 * 16 * 12 / math.log(2)
    assert result["KL"].value == pytest.approx(bits)
    assert result["KL per pixel"].value == pytest.approx(bits / 1024)
    assert result["PSNR"].protocol.posterior == "mode"
    assert result.codes is None
    assert result["Rate"].note == "latents are counted as 16 bits a channel"


def test_odd_sizes_are_refused_unless_padding_is_asked_for() -> None:
    odd = blocks(2, 30, 37)
    with pytest.raises(ValueError, match=r"pass pad=True"):
        evaluate(BlockMeans(), [odd], protocol=PROTOCOL)
    result = evaluate(BlockMeans(), [odd], protocol=PROTOCOL, pad=True)
    assert result["Rate per pixel"].value == pytest.approx(8 * 10 * 9 / (30 * 37))
    assert result["PSNR"].protocol.padding == "mirrored to a multiple, cut off again"
    assert evaluate(BlockMeans(), [blocks(1)], protocol=PROTOCOL, pad=True)["PSNR"].protocol.padding == "none"


def test_the_reference_hash_knows_pixels_order_and_shape() -> None:
    def digest(*batches: Tensor) -> str:
        return evaluate(BlockMeans(), batches, protocol=PROTOCOL)["PSNR"].protocol.reference_sha256

    images = blocks(4)
    assert digest(images) == digest(images[:1], images[1:])
    assert len({digest(images), digest(images.flip(0)), digest(-images), digest(blocks(2, 64, 32))}) == 4


def test_json_and_table_hold_every_figure_and_its_protocol() -> None:
    result = evaluate(BlockMeans(), [blocks(1)], protocol=PROTOCOL)
    record = json.loads(result.to_json())
    assert [m["name"] for m in record["measurements"]] == [m.name for m in result.measurements]
    assert all(m["protocol"]["reference"] == "blocks" for m in record["measurements"])
    assert record["codes"]["tokens"] == 64
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(result.table("BlockMeans"))
    text = capture.get()
    assert all(word in text for word in ("BlockMeans", "PSNR", "dB", "Marginal entropy", "1 images: blocks"))


def test_few_tokens_are_flagged() -> None:
    spec = TokenSpec(image_size=(32, 32), grid=(8, 8), dim=3, codes=(4096, 8, 8))
    tokenizer = BlockMeans()
    tokenizer.spec = spec
    note = evaluate(tokenizer, [blocks(1)], protocol=PROTOCOL)["Code usage"].note
    assert note.startswith("64 tokens for 4096 codes: usage cannot exceed 1.6%")


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="images is empty"):
        evaluate(BlockMeans(), [], protocol=PROTOCOL)
    with pytest.raises(ValueError, match=r"images lie in \[0, 200\]: expected \[-1, 1\]"):
        evaluate(BlockMeans(), [torch.linspace(0, 200, 3072).view(1, 3, 32, 32)], protocol=PROTOCOL)
    with pytest.raises(ValueError, match=r"images yields torch\.uint8"):
        evaluate(BlockMeans(), [torch.zeros(1, 3, 32, 32, dtype=torch.uint8)], protocol=PROTOCOL)
    with pytest.raises(ValueError, match=r"call \.eval\(\) first"):
        evaluate(Gaussian().train(), [blocks(1)], protocol=PROTOCOL)
    with pytest.raises(KeyError, match="no measurement 'LPIPS'"):
        Evaluation(())["LPIPS"]
