import pytest
import torch

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.blocks.patches import PatchUnembed
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.nets import ViTConfig
from tokenizers_mm.nets.transformer import TransformerConfig
from tokenizers_mm.nets.vit import ViTDecoder, ViTEncoder
from tokenizers_mm.training.pca_init import pca_initialise

SIZE = TransformerConfig(width=16, depth=2, heads=2)
CONFIG = ViTConfig(patch=4, encoder=SIZE)


def vit(**options):
    return AutoencoderConfig(
        image_size=(8, 12), bottleneck={"kind": "gaussian", "dim": 3}, net=ViTConfig(patch=4, encoder=SIZE), **options
    )


@pytest.mark.parametrize("side", [(8, 8), (8, 20), (16, 4)])
def test_any_multiple_of_the_patch_goes_through(side):
    encoder, decoder = ViTEncoder(CONFIG, 5), ViTDecoder(CONFIG, 5)
    latent = encoder(torch.randn(2, 3, *side))
    assert latent.shape == (2, 5, side[0] // 4, side[1] // 4)
    assert decoder(latent).shape == (2, 3, *side)


def test_rows_are_not_columns():
    """Turned by a quarter, an image of equal patches gives features that are not the turned ones: positions count."""
    torch.manual_seed(0)
    encoder, patch = ViTEncoder(CONFIG, 5), torch.randn(1, 3, 1, 1).expand(-1, -1, 4, 4)
    image = torch.cat([patch, -patch, 2 * patch, patch], 3)
    wide, tall = encoder(image).detach(), encoder(image.mT).detach()
    assert float((wide - tall.mT).abs().max()) > 1e-2


def test_encoder_and_decoder_have_their_own_sizes():
    config = ViTConfig(
        patch=4,
        encoder=SIZE,
        decoder=TransformerConfig(width=32, depth=1, heads=4, mlp="gelu", norm="rms"),
        smooth=True,
    )
    encoder, decoder = ViTEncoder(config, 5), ViTDecoder(config, 5)
    assert (len(encoder.trunk.blocks), len(decoder.trunk.blocks)) == (2, 1)
    assert decoder.pixels.project.weight.shape == (48, 32)
    assert decoder.last_layer is decoder.pixels.smooth.weight
    assert ViTDecoder(CONFIG, 5).last_layer.shape == (48, 16)


def test_smoothing_starts_as_nothing_and_reaches_over_the_seams():
    plain, smooth = PatchUnembed(4, 3, 16, smooth=False), PatchUnembed(4, 3, 16, smooth=True)
    smooth.project.load_state_dict(plain.project.state_dict())
    x_BLE = torch.randn(1, 2, 16, requires_grad=True)
    assert torch.equal(smooth(x_BLE, (1, 2)), plain(x_BLE, (1, 2)))
    torch.nn.init.constant_(smooth.smooth.weight, 0.1)
    (seam,) = torch.autograd.grad(smooth(x_BLE, (1, 2))[..., 3].sum(), x_BLE)
    assert bool(seam[0, 1].any())  # the last column of the left patch sees the right one
    (inner,) = torch.autograd.grad(smooth(x_BLE, (1, 2))[..., 2].sum(), x_BLE)
    assert not bool(inner[0, 1].any())


def test_it_learns():
    """A few images by heart: far better than the best single image, their mean."""
    torch.manual_seed(0)
    model = build_autoencoder(vit()).train()
    image = torch.rand(6, 3, 8, 12) * 2 - 1
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(100):
        recon, quantized = model(image)
        loss = (recon - image).square().mean()
        (loss + 1e-4 * quantized.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    guess = (image - image.mean(0)).square().mean()
    assert float(loss.detach()) < 0.5 * float(guess)


def test_pca_initialisation_silences_the_net():
    model = build_autoencoder(vit(linear=True))
    image = torch.rand(64, 3, 8, 12) * 2 - 1
    pca_initialise(model, image)
    assert not bool(model.decoder(torch.randn(1, 4, 2, 3)).any())
    model.eval().decode(model.encode(image[:1]))


def test_options_are_checked():
    with pytest.raises(ValueError, match="patch=0, image_channels=3: expected at least 1"):
        ViTConfig(patch=0)
    good = {
        "image_size": (8, 8),
        "bottleneck": {"kind": "fsq"},
        "net": {"kind": "vit", "encoder": {"width": 32, "heads": 2}},
    }
    assert parse(AutoencoderConfig, good, "run").net.encoder.inside == 88
    bad = good | {"net": {"kind": "vit", "encoder": {"widht": 32}}}
    with pytest.raises(ConfigError, match=r"= 32: unknown.*\(did.*width\?\)"):
        parse(AutoencoderConfig, bad, "run")
