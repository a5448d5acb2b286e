from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from tokenizers_mm.data.images import Pixels
from tokenizers_mm.measure.codecs import Codec, encode_at_rate


@pytest.fixture(scope="module")
def picture() -> Pixels:
    """Smooth waves with fine texture: enough detail that quality matters, 96 x 128."""
    y, x = np.mgrid[0:96, 0:128]
    waves = np.stack([np.sin(x / 9 + y / 17), np.cos(x / 13), np.sin((x + y) / 11)], axis=-1)
    texture = 0.2 * np.sin(x * y / 40)[..., None]
    pixels: Pixels = np.clip(127.5 + 90 * (waves + texture), 0, 255).astype(np.uint8)
    return pixels


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_the_next_quality_would_be_over_the_rate(codec: Codec, picture: Pixels) -> None:
    result = encode_at_rate(picture, codec, 2.0)
    assert result.reached
    assert result.bpp <= 2.0
    larger = io.BytesIO()
    Image.fromarray(picture).save(larger, codec, quality=result.quality + 1, **result.options)
    assert 8 * len(larger.getvalue()) / (96 * 128) > 2.0


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_the_record_describes_the_very_file(codec: Codec, picture: Pixels) -> None:
    result = encode_at_rate(picture, codec, 1.5)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, codec, quality=result.quality, **result.options)
    decoded = np.asarray(Image.open(file).convert("RGB"))
    assert np.array_equal(decoded, result.pixels)
    assert result.bpp == 8 * len(file.getvalue()) / (96 * 128)
    mse = np.mean((picture.astype(float) - decoded) ** 2)
    assert result.psnr == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-9)
    record = json.loads(json.dumps(result.record()))
    assert record["quality"] == result.quality
    assert "pixels" not in record


def test_more_bits_are_worth_more(picture: Pixels) -> None:
    rates = [encode_at_rate(picture, "jpeg", rate) for rate in (1.0, 2.0, 4.0)]
    assert rates[0].psnr + 1 < rates[1].psnr < rates[2].psnr - 1
    assert encode_at_rate(picture, "webp", 1.0).psnr > rates[0].psnr


def test_the_best_variant_is_taken(picture: Pixels) -> None:
    """With room for everything full-resolution chroma wins; when bytes are scarce 4:2:0 does."""
    assert encode_at_rate(picture, "jpeg", 24.0).options["subsampling"] == "4:4:4"
    assert encode_at_rate(picture, "jpeg", 1.0).options["subsampling"] == "4:2:0"


def test_a_rate_below_the_lowest_quality_says_so(picture: Pixels) -> None:
    result = encode_at_rate(picture, "jpeg", 0.05)
    assert not result.reached
    assert result.quality == 1
    assert result.bpp > 0.05
    assert result.record()["reached"] is False


def test_bad_arguments_are_refused(picture: Pixels) -> None:
    with pytest.raises(ValueError, match="codec='gif': expected one of jpeg, webp"):
        encode_at_rate(picture, "gif", 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"float64 .* expected uint8"):
        encode_at_rate(picture / 255.0, "jpeg", 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bits_per_pixel=0"):
        encode_at_rate(picture, "jpeg", 0)
