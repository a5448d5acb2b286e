from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizers_mm.api import Tokenizer, Tokens, TokenSpec
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.semantics import semantics_of
from tokenizers_mm.store.dataset import TokenDataset
from tokenizers_mm.store.encode import encode_folder
from tokenizers_mm.towers import EncodeOnly, Tower, TowerConfig, build_tower
from tokenizers_mm.towers.lite0 import LITE0_SHA256


def tower_of(name: str = "timm:test_vit", **options: object) -> Tower:
    return build_tower(TowerConfig(name=name, **options), random_init=True)  # type: ignore[arg-type]


def images(size: tuple[int, int] = (32, 32), batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def smooth(size: int) -> Image.Image:
    """Away from black and white, so that no interpolation overshoots the pixels' range."""
    y, x = np.mgrid[0:size, 0:size] / size
    pixels = np.stack([128 + 90 * np.sin(6 * x), 128 + 90 * np.cos(5 * y), 60 + 120 * x * y], -1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def signed(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope="module")
def lite0() -> Tower:
    return build_tower(TowerConfig(name="lite0", image_size=32, input_size=64))


# ------------------------------------------------------------------------------------------------------- normalising


@pytest.mark.parametrize(("name", "first"), [("timm:test_efficientnet", "conv_stem"), ("timm:test_vit", "patch_embed")])
def test_the_network_sees_pixels_of_zero_mean_and_unit_deviation(name: str, first: str) -> None:
    """Images with the very statistics the network expects arrive standardised; given in [-1, 1] they would not."""
    tower = tower_of(name, input_size=64)
    mean, std = (torch.tensor(tower.network.model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    unit = (mean + std * torch.randn(4, 3, 64, 64)) * 2 - 1
    seen = []
    layer = getattr(tower.network.model, first)
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    tower.semantics(unit)
    assert seen[0].mean((0, 2, 3)).abs().max() < 0.02
    assert (seen[0].std((0, 2, 3)) - 1).abs().max() < 0.02
    assert (unit.std((0, 2, 3)) - 1).abs().max() > 0.3 or name != "timm:test_efficientnet"


def test_images_arrive_as_through_timms_own_transform() -> None:
    tower = tower_of("timm:test_efficientnet")
    config = tower.network.model.pretrained_cfg
    transform = timm.data.create_transform((3, 160, 160), mean=config["mean"], std=config["std"], crop_pct=1.0)
    same, other = smooth(160), smooth(96)
    torch.testing.assert_close(tower.normalised(signed(same)), transform(same)[None], atol=1e-5, rtol=0)
    bicubic = timm.data.create_transform(
        (3, 160, 160), mean=config["mean"], std=config["std"], crop_pct=1.0, interpolation="bicubic"
    )
    # Pillow rounds the resized pixels to whole levels: half of one is .5 / 255 / .224 = .0088.
    torch.testing.assert_close(tower.normalised(signed(other)), bicubic(other)[None], atol=0.02, rtol=0)
    with torch.no_grad():
        expected = tower.network.model.forward_features(transform(same)[None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower.semantics(signed(same)).patch_BND, expected, atol=1e-4, rtol=1e-4)


def test_lite0_knows_a_cat_at_any_size_it_is_given() -> None:
    """Through resizing and normalising a pretrained network still sees what is there; a wrong scale would show."""
    skimage = pytest.importorskip("skimage")
    tower = build_tower(TowerConfig(name="lite0"))
    assert tower.weights_sha256 == LITE0_SHA256
    assert tower.name == "lite0, 224 x 224 px"
    photo = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB").resize((300, 300))
    from tokenizers_mm.towers.lite0 import lite0_network

    classifier = lite0_network()[0].classifier
    pooled = tower.semantics(signed(photo)).pooled_BD
    assert int(classifier(pooled).argmax()) in {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    scrambled = signed(photo).flatten(2)[..., torch.randperm(300 * 300)].view(1, 3, 300, 300)
    assert int(classifier(tower.semantics(scrambled).pooled_BD).argmax()) not in {281, 282, 285}


# --------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("test_vit", 64, (4, 4)),
        ("deit_tiny_distilled_patch16_224", 64, (4, 4)),
        ("test_vit3", 64, (4, 4)),  # a register, and attention pooling
        ("test_vit_relpos", 64, (4, 4)),
    ],
)
def test_transformers_give_patches_after_the_norm_without_class_and_register_tokens(
    name: str, size: int, grid: tuple[int, int]
) -> None:
    tower = tower_of(f"timm:{name}", input_size=size)
    model, image = tower.network.model, images((size, size), 2)
    with torch.no_grad():
        tokens = model.forward_features(tower.normalised(image))
        pooled = model(tower.normalised(image))
    found = tower.semantics(image)
    assert found.grid == tower.spec.grid == grid
    assert torch.equal(found.patch_BND, tokens[:, tokens.shape[1] - grid[0] * grid[1] :])
    assert torch.equal(found.pooled_BD, pooled)
    assert tower.pooled_dim == pooled.shape[1]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_mambaout"])
def test_convnets_give_their_last_map_in_raster_order(name: str) -> None:
    tower = tower_of(f"timm:{name}", input_size=(64, 96))
    model, image = tower.network.model, images((64, 96), 2)
    with torch.no_grad():
        last = model.forward_features(tower.normalised(image))
        pooled = model(tower.normalised(image))
    found = tower.semantics(image)
    assert found.grid == (2, 3)
    channels = found.patch_BND.shape[2]
    expected = last if last.shape[-1] == channels else last.permute(0, 2, 3, 1)
    assert torch.equal(found.patch_BND, expected.reshape(2, 6, channels))
    torch.testing.assert_close(found.pooled_BD, pooled)


def test_an_earlier_layer_is_taken_as_it_is() -> None:
    vit, conv = tower_of(input_size=64, layer=-2), tower_of("timm:test_efficientnet", input_size=64, layer=2)
    image = images((64, 64))
    for tower, index in ((vit, -2), (conv, 2)):
        expected = tower.network.model.forward_intermediates(
            tower.normalised(image), indices=[index], intermediates_only=True, output_fmt="NCHW"
        )[0]
        assert torch.equal(tower.semantics(image).patch_BND, expected.flatten(2).transpose(1, 2))
        assert "layer" in tower.name
    assert conv.spec.grid == (8, 8)
    with pytest.raises(ValueError, match=r"layer=6:.*network.*6, 0.*5,.*-6.*-1"):
        tower_of(layer=6)


def test_positions_are_interpolated_by_timm() -> None:
    """The same weights at another input size: positions are those of timm's own resampling."""
    torch.manual_seed(0)
    own = tower_of()
    torch.manual_seed(0)
    small = tower_of(input_size=64)
    expected = timm.layers.resample_abs_pos_embed(
        own.network.model.pos_embed, new_size=(4, 4), num_prefix_tokens=own.network.model.num_prefix_tokens
    )
    torch.testing.assert_close(small.network.model.pos_embed, expected)
    assert own.spec.grid == (10, 10)


# ----------------------------------------------------------------------------------------------------------- frozen


def test_nothing_a_parent_says_thaws_it(lite0: Tower) -> None:
    parent = nn.ModuleDict({"tower": lite0, "head": nn.Linear(2, 2)})
    before = {name: value.clone() for name, value in lite0.state_dict().items()}
    parent.train().requires_grad_(True)
    lite0.requires_grad_(True)
    assert [name for name, _ in parent.named_parameters()] == ["head.weight", "head.bias"]
    assert not any(module.training for module in lite0.modules())
    image = images(batch=4).requires_grad_()
    semantics = lite0.semantics(image)
    (semantics.patch_BND.square().sum() + semantics.pooled_BD.sum()).backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert (image.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(value.grad is None and torch.equal(value, before[name]) for name, value in lite0.state_dict().items())
    assert set(before) <= {name.removeprefix("tower.") for name in parent.state_dict()}


def test_bfloat16_changes_the_network_and_nothing_that_decides() -> None:
    tower = tower_of(image_size=32, input_size=64)
    tower.set_statistics(0.3, 1.0 / 3)
    image = images()
    wide, shift = tower.encode(image).data, tower.shift_C11.clone()
    tower.to(torch.bfloat16)
    assert tower.network.model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(tower.shift_C11, shift)
    assert tower.latent_std_D[0] == torch.tensor(1.0 / 3)
    narrow = tower.encode(image).data
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).abs().max() < 0.1 * wide.abs().max()
    assert tower.encode(image.bfloat16()).data.dtype == torch.float32


# -------------------------------------------------------------------------------------------------------- tokenizer


def test_a_tower_is_a_tokenizer_that_only_encodes(lite0: Tower) -> None:
    assert isinstance(lite0, Tokenizer)
    assert lite0.spec == TokenSpec(image_size=(32, 32), grid=(2, 2), dim=1280)
    assert (lite0.downsampling, lite0.pooled_dim) == (16, 1280)
    assert tower_of(image_size=50, input_size=64).downsampling == 1
    tokens = lite0.encode(images()).check(lite0.spec)
    assert torch.equal(lite0.embed(tokens), tokens.data)
    assert not hasattr(lite0, "text_features")
    with pytest.raises(EncodeOnly, match=r"lite0, 64.*64.*encodes:.*decoder"):
        lite0.decode(tokens)


def test_calibrated_latents_have_zero_mean_and_unit_variance() -> None:
    tower = tower_of(image_size=160, input_size=64)
    batches = [images((160, 160), batch) for batch in (5, 2)]
    raw = torch.cat([semantics_of(tower, batch).patch_BND for batch in batches])
    tower.calibrate(iter(batches))
    latents = torch.cat([tower.encode(batch).data for batch in batches]).flatten(0, 1)
    torch.testing.assert_close(latents.mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(0), torch.ones(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents * tower.latent_std_D + tower.latent_mean_D, raw.flatten(0, 1))
    torch.testing.assert_close(semantics_of(tower, batches[0]).patch_BND, raw[:5])  # semantics are not normalised


def test_saved_weights_need_no_hub() -> None:
    torch.manual_seed(1)
    tower = tower_of(image_size=160, input_size=64)
    tower.calibrate([images()])
    state = tower.state_dict()
    again = tower_of(image_size=160, input_size=64)
    assert not torch.equal(again.semantics(images()).pooled_BD, tower.semantics(images()).pooled_BD)
    again.load_state_dict(state)
    assert torch.equal(again.semantics(images()).pooled_BD, tower.semantics(images()).pooled_BD)
    assert torch.equal(again.encode(images((160, 160))).data, tower.encode(images((160, 160))).data)


def test_features_of_fixed_data_go_through_the_token_store(tmp_path: Path) -> None:
    tower = tower_of(image_size=32, input_size=64)
    (tmp_path / "images").mkdir()
    for number in range(5):
        smooth(32 + 8 * number).save(tmp_path / "images" / f"{number}.png")
    folder, store = tmp_path / "images", tmp_path / "store"
    report = encode_folder(tower, folder, store, batch_size=2)
    assert (report.encoded, report.quarantined) == (5, 0)
    back = TokenDataset(store).batch(range(5)).tokens
    direct = tower.encode(signed(smooth(32))).data
    assert torch.equal(back.data[:1], direct.bfloat16().float())
    assert back.grid == tower.spec.grid


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet18"}, r"name='resnet18': expected timm:MODEL, open_clip:MODEL/PRETRAINED or lite0"),
        ({"name": "timm:"}, r"name='timm:': expected timm:MODEL"),
        ({"name": "lite0:x"}, r"name='lite0:x': expected"),
        ({"name": "timm:test_vit", "image_size": 0}, r"image_size=0: expected at least 1 pixel"),
        ({"name": "timm:test_vitt"}, r"name='timm:test_vitt': timm has no such model \(did you mean test_vit\?\)"),
        ({"name": "timm:test_vit", "input_size": 50}, r"input_size=\(50, 50\): timm:test_vit .*patches of \(16, 16\)"),
        ({"name": "timm:xcit_nano_12_p16_224", "input_size": 64}, r"input_size=\(64, 64\): .*takes \(224, 224\) only"),
        ({"name": "timm:test_vit", "layer": -7}, r"layer=-7: this network has 6, 0 to 5, or -6 to -1"),
    ],
)
def test_bad_configurations_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tower_of(**options)  # type: ignore[arg-type]


def test_configurations_come_from_text() -> None:
    config = parse(TowerConfig, {"name": "timm:test_vit", "image_size": [32, 64], "layer": -2}, "teacher")
    assert config == TowerConfig(name="timm:test_vit", image_size=(32, 64), layer=-2)
    with pytest.raises(ConfigError, match=r"teacher\.imagesize.*did you mean image_size"):
        parse(TowerConfig, {"name": "lite0", "imagesize": 32}, "teacher")


def test_weights_that_cannot_be_had_name_model_cause_and_remedies() -> None:
    with pytest.raises(ValueError, match=r"name='timm:test_vit':.*fetched.*network.*weights="):
        build_tower(TowerConfig(name="timm:test_vit"))


def test_weights_from_a_file_are_checked_tensor_by_tensor(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("test_vit", pretrained=False).eval()
    state, path = model.state_dict(), tmp_path / "weights.safetensors"
    config = TowerConfig(name="timm:test_vit")
    save_file(state, path)
    tower, image = build_tower(config, weights=path), images((160, 160))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(tower.normalised(image)), pre_logits=True)
    assert torch.equal(tower.semantics(image).pooled_BD, expected)
    assert len(tower.weights_sha256) == 64
    assert build_tower(config, weights=path).weights_sha256 == tower.weights_sha256
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "wrapped.pth")
    wrapped = build_tower(config, weights=tmp_path / "wrapped.pth")
    assert torch.equal(wrapped.semantics(image).pooled_BD, expected)
    bad = {
        "missing": ({k: v for k, v in state.items() if k != "norm.bias"}, r"missing keys: norm\.bias;"),
        "unknown": (state | {"extra": torch.zeros(1)}, r"unexpected keys: extra;"),
        "shape": (state | {"norm.bias": torch.zeros(3)}, r"wrong shapes: norm\.bias \(3,\) \(expected \(64,\)\);"),
    }
    for name, (wrong, words) in bad.items():
        torch.save(wrong, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}\.pth: {words}"):
            build_tower(config, weights=tmp_path / f"{name}.pth")
    path.write_bytes(path.read_bytes()[:1000])
    for lost in (path, tmp_path / "absent.safetensors"):
        with pytest.raises(ValueError, match=lost.name):
            build_tower(config, weights=lost)


def test_published_files_with_other_names_go_through_timms_own_reader(tmp_path: Path) -> None:
    """As DINOv2's authors publish theirs: with a mask token that the network does not have."""
    own = timm.create_model("test_vit", pretrained=False).eval().state_dict()
    torch.save(own | {"mask_token": torch.zeros(1, 64)}, tmp_path / "dinov2.pth")
    tower = build_tower(TowerConfig(name="timm:test_vit"), weights=tmp_path / "dinov2.pth")
    assert torch.equal(tower.network.model.pos_embed, own["pos_embed"])


def test_networks_that_cannot_give_features_say_so() -> None:
    class NoNorm(nn.Module):
        """As timm's Hiera: refuses to norm its features."""

        mean, std, input_size = (0.5,) * 3, (0.5,) * 3, (32, 32)

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            raise AssertionError("normalization of features not supported")

    with pytest.raises(ValueError, match=r"hiera: cannot.*features.*layer="):
        Tower(TowerConfig(name="timm:test_vit"), NoNorm(), "hiera", "")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"torch\.uint8 \(1, 3, 32, 32\): .*takes float RGB images"),
        (torch.zeros(1, 1, 32, 32), r"\(1, 1, 32, 32\): .*takes float RGB"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\).*"),
        (torch.zeros(1, 3, 48, 32), r"\(1, 3, 48, 32\): this tower was built for images of \(32, 32\); resize"),
        (torch.full((1, 3, 32, 32), torch.nan), r"NaN or Inf features: check the pixels"),
    ],
)
def test_images_it_cannot_take_are_named(lite0: Tower, image: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lite0.encode(image)


def test_statistics_and_tokens_that_do_not_fit_are_named(lite0: Tower) -> None:
    with pytest.raises(ValueError, match=r"statistics of shape \(3,\): expected \(1280,\)"):
        lite0.set_statistics(torch.zeros(3), 1.0)
    for std in (0.0, torch.nan):
        with pytest.raises(ValueError, match="deviations positive"):
            lite0.set_statistics(0.0, std)
    with pytest.raises(ValueError, match="batches gave 0 positions"):
        lite0.calibrate([])
    with pytest.raises(ValueError, match="7 channels, expected 1280"):
        lite0.embed(Tokens(latents_BND=torch.zeros(1, 4, 7), grid=(2, 2)))
