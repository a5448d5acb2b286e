from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from tokenizers_mm.api import Tokenizer, Tokens, TokenSpec
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.measure.evaluation import Evaluation
from tokenizers_mm.measure.evaluator import evaluate
from tokenizers_mm.measure.presets import preset
from tokenizers_mm.measure.protocol import Measurement, Protocol
from tokenizers_mm.measure.speed import Speed
from tokenizers_mm.towers.tower import EncodeOnly

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
    with pytest.raises(ValueError, match=r"images.*\[0, 200\]: expected \[-1, 1\]"):
        evaluate(BlockMeans(), [torch.linspace(0, 200, 3072).view(1, 3, 32, 32)], protocol=PROTOCOL)
    with pytest.raises(ValueError, match=r"images yields torch\.uint8"):
        evaluate(BlockMeans(), [torch.zeros(1, 3, 32, 32, dtype=torch.uint8)], protocol=PROTOCOL)
    with pytest.raises(ValueError, match=r"call \.eval\(\) first"):
        evaluate(Gaussian().train(), [blocks(1)], protocol=PROTOCOL)
    with pytest.raises(KeyError, match="no measurement 'LPIPS'"):
        Evaluation(())["LPIPS"]


class Pooling:
    """An extractor of three features: the mean of each channel, in levels."""

    name, distance_name, weights_sha256 = "means", "FD-means", "abc"

    def __call__(self, levels_BCHW: Tensor) -> Tensor:
        return levels_BCHW.mean((2, 3)).float()


def test_a_frechet_distance_stands_beside_its_floor() -> None:
    images, others = torch.rand(40, 3, 32, 32) * 2 - 1, torch.rand(40, 3, 32, 32) * 2 - 1
    exact = evaluate(Gaussian().eval(), torch.split(images, 7), protocol=PROTOCOL, extractor=Pooling(), others=[others])  # type: ignore[arg-type]
    assert exact["FD-means"].value == pytest.approx(0, abs=1e-6)
    assert exact["FD-means floor"].value > 0.01
    assert exact["FD-means floor"].note.endswith("40 other real images against real images")
    assert (exact["FD-means"].protocol.extractor, exact["FD-means"].protocol.extractor_sha256) == ("means", "abc")
    rough = evaluate(BlockMeans(), [images], protocol=PROTOCOL, extractor=Pooling())  # type: ignore[arg-type]
    assert rough["FD-means"].value > exact["FD-means"].value
    assert "halves of the real images" in rough["FD-means floor"].note
    same = evaluate(BlockMeans(), torch.split(images, 9), protocol=PROTOCOL, extractor=Pooling())  # type: ignore[arg-type]
    for name in ("FD-means", "FD-means floor"):
        assert same[name].value == pytest.approx(rough[name].value, rel=1e-6)
    with pytest.raises(ValueError, match=r"3 images: FD-means compares covariances.*4"):
        evaluate(BlockMeans(), [blocks(3)], protocol=PROTOCOL, extractor=Pooling())  # type: ignore[arg-type]


def test_the_protocol_decides_how_images_are_compared() -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    plain = evaluate(BlockMeans(), [images], protocol=PROTOCOL)
    adm = evaluate(BlockMeans(), [images], protocol=preset("adm").protocol("blocks", None))
    assert adm["SSIM"].value > plain["SSIM"].value + 0.03
    assert adm["SSIM"].note == "SSIM: uniform window of 7, data range 510 (2 for values in [0, 1]: too high)"
    assert adm["PSNR"].value == pytest.approx(plain["PSNR"].value)
    assert adm["PSNR"].protocol.preset == "adm"
    truncated = evaluate(BlockMeans(), [images], protocol=preset("torch-fidelity").protocol("blocks", None))
    assert truncated["PSNR"].value != plain["PSNR"].value


class EncodesOnly(Gaussian):
    def decode(self, tokens: Tokens) -> Tensor:
        raise EncodeOnly("no pixels come back")


def test_a_tokenizer_without_a_decoder_has_no_figures_of_pixels() -> None:
    result = evaluate(EncodesOnly().eval(), [blocks(5)], protocol=PROTOCOL, extractor=Pooling(), speed=True)  # type: ignore[arg-type]
    names = [measurement.name for measurement in result.measurements]
    assert names == ["Rate", "Rate per image", "Rate per pixel", "KL", "KL per pixel", "Speed, encode", "Peak memory"]
    assert result.table("x").row_count == len(names)


def test_images_of_its_own_size_are_not_padded_to_positions_that_are_no_whole_pixels() -> None:
    class Coarse(EncodesOnly):
        """3x3 positions on 32x32 pixels, as towers that resize have them."""

        def __init__(self) -> None:
            super().__init__()
            self.spec = replace(self.spec, grid=(3, 3))

        def encode(self, image_BCHW: Tensor) -> Tokens:
            assert image_BCHW.shape[2:] == (32, 32)
            z_BDhw = F.adaptive_avg_pool2d(F.pixel_unshuffle(image_BCHW, 2), 3)
            return Tokens(latents_BND=z_BDhw.flatten(2).transpose(1, 2), grid=(3, 3))

    result = evaluate(Coarse().eval(), [blocks(2)], protocol=PROTOCOL, pad=True)
    assert result["Rate per image"].value == 9 * 12 * 16
    assert result["Rate"].protocol.padding == "none"


def test_other_errors_of_a_decoder_are_not_swallowed() -> None:
    class Broken(Gaussian):
        def decode(self, tokens: Tokens) -> Tensor:
            raise ValueError("broken weights")

    with pytest.raises(ValueError, match="broken weights"):
        evaluate(Broken().eval(), [blocks(1)], protocol=PROTOCOL)


def test_speed_is_measured_only_where_asked_for() -> None:
    assert not any("Speed" in m.name for m in evaluate(BlockMeans(), [blocks(1)], protocol=PROTOCOL).measurements)
    result = evaluate(BlockMeans(), [blocks(2), blocks(3)], protocol=PROTOCOL, speed=True)
    assert result["Speed, encode"].value > 0
    assert result["Speed, decode"].unit == "images/s"
    assert result["Peak memory"].value > 10
    assert "another machine gives others" in result["Peak memory"].note


def test_the_first_batch_warms_up() -> None:
    speed = Speed("cpu")
    speed.batches["encode"] = [(4, 100.0), (4, 1.0), (2, 0.5)]
    speed.batches["decode"] = [(4, 2.0)]
    figures = {m.name: m.value for m in speed.measurements(PROTOCOL)}
    assert figures["Speed, encode"] == pytest.approx(4.0)
    assert figures["Speed, decode"] == pytest.approx(2.0)


def test_more_figures_and_domains_are_part_of_the_record() -> None:
    first, second = (evaluate(BlockMeans(), [blocks(n)], protocol=PROTOCOL) for n in (1, 2))
    whole = replace(first.plus([Measurement("Linear probe", 50.0, "%", PROTOCOL)]), domains={"text": second})
    assert whole["Linear probe"].value == 50.0
    assert whole["PSNR"] == first["PSNR"]
    record = json.loads(whole.to_json())
    assert record["measurements"][-1]["name"] == "Linear probe"
    assert record["domains"]["text"]["measurements"][0]["protocol"]["samples"] == 2
    assert "domains" not in json.loads(first.to_json())
