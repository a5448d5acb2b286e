"""Nets of different kinds together, the halves of a training pass, and the weights next to both ends."""

import math
from dataclasses import replace

import pytest
import torch

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.fast.convolutions import optimize
from tokenizers_mm.models.tiled import Tiled
from tokenizers_mm.nets import (
    CausalConfig,
    ConvConfig,
    DCConfig,
    Emu3Config,
    FlowDecoderConfig,
    QueryConfig,
    ViTConfig,
)
from tokenizers_mm.nets.transformer import TransformerConfig

SIZE = TransformerConfig(width=16, depth=1, heads=2)
CONV = ConvConfig(channels=8, groups=4, multipliers=(1, 1), blocks=1, patch=2)
PLAIN = ("residual",) * 3
DC = DCConfig(
    widths=(8, 8, 16), layers=(0, 1, 1), blocks=PLAIN, scales=((), (), ()),
    decoder_widths=(8, 8, 16), decoder_layers=(0, 1, 1), decoder_blocks=PLAIN, decoder_scales=((), (), ()),
    decoder_norms=("rms",) * 3, decoder_activations=("silu",) * 3,
)  # fmt: skip
NETS = {
    "conv": CONV,
    "vit": ViTConfig(patch=4, encoder=SIZE),
    "dc": DC,
    "causal": CausalConfig(channels=8, multipliers=(1, 1, 1), blocks=1),
    "emu3": Emu3Config(channels=8, groups=4, multipliers=(1, 1, 1), blocks=1, attention_levels=(2,)),
    "query": QueryConfig(patch=4, tokens=5, encoder=SIZE),
}
CONFIG = AutoencoderConfig(image_size=(16, 8), bottleneck={"kind": "gaussian", "dim": 3}, net=CONV)
IMAGE = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model_of(**changes):
    torch.manual_seed(0)
    return build_autoencoder(replace(CONFIG, **changes)).eval()


# -------------------------------------------------------------------------------------------------- pairs of nets


@pytest.mark.parametrize("decoder", ["conv", "vit", "dc", "causal", "emu3"])
@pytest.mark.parametrize("encoder", ["conv", "vit"])
def test_any_decoder_of_a_map_follows_any_encoder(encoder, decoder):
    model = model_of(net=NETS[encoder], decoder_net=NETS[decoder])
    assert type(model.encoder) is type(model_of(net=NETS[encoder]).encoder)
    assert type(model.decoder) is type(model_of(net=NETS[decoder]).decoder)
    tokens = model.encode(IMAGE)
    assert tokens.grid == (4, 2)
    assert model.decode(tokens).shape == IMAGE.shape
    again = parse(AutoencoderConfig, model.options(), "config.json")
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in build_autoencoder(again).state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_net": ViTConfig(patch=8, encoder=SIZE)}, "decoder_net has a downsampling of 8, net one of 4"),
        ({"decoder_net": NETS["query"]}, "decoder_net query: takes 5 tokens without a place, net conv gives a map"),
        ({"net": NETS["query"], "decoder_net": CONV}, "decoder_net conv: takes a map, net query gives 5 tokens"),
        (
            {"net": NETS["query"], "decoder_net": replace(NETS["query"], tokens=6)},
            "decoder_net query: takes 6 tokens without a place, net query gives 5",
        ),
        ({"noise": -0.1}, r"noise=-0.1: expected a deviation of at least 0"),
        ({"noise": math.inf}, "noise=inf: expected a deviation"),
        ({"noise": 0.8, "bottleneck": {"kind": "fsq"}}, "noise=0.8: bottleneck fsq gives codes, not latents"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model_of(**changes)


def test_unknown_keys_of_the_decoder_are_named():
    options = {"image_size": (8, 8), "bottleneck": {"kind": "fsq"}, "net": {"channels": 8, "groups": 4}}
    with pytest.raises(ConfigError, match=r"run.decoder_net.step = 3: unknown.*\(did.*steps\?\)"):
        parse(AutoencoderConfig, options | {"decoder_net": {"kind": "flow", "step": 3}}, "run")
    flow = parse(AutoencoderConfig, options | {"decoder_net": {"kind": "flow", "steps": 3}}, "run").decoder_net
    assert flow == FlowDecoderConfig(steps=3)


def test_options_that_say_nothing_stay_out_of_configurations():
    """Token stores know tokenizers by a fingerprint of this; those saved before must keep theirs."""
    plain = model_of().options()
    assert not {"decoder_net", "noise", "semantic"} & set(plain)
    assert model_of(noise=0.5).options()["noise"] == 0.5
    assert model_of(decoder_net=NETS["vit"]).options()["decoder_net"]["patch"] == 4


# ------------------------------------------------------------------------------------------ halves of a training pass


def test_the_halves_are_the_whole():
    model = model_of().train()
    torch.manual_seed(1)
    recon, quantized = model(IMAGE)
    torch.manual_seed(1)
    half, vectors = model.quantized(IMAGE)
    assert vectors.grid == (4, 2)
    assert torch.equal(half.z_BND, quantized.z_BND)
    assert vectors.z_BND is half.z_BND
    assert torch.equal(model.pixels(vectors), recon)


@pytest.mark.parametrize("patch", [1, 2])
def test_noise_is_that_of_unit_variance_latents(patch):
    """Every image draws a deviation from U(0, noise) and adds normal noise of it, in training alone."""
    model = model_of(noise=0.8, bottleneck={"kind": "identity", "dim": 3}, latent_patch=patch)
    count, dim = 600, 3 * patch**2
    std = torch.rand(dim) + 0.5
    model.set_statistics(torch.randn(dim), std)
    image = IMAGE[:1].expand(count, -1, -1, -1)
    clean = model.quantized(image)[0].z_BND.detach()
    torch.manual_seed(0)
    noisy, vectors = model.train().quantized(image)
    added = noisy.z_BND.detach() - clean
    in_units = torch.nn.functional.pixel_unshuffle(added.transpose(1, 2).unflatten(2, vectors.grid), patch)
    in_units = in_units / std[:, None, None]
    sigma = in_units.flatten(1).square().mean(1).sqrt()  # 24 numbers an image
    assert 0 < float(sigma.min())
    assert float(sigma.max()) < 0.8 * 1.7
    assert float(sigma.mean()) == pytest.approx(0.4, abs=0.03)
    assert float(in_units.mean()) == pytest.approx(0, abs=0.02)
    per_channel = in_units.square().mean((0, 2, 3)).sqrt()
    assert float((per_channel / per_channel.mean() - 1).abs().max()) < 0.15
    torch.manual_seed(0)
    assert torch.equal(model.quantized(image)[0].z_BND, noisy.z_BND)
    silent = model_of(bottleneck={"kind": "identity", "dim": 3}).train()
    assert torch.equal(silent.quantized(IMAGE)[0].z_BND, silent.eval().quantized(IMAGE)[0].z_BND)


# ------------------------------------------------------------------------------------------------ weights at the ends


@pytest.mark.parametrize("quant_conv", [0, 1])
@pytest.mark.parametrize("end", ["image", "bottleneck"])
@pytest.mark.parametrize("kind", NETS)
def test_weights_next_to_the_image_and_to_the_bottleneck(kind, end, quant_conv):
    """Doubled, a weight doubles what is decoded, or what the bottleneck receives, up to biases and shortcuts."""
    model = model_of(net=NETS[kind], bottleneck={"kind": "identity", "dim": 4}, quant_conv=quant_conv)
    layer = model.last_layer if end == "image" else model.last_encoder_layer
    assert any(layer is p for p in model.parameters())

    @torch.no_grad()
    def read(factor):
        layer.mul_(factor)
        features = model.features(IMAGE)
        return features.z_BND if end == "bottleneck" else model.pixels(features)

    once, twice, none = read(1), read(2), read(0)
    torch.testing.assert_close(twice - none, 2 * (once - none), atol=1e-4, rtol=1e-4)
    assert float((twice - once).abs().max()) > 1e-4


def test_transformers_in_half_precision_and_compiled():
    model = model_of(net=NETS["query"])
    tokens = model.encode(IMAGE)
    torch.compiler.reset()
    features = torch.compile(model.features, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(features(IMAGE)[0], model.features(IMAGE)[0], atol=1e-5, rtol=1e-5)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        recon, _ = model(IMAGE)
        recon.float().square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    half = model_of(net=NETS["query"]).to(torch.bfloat16)
    assert torch.allclose(half.encode(IMAGE).data, tokens.data, atol=0.05 * float(tokens.data.std()))
    assert half.decode(tokens).dtype == torch.float32


# --------------------------------------------------------------------------------------------------- fast and tiled


def test_faster_and_tiled_take_what_they_can():
    mixed = model_of(decoder_net=NETS["vit"])
    fast = optimize(mixed, "exact")
    tokens = mixed.encode(IMAGE)
    torch.testing.assert_close(fast.encode(IMAGE).data, tokens.data, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(fast.decode(tokens), mixed.decode(tokens))
    query = model_of(net=NETS["query"])
    with pytest.raises(ValueError, match=r"mode='fast':.*decoder QueryDecoder.*3x3 convolution"):
        optimize(query)
    with pytest.raises(ValueError, match=r"tokens.*belong.*place:.*\(16, 8\)"):
        Tiled(query, 8)
    vit = model_of(net=NETS["vit"])
    whole = Tiled(vit, None)
    torch.testing.assert_close(whole.reconstruct(IMAGE), vit.decode(vit.encode(IMAGE)), atol=1e-5, rtol=1e-5)
    assert Tiled(vit, 8, 4).reconstruct(torch.zeros(1, 3, 22, 30)).shape == (1, 3, 22, 30)
