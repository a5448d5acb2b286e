import json
from dataclasses import replace

import pytest
import torch

from tokenizers_mm import Autoencoder, AutoencoderConfig, Tokens, build_autoencoder
from tokenizers_mm.config import parse
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.training.pca_init import pca_initialise
from tokenizers_mm.traits import takes_one_size

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
CONFIG = AutoencoderConfig(image_size=(16, 8), bottleneck={"kind": "gaussian", "dim": 3}, net=NET)
IMAGE = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model_of(bottleneck=CONFIG.bottleneck, **changes):
    return build_autoencoder(replace(CONFIG, bottleneck=bottleneck, **changes)).eval()


def test_spec_follows_from_the_parts():
    spec = model_of({"kind": "fsq", "levels": [8, 5]}).spec
    assert (spec.image_size, spec.grid, spec.dim, spec.codes) == ((16, 8), (4, 2), 2, (40,))
    assert model_of().spec.codes == ()
    with pytest.raises(ValueError, match=r"18.*multiple.*downsampling 4"):
        model_of(image_size=(18, 16))


SCALES = {"kind": "multiscale", "inner": {"kind": "vq", "size": 8, "dim": 3}, "scales": [1, [2, 1], [4, 2]]}


def test_a_multi_scale_bottleneck_gives_scales():
    model = model_of(SCALES)
    assert model.spec.layout == "scales"
    assert model.spec.grid == ((1, 1), (2, 1), (4, 2))
    assert (model.spec.length, model.spec.codes, model.spec.dim) == (11, (8,), 3)
    tokens = model.encode(IMAGE)
    rows = model.embed(tokens)
    assert rows.shape == (2, 11, 3)
    assert torch.equal(rows, model.bottleneck.quantizer.decode(tokens.codes_BNS))
    with pytest.raises(ValueError, match=r"image_size=\(32, 8\):.*tokenizer takes \(16, 8\)"):
        model.encode(torch.zeros(1, 3, 32, 8))
    for grid in ((11,), ((1, 1), (1, 2), (4, 2))):
        with pytest.raises(ValueError, match=r"decodes \(\(1, 1\), \(2, 1\), \(4, 2\)\)"):
            model.decode(Tokens(codes_BNS=tokens.codes_BNS, grid=grid))
    with pytest.raises(ValueError, match=r"image_size=\(16, 16\):.*\(4, 4\).*\(4, 2\),.*finest"):
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


def test_pca_initialisation_is_the_best_linear_code():
    torch.manual_seed(0)
    model = model_of(linear=True)
    image = torch.nn.functional.interpolate(torch.rand(64, 3, 8, 4) * 2 - 1, (16, 8), mode="bilinear")
    pca_initialise(model, image)
    patch = torch.nn.functional.pixel_unshuffle(image, 4).permute(0, 2, 3, 1).flatten(0, 2)
    discarded = torch.linalg.eigvalsh(torch.cov(patch.T, correction=0))[:-3].sum() / patch.shape[1]
    tokens = model.encode(image)
    torch.testing.assert_close((model.decode(tokens) - image).square().mean(), discarded, rtol=1e-3, atol=0)
    torch.testing.assert_close(tokens.data.flatten(0, 1).std(0), torch.ones(3), rtol=1e-3, atol=0)
    recon, quantized = model.train()(image)
    ((recon - image).square().mean() + quantized.loss).backward()
    assert bool(model.decoder.conv_out.weight.grad.any())
    with pytest.raises(ValueError, match="linear: true"):
        pca_initialise(model_of(), image)


def test_without_quant_conv_the_widths_must_agree():
    model = model_of(z_channels=3, quant_conv=False)
    assert model.decode(model.encode(IMAGE)).shape == IMAGE.shape
    with pytest.raises(ValueError, match=r"z_channels=4:.*quant_conv.*bottleneck gaussian.*3"):
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
    with pytest.raises(ValueError, match=r"tokenizer.*latents"):
        model.decode(codes)
    with pytest.raises(ValueError, match="codes of stream 0 lie in"):
        discrete.decode(Tokens(codes_BNS=codes.codes_BNS + 40, grid=codes.grid))
    with pytest.raises(ValueError, match="latents hold NaN"):
        model.decode(Tokens(latents_BND=tokens.data * float("nan"), grid=tokens.grid))
    for grid in [(8,), ((1, 4), (2, 2))]:
        with pytest.raises(ValueError, match=r"decodes \(rows, columns\)"):
            model.decode(Tokens(latents_BND=tokens.data, grid=grid))
    with pytest.raises(ValueError, match="fsq has no posterior: only gaussian has"):
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
    config = parse(AutoencoderConfig, json.loads(json.dumps(model.options())), "config.json")
    again = build_autoencoder(config)
    assert isinstance(again, Autoencoder)
    assert again.options() == model.options()
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


# ------------------------------------------------------------------------------ pixels, latents, posterior, scales


def test_nets_see_pixels_as_they_want_them():
    """The same nets behind another normalisation see other numbers, and images are [-1, 1] outside all the same."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = model_of()
    normal = model_of(pixel_mean=mean, pixel_std=std)
    normal.load_state_dict(plain.state_dict())
    mean_C11, std_C11 = (torch.tensor(v)[:, None, None] for v in (mean, std))
    seen = ((IMAGE + 1) / 2 - mean_C11) / std_C11
    assert torch.allclose(normal.features(IMAGE)[0], plain.features(seen)[0], atol=1e-6)
    tokens = normal.encode(IMAGE)
    decoded = (plain.decode(tokens) * std_C11 + mean_C11) * 2 - 1
    assert torch.allclose(normal.decode(tokens), decoded, atol=1e-6)
    zero_to_one = model_of(pixel_mean=(0.0,), pixel_std=(1.0,))
    zero_to_one.load_state_dict(plain.state_dict())
    assert torch.allclose(zero_to_one.features(IMAGE)[0], plain.features((IMAGE + 1) / 2)[0], atol=1e-6)


def test_sampling_from_the_posterior_is_explicit():
    model = model_of()
    mean, logvar = model.posterior(IMAGE)
    assert torch.equal(model.encode(IMAGE).data, mean)
    draws = torch.stack([model.encode(IMAGE, sample=torch.Generator().manual_seed(i)).data for i in range(400)])
    assert torch.equal(draws[3], model.encode(IMAGE, sample=torch.Generator().manual_seed(3)).data)
    error = (0.5 * logvar).exp() / 400**0.5  # of the mean of 400 draws
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    ratio = draws.std(0) / (0.5 * logvar).exp()
    assert ratio.sub(1).abs().max() < 0.25
    with pytest.raises(ValueError, match="fsq has no posterior to sample from"):
        model_of({"kind": "fsq", "levels": [8, 5]}).encode(IMAGE, sample=torch.Generator())
    with pytest.raises(ValueError, match="identity has no posterior to sample from"):
        model_of({"kind": "identity", "dim": 3}).encode(IMAGE, sample=torch.Generator())


def test_published_scale_and_shift():
    model = model_of()
    raw = model.encode(IMAGE).data
    before = model.decode(model.encode(IMAGE))
    model.set_statistics(0.1159, 1 / 0.3611)
    tokens = model.encode(IMAGE)
    assert torch.allclose(tokens.data, (raw - 0.1159) * 0.3611, atol=1e-6)
    assert torch.allclose(model.decode(tokens), before, atol=1e-5)
    for mean, std, message in [
        (torch.zeros(4), 1.0, r"statistics of shape \(4,\): expected \(3,\)"),
        (0.0, 0.0, "deviations positive"),
        (float("nan"), 1.0, "must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.set_statistics(mean, std)
    with pytest.raises(ValueError, match=r"gives codes, .* it has no statistics"):
        model_of({"kind": "fsq", "levels": [8, 5]}).set_statistics(0.0, 1.0)


def test_patches_of_latents_are_stacked():
    """As FLUX.2: the channels of 2 x 2 positions, in the order channel, row, column."""
    plain, patched = model_of(), model_of(latent_patch=2)
    state = plain.state_dict() | {"latent_mean_D": torch.randn(12), "latent_std_D": torch.rand(12) + 0.5}
    patched.load_state_dict(state)
    assert (patched.spec.grid, patched.spec.dim, patched.downsampling) == ((2, 1), 12, 8)
    tokens = patched.encode(IMAGE)
    z_BDhw = plain.encode(IMAGE).data.transpose(1, 2).unflatten(2, (4, 2))
    first = z_BDhw[:, :, :2, :2].flatten(1)  # channel, row, column of the first patch
    wanted = (first - state["latent_mean_D"]) / state["latent_std_D"]
    assert torch.allclose(tokens.data[:, 0], wanted, atol=1e-6)
    assert torch.allclose(patched.decode(tokens), plain.decode(plain.encode(IMAGE)), atol=1e-5)
    with pytest.raises(ValueError, match="latent_patch=2: bottleneck fsq gives codes"):
        model_of({"kind": "fsq", "levels": [8, 5]}, latent_patch=2)


def test_statistics_per_position():
    model = model_of(latent_positions=True)
    images = torch.rand(6, 3, 16, 8) * 2 - 1
    model.calibrate([images[:3], images[3:]])
    latents = model.encode(images).data
    assert torch.allclose(latents.mean(0), torch.zeros(8, 3), atol=1e-5)
    assert torch.allclose(latents.std(0), torch.ones(8, 3), atol=1e-4)
    with pytest.raises(ValueError, match=r"grid=\(4, 4\): latent statistics are per position"):
        model.encode(torch.zeros(1, 3, 16, 16))
    fsq = {"kind": "fsq", "levels": [8, 5]}  # codes have no statistics
    others = (model_of(), model_of(fsq, latent_positions=True))
    assert [takes_one_size(tokenizer) for tokenizer in (model, *others)] == [True, False, False]
    assert others[1].encode(torch.zeros(1, 3, 16, 16)).grid == (4, 4)


def test_other_scales_share_the_weights():
    model = model_of(SCALES)
    other = model.with_scales([1, 2, [4, 4]])
    assert (other.spec.image_size, other.spec.length) == ((16, 16), 21)
    assert (model.spec.image_size, model.spec.length) == ((16, 8), 11)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert other.decode(other.encode(image)).shape == image.shape
    assert [p.data_ptr() for p in other.parameters()] == [p.data_ptr() for p in model.parameters()]
    assert build_autoencoder(other.config).spec == other.spec
    with pytest.raises(ValueError, match="gaussian has no scales"):
        model_of().with_scales([1, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "bottleneck",
    [
        {"kind": "vq", "size": 8, "dim": 3},
        {"kind": "projected", "inner": {"kind": "fsq", "levels": [5, 3]}, "in_dim": 3},
        {"kind": "gaussian", "dim": 3},
    ],
    ids=lambda b: b["kind"],
)
def test_half_precision_leaves_what_decides_about_codes(dtype, bottleneck):
    model = model_of(bottleneck, linear=True)
    if bottleneck["kind"] == "gaussian":
        model.set_statistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.1, 5.48998, 0.7]))
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("bottleneck", "latent"))}
    model.to(dtype)
    nets = (model.encoder, model.decoder, model.quant_conv, model.linear_in)
    assert {p.dtype for net in nets for p in net.parameters()} == {dtype}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    tokens = model.encode(IMAGE)
    assert {model.embed(tokens).dtype, model.decode(tokens).dtype, model.to(torch.float32).decode(tokens).dtype} == {
        torch.float32
    }
    assert model.double().encoder.conv_in.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_conv": 2}, "quant_conv=2: expected an odd kernel, or 0"),
        ({"pixel_mean": (0.5, 0.5)}, r"pixel_mean=\(0.5, 0.5\): expected 1 or 3 numbers"),
        ({"pixel_std": (0.0,)}, r"pixel_std=\(0.0,\), latent_patch=1: expected positive numbers"),
    ],
)
def test_bad_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        model_of(**changes)


def test_kernels_around_the_bottleneck():
    model = model_of(quant_conv=3, post_quant_conv=0, z_channels=3)
    assert model.quant_conv.kernel_size == (3, 3)
    assert model.decode(model.encode(IMAGE)).shape == IMAGE.shape
    assert not list(model.post_quant_conv.parameters())
