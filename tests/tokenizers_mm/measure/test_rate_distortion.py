"""Curves of JPEG and WebP: one file of small images, the front of all variants, and what lies between its points."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from tokenizers_mm.data.images import Pixels
from tokenizers_mm.measure.rate_distortion import (
    codec_curve,
    in_one_file,
    mean_psnr,
    pareto_front,
    psnr_at_rate,
    tile,
    untile,
)


def blobs(count: int, side: int) -> list[Pixels]:
    """Smooth pictures."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.stack([np.sin(3 * x + n), np.cos(2 * y + n), np.sin(x * y + n)], -1) for n in range(count)]
    return [((wave + 1) * 127.5).astype(np.uint8) for wave in waves]


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_more_bits_are_better_and_noise_is_worse(codec):  # type: ignore[no-untyped-def]
    smooth, rng = blobs(7, 32), np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(7)]
    curves = [codec_curve(images, codec) for images in (smooth, noise)]
    for curve in curves:
        assert all(a.bpp < b.bpp and a.psnr < b.psnr for a, b in pairwise(curve))
    assert curves[0][0].psnr > curves[1][0].psnr + 5
    assert curves[1][0].bpp > curves[0][0].bpp


def test_a_point_is_one_file_of_all_small_images() -> None:
    images = blobs(5, 32)
    assert in_one_file(images)
    point = codec_curve(images, "jpeg")[2]
    rows = [np.concatenate(images[:3], 1), np.concatenate([*images[3:], images[4]], 1)]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, "jpeg", quality=point.quality, **point.options)
    assert point.bpp == pytest.approx(8 * file.tell() / (5 * 1024))
    decoded = np.asarray(Image.open(file)).astype(float)
    fourth = decoded[32:, :32]
    psnr = 10 * np.log10(255**2 / np.square(fourth - images[3]).mean())
    assert abs(point.psnr - psnr) < 3  # the mean over five


def test_large_or_unequal_images_are_files_of_their_own() -> None:
    images = [blobs(1, 96)[0], blobs(2, 96)[1][:80]]
    assert not in_one_file(images)
    assert not in_one_file([image[:32, :32] if n else image[:32, :24] for n, image in enumerate(images)])
    point = codec_curve(images, "webp")[0]
    size = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "webp", quality=point.quality, **point.options)
        size += file.tell()
    assert point.bpp == pytest.approx(8 * size / (96 * (96 + 80)))


def test_between_points_a_curve_is_straight_and_outside_there_is_none() -> None:
    curve = codec_curve(blobs(4, 32), "jpeg")
    a, b = curve[1:3]
    assert psnr_at_rate(curve, (a.bpp + b.bpp) / 2) == pytest.approx((a.psnr + b.psnr) / 2)
    assert psnr_at_rate(curve, a.bpp) == pytest.approx(a.psnr)
    assert psnr_at_rate(curve, curve[0].bpp / 2) is None
    assert psnr_at_rate(curve, 100.0) is None
    assert psnr_at_rate([], 1.0) is None


def test_what_is_too_large_is_left_out_and_qualities_can_be_chosen() -> None:
    images = blobs(4, 32)
    whole = codec_curve(images, "jpeg")
    assert codec_curve(images, "jpeg", below=whole[1].bpp) == whole[:2]
    assert {point.quality for point in codec_curve(images, "jpeg", (30, 60))} == {30, 60}


@pytest.mark.parametrize("count", [1, 7, 16])
def test_tiles_come_apart_as_they_were_put_together(count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
    picture = tile(images)
    assert picture.shape[0] % 8 == picture.shape[1] % 12 == 0
    np.testing.assert_array_equal(untile(picture, images), images)


def test_psnr_is_the_mean_over_images() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    off = black.copy()
    off[0] += 1
    off[1] += 10
    expected = (10 * math.log10(255**2) + 10 * math.log10(255**2 / 100)) / 2
    assert mean_psnr(off, black) == pytest.approx(expected)
    assert mean_psnr(black, black) == math.inf


def test_a_front_rises_with_its_cost() -> None:
    points = [(3.0, 5.0), (1.0, 2.0), (1.0, 3.0), (2.0, 3.0), (4.0, 4.0)]
    assert pareto_front(points, lambda point: point) == [(1.0, 3.0), (3.0, 5.0)]
    assert pareto_front([], lambda point: point) == []
