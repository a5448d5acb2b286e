import numpy as np
import pytest
import torch

from tokenizers_mm.data.crops import RandomCrops
from tokenizers_mm.data.sources import Draw, ImageArrays, draws_for


def _photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_draws_are_a_permutation_each_epoch_and_resume_anywhere():
    whole = draws_for(10, 3, 0, 35)
    epochs = [[draw.index for draw in whole[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [draw for start in range(0, 35, 7) for draw in draws_for(10, 3, start, 7)] == whole
    assert [draw.index for draw in draws_for(10, 4, 0, 10)] != epochs[0]


def test_draw_seeds_never_collide():
    seeds = [draw.seed for draw in draws_for(100, 0, 0, 5000)]
    assert len(set(seeds)) == 5000
    assert not set(seeds) & {draw.seed for draw in draws_for(100, 1, 0, 5000)}


@pytest.mark.parametrize("arguments", [(0, 0, 0, 1), (5, -1, 0, 1), (5, 0, -1, 1), (5, 0, 0, -1)])
def test_impossible_draws_are_refused(arguments):
    with pytest.raises(ValueError, match="length >= 1, the others >= 0"):
        draws_for(*arguments)


def test_image_arrays_are_exact():
    images = _photo(6 * 4, 4).reshape(6, 4, 4, 3)
    batch = ImageArrays(images).batch([Draw(5, 0), Draw(0, 1)])
    expected = torch.tensor(images[[5, 0]]).permute(0, 3, 1, 2) / 127.5 - 1
    assert batch.dtype == torch.float32
    assert torch.equal(batch, expected)
    with pytest.raises(ValueError, match=r"images.*float32 \(6, 4, 4, 3\): expected uint8 \[N, H, W, C\]"):
        ImageArrays(images.astype(np.float32))


def test_plain_crops_are_windows_of_the_photo():
    photo = _photo(40, 50)
    batch = RandomCrops([photo], 8, flip=False, colour=False).batch([Draw(0, seed) for seed in range(20)])
    windows = np.lib.stride_tricks.sliding_window_view(photo, (8, 8), (0, 1)).reshape(-1, 3, 8, 8)
    known = {window.tobytes() for window in windows}
    crops = ((batch + 1) * 127.5).round().to(torch.uint8).numpy()
    assert all(crop.tobytes() in known for crop in crops)
    assert len({crop.tobytes() for crop in crops}) > 15


def test_a_crop_depends_on_its_seed_alone():
    crops = RandomCrops([_photo(80, 80), _photo(40, 60, 1)], 16, max_downscale=3)
    alone = crops.batch([Draw(0, 11)])
    among = crops.batch([Draw(3, 5), Draw(9, 11), Draw(0, 7)])
    assert torch.equal(alone[0], among[1])
    assert among.abs().max() <= 1
    assert among.shape == (3, 3, 16, 16)


def test_photos_are_equally_likely_whatever_their_size():
    light, dark = np.full((30, 90, 3), 255, np.uint8), np.zeros((30, 30, 3), np.uint8)
    batch = RandomCrops([light, dark], 8, flip=False, colour=False).batch([Draw(0, seed) for seed in range(2000)])
    assert abs((batch[:, 0, 0, 0] > 0).float().mean().item() - 0.5) < 0.045  # four standard deviations


def test_downscale_averages_blocks():
    photo = np.tile(np.array([0, 255], np.uint8)[None, :, None], (64, 32, 3))
    batch = RandomCrops([photo], 8, flip=False, colour=False, max_downscale=2).batch([Draw(0, s) for s in range(40)])
    grey = (batch.std((1, 2, 3)) == 0).sum().item()
    assert 8 < grey < 32
    assert torch.unique(batch[batch.std((1, 2, 3)) == 0]).tolist() == [np.float32(128 / 127.5) - 1]


def test_upscale_smooths_three_crops_in_ten():
    photo = np.tile(np.array([0, 255], np.uint8)[None, :, None], (64, 32, 3))
    source = RandomCrops([photo], 8, flip=False, colour=False, max_upscale=2)
    batch = source.batch([Draw(0, seed) for seed in range(400)])
    enlarged = ((batch.abs() < 0.9).flatten(1).any(1)).float().mean().item()  # bilinear: greys between black and white
    assert abs(enlarged - 0.3) < 0.09  # four standard deviations
    assert batch.shape == (400, 3, 8, 8)


def test_colour_change_varies_hue_but_keeps_edges():
    photo = np.zeros((32, 32, 3), np.uint8)
    photo[:, 16:] = (200, 30, 30)
    batch = RandomCrops([photo], 32, flip=False).batch([Draw(0, seed) for seed in range(60)])
    strongest = (batch[..., 16:].mean((2, 3)) - batch[..., :16].mean((2, 3))).abs().argmax(1)
    assert set(strongest.tolist()) == {0, 1, 2}
    assert batch[..., :16].std((2, 3)).max() < 1e-6


def test_crops_refuse_what_they_cannot_cut():
    with pytest.raises(ValueError, match=r"photo 1.*uint8 \(10, 40, 3\): expected.*>= crop=16"):
        RandomCrops([_photo(40, 40), _photo(10, 40)], 16)
    with pytest.raises(ValueError, match="0 photos"):
        RandomCrops([], 16)
