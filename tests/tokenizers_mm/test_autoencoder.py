import json
from dataclasses import replace

import pytest
import torch

from tokenizers_mm import Autoencoder, AutoencoderConfig, Tokens, build_autoencoder
from tokenizers_mm.autoencoder import config_dict
from tokenizers_mm.config import parse
from tokenizers_mm.linear_start import start_linear
from tokenizers_mm.nets.conv import ConvConfig

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
CONFIG = AutoencoderConfig(image_size=(16, 8), bottleneck={"kind": "gaussian", "dim": 3}, net=NET)
IMAGE = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model_of(bottleneck=CONFIG.bottleneck, **changes):
    return build_autoencoder(replace(CONFIG, bottleneck=bottleneck, **changes)).eval()


def test_spec_follows_from_the_parts():
    spec = model_of({"kind": "fsq", "levels": [8, 5]}).spec
    assert (spec.image_size, spec.grid, spec.dim, spec.codes) == ((16, 8), (4, 2), 2, (40,))
    assert model_of().spec.codes == ()
    with pytest.raises(ValueError, match="18 is not a multiple of the downsampling 4"):
        model_of(image_size=(18, 16))


SCALES = {"kind": "multiscale", "inner": {"kind": "vq", "size": 8, "dim": 3}, "scales": [1, [2, 1], [4, 2]]}


def test_a_multi_scale_bottleneck_gives_scales():
    model = model_of(SCALES)
    assert model.spec.order == "scales"
    assert model.spec.grid == ((1, 1), (2, 1), (4, 2))
    assert (model.spec.length, model.spec.codes, model.spec.dim) == (11, (8,), 3)
    tokens = model.encode(IMAGE)
    rows = model.embed(tokens)
    assert rows.shape == (2, 11, 3)
    assert torch.equal(rows, model.bottleneck.quantizer.decode(tokens.codes_BNS))
    with pytest.raises(ValueError, match=r"image_size=\(32, 8\): this tokenizer takes \(16, 8\) only"):
        model.encode(torch.zeros(1, 3, 32, 8))
    for grid in ((11,), ((1, 1), (1, 2), (4, 2))):
        with pytest.raises(ValueError, match=r"decodes the scales \(\(1, 1\), \(2, 1\), \(4, 2\)\)"):
            model.decode(Tokens(codes_BNS=tokens.codes_BNS, grid=grid))
    with pytest.raises(ValueError, match=r"image_size=\(16, 16\): gives a grid of \(4, 4\).*finest.*\(4, 2\)"):
        model_of(SCALES, image_size=(16, 16))


@pytest.mark.parametrize("bottleneck", [{"kind": "fsq", "levels": [8, 5]}, SCALES], ids=["raster", "scales"])
def test_training_pass_reconstructs_what_decode_gives(bottleneck):
    model = model_of(bottleneck)
    recon, quantized = model(IMAGE)
    tokens = model.encode(IMAGE)
    assert recon.shape == IMAGE.shape
    assert torch.equal(quantized.codes_BNS, tokens.codes_BNS)
    torch.testing.assert_close(recon, model.decode(tokens), atol=1e-5, rtol=0)


def test_every_parameter_learns():
    for bottleneck in ({"kind": "gaussian", "dim": 3}, {"kind": "vq", "size": 8, "dim": 3}, {"kind": "fsq"}):
        model = model_of(bottleneck, net=replace(NET, attention_levels=(1,), norm="rms"), linear=True).train()
        recon, quantized = model(IMAGE)
        ((recon - IMAGE).square().mean() + quantized.loss).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_calibration_changes_the_latents_and_not_the_images():
    model = model_of()
    before = model.encode(IMAGE)
    image = model.decode(before)
    model.calibrate([IMAGE[:1], IMAGE[1:]])
    after = model.encode(IMAGE)
    flat = before.data.flatten(0, 1)
    torch.testing.assert_close(after.data, (before.data - flat.mean(0)) / flat.std(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(after), image, atol=1e-5, rtol=0)
    mean, logvar = model.posterior(IMAGE)
    assert torch.equal(mean, before.data)
    assert logvar.shape == mean.shape


def test_images_do_not_depend_on_their_batch():
    model = model_of()
    together, alone = model.encode(IMAGE).data, model.encode(IMAGE[1:]).data
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


def test_rows_of_latents_are_rows_of_the_image():
    """Without attention and over single positions only, a change in one place stays near it, at its place."""
    model = model_of(net=replace(NET, norm="rms", middle_attention=False), image_size=(64, 96))
    changed = torch.zeros(1, 3, 64, 96)
    changed[:, :, 48:52, 20:24] = 1
    difference = (model.encode(changed).data - model.encode(torch.zeros_like(changed)).data).abs().sum(-1)
    assert int(difference.argmax()) in {row * 24 + column for row in (11, 12, 13) for column in (4, 5, 6)}
    tokens = model.encode(torch.zeros_like(changed))
    moved = tokens.data.clone()
    moved[:, 12 * 24 + 5] += 3
    difference = model.decode(Tokens(latents_BND=moved, grid=(16, 24))) - model.decode(tokens)
    row, column = divmod(int(difference.abs().sum((0, 1)).argmax()), 96)
    assert 44 <= row < 56
    assert 16 <= column < 28


def test_a_linear_start_is_the_best_linear_code():
    torch.manual_seed(0)
    model = model_of(linear=True)
    image = torch.nn.functional.interpolate(torch.rand(64, 3, 8, 4) * 2 - 1, (16, 8), mode="bilinear")
    start_linear(model, image)
    patch = torch.nn.functional.pixel_unshuffle(image, 4).permute(0, 2, 3, 1).flatten(0, 2)
    discarded = torch.linalg.eigvalsh(torch.cov(patch.T, correction=0))[:-3].sum() / patch.shape[1]
    tokens = model.encode(image)
    torch.testing.assert_close((model.decode(tokens) - image).square().mean(), discarded, rtol=1e-3, atol=0)
    torch.testing.assert_close(tokens.data.flatten(0, 1).std(0), torch.ones(3), rtol=1e-3, atol=0)
    recon, quantized = model.train()(image)
    ((recon - image).square().mean() + quantized.loss).backward()
    assert bool(model.decoder.conv_out.weight.grad.any())
    with pytest.raises(ValueError, match="linear: true"):
        start_linear(model_of(), image)


def test_without_quant_conv_the_widths_must_agree():
    model = model_of(z_channels=3, quant_conv=False)
    assert model.decode(model.encode(IMAGE)).shape == IMAGE.shape
    with pytest.raises(ValueError, match=r"z_channels=4: without quant_conv the bottleneck gaussian needs 3"):
        model_of(quant_conv=False)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE[0], r"image_BCHW has shape \(3, 16, 8\): expected \[batch, 3, H, W\]"),
        (IMAGE[:, :1], r"image_BCHW has shape \(2, 1, 16, 8\)"),
        (IMAGE.mul(100).to(torch.uint8), r"image_BCHW is torch.uint8: expected a float type"),
        (IMAGE * float("nan"), "image_BCHW gives NaN or Inf features"),
    ],
)
def test_wrong_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        model_of().encode(image)


def test_wrong_tokens_are_refused():
    model, discrete = model_of(), model_of({"kind": "fsq", "levels": [8, 5]})
    tokens, codes = model.encode(IMAGE), discrete.encode(IMAGE)
    with pytest.raises(ValueError, match="these tokens are codes but the tokenizer works with latents"):
        model.decode(codes)
    with pytest.raises(ValueError, match="codes of stream 0 lie in"):
        discrete.decode(Tokens(codes_BNS=codes.codes_BNS + 40, grid=codes.grid))
    with pytest.raises(ValueError, match="latents hold NaN"):
        model.decode(Tokens(latents_BND=tokens.data * float("nan"), grid=tokens.grid))
    for grid in [(8,), ((1, 4), (2, 2))]:
        with pytest.raises(ValueError, match=r"decodes \(rows, columns\)"):
            model.decode(Tokens(latents_BND=tokens.data, grid=grid))
    with pytest.raises(ValueError, match="bottleneck fsq has no posterior: only gaussian has"):
        discrete.posterior(IMAGE)


@pytest.mark.parametrize(
    "options",
    [{"channels": 30}, {"multipliers": ()}, {"blocks": 0}, {"patch": 0}, {"attention_levels": (4,)}],
    ids=lambda options: next(iter(options)),
)
def test_impossible_nets_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        ConvConfig(**options)


def test_config_survives_json_and_builds_the_same_architecture():
    model = model_of({"kind": "vq", "size": 8, "dim": 3})
    config = parse(AutoencoderConfig, json.loads(json.dumps(config_dict(model))), "config.json")
    again = build_autoencoder(config)
    assert isinstance(again, Autoencoder)
    assert config_dict(again) == config_dict(model)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
