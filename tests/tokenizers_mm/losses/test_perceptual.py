from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizers_mm.losses.perceptual import LITE0_SHA256, Perceptual, feature_distance, perceptual
from tokenizers_mm.weights.network_names import LPIPS_BACKBONES


@pytest.fixture(scope="module")
def lite0() -> Perceptual:
    return perceptual("lite0")


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A smooth image with edges, so that noise and blur mean something: [2, 3, 64, 64]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    rings = torch.stack([torch.sin(6 * (x * x + y * y)), x, y.sign() * 0.5])
    return torch.stack([rings, rings.flip(0)])


def test_lite0_has_the_known_weights_and_is_never_called_lpips(lite0: Perceptual) -> None:
    assert lite0.weights_sha256 == LITE0_SHA256
    assert lite0.name == "Lite0 perceptual"


def test_lite0_weights_sit_in_the_right_places(lite0: Perceptual) -> None:
    """With its tensors mapped by position the network still knows a tabby cat when it sees one."""
    skimage = pytest.importorskip("skimage")
    photo = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB").resize((224, 224))
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 127.5 - 1
    cats = {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}
    assert int(lite0.network.model(image).argmax()) in cats  # type: ignore[operator]


def test_distance_is_zero_for_equal_images_and_grows_with_distortion(lite0: Perceptual, photo: Tensor) -> None:
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    distances = [lite0((photo + s * noise).clamp(-1, 1), photo) for s in (0.0, 0.05, 0.2, 0.8)]
    assert distances[0].tolist() == [0.0, 0.0]
    assert all((a < b).all() for a, b in pairwise(distances))


def test_gradients_reach_the_image_and_not_the_network(lite0: Perceptual, photo: Tensor) -> None:
    image = (photo * 0.5).requires_grad_()
    lite0(image, photo).sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in lite0.network.parameters())


def test_gradient_is_finite_where_features_vanish(lite0: Perceptual, photo: Tensor) -> None:
    image = torch.zeros_like(photo).requires_grad_()
    lite0(image, photo).sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_the_network_stays_out_of_a_training_module(lite0: Perceptual) -> None:
    trainer = nn.ModuleDict({"model": nn.Linear(2, 2), "perceptual": lite0}).train()
    assert sorted(trainer.state_dict()) == ["model.bias", "model.weight"]
    assert len(list(trainer.parameters())) == 2
    assert not any(module.training for module in lite0.network.modules())


def test_the_network_follows_its_device_and_dtype() -> None:
    distance = perceptual("lite0", stages=(0,), random_init=True).to(torch.float64)
    assert next(distance.network.parameters()).dtype == torch.float64
    assert distance(torch.zeros(1, 3, 32, 32).double(), torch.ones(1, 3, 32, 32).double()).dtype == torch.float32


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (96, 64)])
def test_any_size_from_32_pixels(lite0: Perceptual, size: tuple[int, int]) -> None:
    distance = lite0(torch.zeros(1, 3, *size), torch.ones(1, 3, *size))
    assert distance.shape == (1,)
    assert distance > 0


def test_stages_compute_only_what_they_need(lite0: Perceptual, photo: Tensor) -> None:
    early = perceptual("lite0", stages=(0, 1))
    assert early.name == "Lite0 perceptual, stages 0,1"
    assert len(early.network._features(photo)) == 2  # type: ignore[operator]
    assert not torch.equal(early(photo, -photo), lite0(photo, -photo))


def test_feature_distance_by_hand() -> None:
    same, opposite = torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 0.0])
    orthogonal = torch.tensor([0.0, 5.0])
    a = [same.view(1, 2, 1, 1), same.view(1, 2, 1, 1)]
    b = [opposite.view(1, 2, 1, 1), orthogonal.view(1, 2, 1, 1)]
    assert feature_distance(a, a).item() == 0.0
    assert feature_distance(a, b).item() == pytest.approx((4.0 + 2.0) / 2, abs=1e-6)


def test_timm_network_is_normalised_by_its_own_statistics() -> None:
    distance = perceptual("timm:resnet18", random_init=True)
    assert distance.name == "resnet18 perceptual (random weights)"
    white = distance.network.scale + distance.network.shift  # type: ignore[operator]
    torch.testing.assert_close(
        white[:, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )
    assert distance(torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64)).shape == (2,)


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model("resnet10t", pretrained=False).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    distance = perceptual("timm:resnet10t", weights=tmp_path / "weights.safetensors")
    loaded = distance.network.model.state_dict()  # type: ignore[union-attr]
    assert torch.equal(loaded["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"broken\.pth: 1 tensors .* 'layer1\.0\.conv1\.weight'"):
        perceptual("timm:resnet10t", weights=tmp_path / "broken.pth")


@pytest.fixture
def _classifiers_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS throws a hundred million of their weights away again, which take seconds to draw."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *_, **__: tensor)


@pytest.mark.usefixtures("_classifiers_not_drawn")
@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_agrees_with_its_package(net: str, tmp_path: Path, photo: Tensor) -> None:
    """With a backbone file laid out as torchvision's, our loading gives what the package itself computes."""
    import lpips

    torch.manual_seed(2)
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = {"features." + key.split(".", 1)[1]: value for key, value in reference.net.state_dict().items()}
    torch.save(state, tmp_path / "backbone.pth")
    distance = perceptual(f"lpips-{net}", weights=tmp_path / "backbone.pth")
    torch.testing.assert_close(distance(photo, -photo), reference(photo, -photo).flatten(), rtol=0, atol=0)
    assert distance.name.startswith("LPIPS (")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: no tensor 'features"):
        perceptual(f"lpips-{net}", weights=tmp_path / "other.pth")


@pytest.mark.usefixtures("_classifiers_not_drawn")
def test_lpips_without_its_backbone_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", os.fspath(tmp_path))
    ways = r"--perceptual-weights FILE .*--set objective\.perceptual_weights=FILE .*weights=FILE"
    with pytest.raises(
        ValueError, match=rf"{tmp_path}.*{LPIPS_BACKBONES['vgg']}: .* download https://.* elsewhere and .*{ways}"
    ):
        perceptual("lpips-vgg")
    assert perceptual("lpips-alex", random_init=True).name == "LPIPS (AlexNet) (random weights)"


@pytest.mark.parametrize("name", ["lpips-alex", "lite0", "timm:resnet10t"])
def test_a_file_that_is_not_there_or_no_weights_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}/nothing: no such file.*{name}.*--perceptual-weights"):
        perceptual(name, weights=tmp_path / "nothing")
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    with pytest.raises(ValueError, match=r"page\.pth: .*(HTML page|SHA-256)"):
        perceptual(name, weights=str(tmp_path / "page.pth"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "name='vgg': expected one of lpips-vgg"),
        ("lpips-resnet", {}, "name='lpips-resnet': expected one of lpips-vgg"),
        ("lpips-alex", {"stages": (0,)}, "LPIPS uses all stages"),
        ("timm:nothing", {}, "timm has no such model"),
    ],
)
def test_unknown_names_are_refused(name: str, options: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perceptual(name, **options)  # type: ignore[arg-type]


def test_other_weights_under_the_name_of_lite0_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "fake.pth")
    with pytest.raises(ValueError, match=r"fake\.pth: SHA-256.*known weights"):
        perceptual("lite0", weights=tmp_path / "fake.pth")


def test_bad_images_are_refused(lite0: Perceptual) -> None:
    with pytest.raises(ValueError, match=r"image_BCHW.*shape \(1, 3, 16, 16\).*at least 32"):
        lite0(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="takes RGB"):
        lite0(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="differ"):
        lite0(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))


def test_hashes_of_random_networks_tell_them_apart() -> None:
    torch.manual_seed(3)
    first = perceptual("timm:resnet10t", random_init=True).weights_sha256
    torch.manual_seed(3)
    assert perceptual("timm:resnet10t", random_init=True).weights_sha256 == first
    assert perceptual("timm:resnet10t", random_init=True).weights_sha256 != first
