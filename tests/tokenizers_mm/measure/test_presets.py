"""Each preset against the same steps written with other tools: torchvision, scikit-image, plain averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from tokenizers_mm.data.sets.photos import heldout_photos
from tokenizers_mm.measure.presets import PRESETS, preset
from tokenizers_mm.measure.reconstruction import levels, original_levels, psnr, ssim


def photo(height: int, width: int) -> np.ndarray:
    return heldout_photos()["china"][20 : 20 + height, 30 : 30 + width]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("default", InterpolationMode.BICUBIC),
        ("torch-fidelity", InterpolationMode.BICUBIC),
        ("seed", InterpolationMode.BILINEAR),
        ("bsq-vit", InterpolationMode.LANCZOS),
    ],
)
@pytest.mark.parametrize("shape", [(101, 150), (150, 97), (40, 61)])
def test_resizing_is_that_of_torchvision(name: str, mode: InterpolationMode, shape: tuple[int, int]) -> None:
    pixels = photo(*shape)
    theirs = Compose([Resize(48, interpolation=mode), CenterCrop(48)])(Image.fromarray(pixels))
    assert np.array_equal(preset(name)(pixels, 48), np.asarray(theirs))


def test_adm_halves_by_averages_then_resizes() -> None:
    pixels = photo(400, 600)
    halved = pixels.astype(np.int64)
    for _ in range(3):  # 400 -> 200 -> 100 -> 50, which is less than 96; Pillow rounds after each direction, halves up
        halved = (halved[:, ::2] + halved[:, 1::2] + 1) // 2
        halved = (halved[::2] + halved[1::2] + 1) // 2
    small = F.interpolate(
        torch.from_numpy(halved).permute(2, 0, 1)[None].double(), (48, 72), mode="bicubic", antialias=True
    )
    expected = small[0, :, :, 12:60].permute(1, 2, 0).clamp(0, 255).numpy()
    ours = preset("adm")(pixels, 48).astype(np.float64)
    assert np.abs(ours - expected).max() <= 1.6  # whole levels after each of two directions
    # Averaging first is another picture than resizing at once.
    assert np.abs(ours - preset("default")(pixels, 48)).max() > 8


def test_adm_rounds_the_offset_down_and_enlarges_small_images() -> None:
    pixels = photo(48, 51)
    assert np.array_equal(preset("adm")(pixels, 48), pixels[:, 1:49])
    assert np.array_equal(preset("default")(pixels, 48), pixels[:, 2:50])
    assert preset("adm")(photo(20, 31), 48).shape == (48, 48, 3)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Reconstructions [-1.1, 1.1] and originals on exact levels."""
    target = torch.from_numpy(photo(40, 80).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    target = torch.cat([target[..., :40], target[..., 40:]])
    return target + 0.1 * torch.randn(target.shape), target


def figures(name: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    how = preset(name).protocol("x", 40)
    assert how.preset == name
    value = ssim(*pair, how.rounding, how.original, window=how.ssim, data_range=how.ssim_range)
    return psnr(*pair, how.rounding, how.original), value


def channels_last(image_BCHW: Tensor) -> np.ndarray:
    return image_BCHW.permute(0, 2, 3, 1).numpy()


def test_adm_figures_as_llamagen_writes_them(pair: tuple[Tensor, Tensor]) -> None:
    recon = channels_last((127.5 * pair[0] + 128).clamp(0, 255).to(torch.uint8)).astype(np.float32) / 255
    target = (channels_last(pair[1]) + 1) / 2
    ours = figures("adm", pair)
    for i in range(2):
        assert ours[0][i] == pytest.approx(peak_signal_noise_ratio(recon[i], target[i], data_range=1), abs=1e-3)
        theirs = structural_similarity(recon[i], target[i], data_range=2.0, channel_axis=-1)
        assert ours[1][i] == pytest.approx(theirs, abs=1e-5)
        honest = structural_similarity(recon[i], target[i], data_range=1.0, channel_axis=-1)
        assert ours[1][i] > honest + 0.03


def test_seed_figures_as_open_magvit2_writes_them(pair: tuple[Tensor, Tensor]) -> None:
    def detour(image_BCHW: Tensor) -> np.ndarray:
        return channels_last((((image_BCHW.clamp(-1, 1) + 1) / 2) * 255.0).to(torch.uint8)).astype(np.float32) / 255

    exact = levels(pair[1]).numpy()
    recon, target = detour(pair[0]), detour(torch.from_numpy((exact / 127.5 - 1).astype(np.float32)))
    ours = figures("seed", pair)
    for i in range(2):
        assert ours[0][i] == pytest.approx(peak_signal_noise_ratio(target[i], recon[i], data_range=1), abs=1e-4)
        theirs = structural_similarity(recon[i], target[i], data_range=1.0, channel_axis=-1)
        assert ours[1][i] == pytest.approx(theirs, abs=1e-5)


def test_the_original_of_seed_loses_95_levels() -> None:
    every = (torch.arange(256.0) / 127.5 - 1).view(1, 1, 16, 16)
    assert torch.equal(original_levels(every).flatten(), torch.arange(256.0).double())
    lost = torch.arange(256.0).double() - original_levels(every, "truncated").flatten()
    assert int(lost.sum()) == 95
    assert set(lost.tolist()) == {0.0, 1.0}


def test_presets_give_different_figures_for_the_same_images(pair: tuple[Tensor, Tensor]) -> None:
    values = {name: tuple(torch.stack(figures(name, pair)).mean(1).tolist()) for name in PRESETS}
    assert len(set(values.values())) == len(PRESETS)
    assert values["bsq-vit"][0] == pytest.approx(values["default"][0], abs=0.05)


def test_every_preset_states_what_it_does() -> None:
    protocols = {name: preset(name).protocol("x", 32) for name in PRESETS}
    assert len(set(protocols.values())) == len(PRESETS)
    assert protocols["adm"].crop == "centre, offset rounded down 32 x 32"
    native = preset("bsq-vit").protocol("x", None)
    assert (native.resize, native.crop, native.rounding) == ("none", "none", "float")


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"preset='fid': expected.*default,"):
        preset("fid")
    with pytest.raises(ValueError, match=r"image is float64 \(8, 8, 3\), size=8"):
        preset("adm")(np.zeros((8, 8, 3)), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size=0"):
        preset("seed")(photo(8, 8), 0)
