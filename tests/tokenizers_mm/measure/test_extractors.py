from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tokenizers_mm.measure import extractors
from tokenizers_mm.measure.extractors import extractor
from tokenizers_mm.measure.inception import Inception, resize_like_tensorflow_1

# Every 256th of the 2048 features that torch-fidelity 0.4.0 gave with the weights and images below.
TORCH_FIDELITY = torch.tensor(
    [
        [1.732314, 0.000000, 1.475091, 7.825111, 3.769161, 2.400245, 3.414105, 13.774671],
        [1.684225, 0.000000, 1.463165, 7.800693, 3.830715, 2.371246, 3.392061, 13.807749],
    ]
)


@pytest.fixture(scope="module")
def known_network() -> Inception:
    """Weights that let features differ between images, from a fixed seed."""
    network = Inception().eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(network.state_dict().items()):
        if name.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("bn.weight", "bn.running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.1, generator=generator)
    return network


def known_images() -> Tensor:
    index = torch.arange(2 * 3 * 40 * 56).view(2, 3, 40, 56)
    return ((index * 7919) % 256).float() * torch.linspace(0, 1, 56)


@torch.no_grad()
def test_the_network_is_that_of_torch_fidelity(known_network: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    images = known_images().floor()
    features = known_network(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features[:, ::256], TORCH_FIDELITY, rtol=1e-4, atol=1e-4)
    # pytorch-fid's way to resize is another: the numbers tell them apart.
    monkeypatch.setattr(known_network, "resize", "pytorch")
    assert not torch.allclose(known_network(images[:1])[:, ::256], TORCH_FIDELITY[:1], rtol=1e-3, atol=1e-3)


def test_resizing_reads_where_tensorflow_1_did() -> None:
    ramp = torch.arange(10.0).expand(1, 1, 4, 10)
    wide = resize_like_tensorflow_1(ramp, 25)
    torch.testing.assert_close(wide[0, 0, 0], (torch.arange(25) * 0.4).clamp_max(9))
    torch.testing.assert_close(resize_like_tensorflow_1(ramp, 5)[0, 0, 0], torch.arange(0.0, 10, 2))


def test_lite0_is_named_and_never_called_fid() -> None:
    images = known_images()[:, :, :, :40]
    small = extractor("lite0", input_size=64, random_init=True)
    assert small(images).shape == (2, 1280)
    assert small.distance_name == "FD-Lite0 at 64 px (random weights)"
    assert "FID" not in small.name
    real = extractor("lite0", input_size=64)
    assert real.distance_name == "FD-Lite0 at 64 px"
    assert len(real.weights_sha256) == 64
    tower = real.network.tower  # type: ignore[union-attr]
    torch.testing.assert_close(real(images), tower.semantics(images / 127.5 - 1).pooled_BD)  # type: ignore[operator]


def test_any_timm_network_is_an_extractor_and_stays_frozen() -> None:
    named = extractor("timm:resnet10t", input_size=32, random_init=True)
    assert named.distance_name == "FD-timm:resnet10t at 32 px (random weights)"
    named.train().requires_grad_(True)
    assert not any(module.training for module in named.modules())
    assert not named(known_images()).requires_grad


def test_inception_weights_are_loaded_only_where_they_are_those(
    known_network: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "inception.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match=r"inception\.pth: SHA-256 \w+.*start.*6726825d"):
        extractor("inception", weights=path)
    monkeypatch.setattr(extractors, "WEIGHTS_SHA256", "")
    with pytest.raises(ValueError, match=r"inception\.pth: missing keys:.*\d+.*unexpected keys:"):
        extractor("inception", weights=path)
    torch.save(known_network.state_dict(), path)
    loaded = extractor("inception-pytorch", weights=path)
    assert (loaded.name, loaded.distance_name) == ("inception-pytorch", "FID")
    assert loaded.network.resize == "pytorch"
    state = loaded.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in known_network.state_dict().items())


def test_missing_weights_are_not_fetched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"fetched \(HF_HUB_OFFLINE.*set\); download"):
        extractor("inception")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match=r"could.*fetched \(no.*host\)"):
        extractor("inception")


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="name='vgg': expected inception, inception-pytorch, lite0"):
        extractor("vgg")
    with pytest.raises(ValueError, match=r"input_size=64: inception.*299.*299 pixels"):
        extractor("inception", input_size=64, random_init=True)
    with pytest.raises(ValueError, match=r"\(2, 1, 40, 56\)"):
        extractor("lite0", input_size=32, random_init=True)(known_images()[:, :1])
