import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.models.vectors import Vectors
from tokenizers_mm.nets import ConvConfig
from tokenizers_mm.nets.precision import run

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
CONFIG = AutoencoderConfig(image_size=(32, 24), bottleneck={"kind": "gaussian", "dim": 3}, net=NET)
FSQ = {"kind": "fsq", "levels": [8, 5, 5]}
IMAGE = torch.rand(4, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
OVERFLOW = "float16 activations overflow, computed again in float32"


def model_of(**changes):
    return build_autoencoder(replace(CONFIG, **changes)).eval()


def overflowing():
    """Residual sums beyond 65504 at both ends of both nets, no weight though; the next normalisation undoes them."""
    model = model_of()
    with torch.no_grad():
        for name in ("encoder.down.0.block.0", "encoder.mid.block_1", "decoder.mid.block_2", "decoder.up.0.block.1"):
            weight = model.get_submodule(name).conv2.weight
            weight *= 6e4 / weight.abs().max()
    return model


def lowered(model, dtype):
    """The same weights in lower precision; and those weights in float32 again, to tell weights from arithmetic."""
    low = copy.deepcopy(model).to(dtype)
    return low, copy.deepcopy(low).float()


def relative(found, expected):
    assert found.dtype == expected.dtype == torch.float32
    return float((found - expected).norm() / expected.norm())


# -------------------------------------------------------------------------------------------------------- float16


def test_float16_that_overflows_gives_what_float32_gives_with_these_weights():
    """Left is what runs in float16 still: the 1x1 convolution at the bottleneck, a rounding of in- and output each."""
    model = overflowing()
    low, rounded = lowered(model, torch.float16)
    assert bool(torch.isfinite(torch.cat([p.flatten() for p in low.parameters()])).all())
    assert not bool(torch.isfinite(low.encoder(IMAGE.half())).all())
    exact = model.encode(IMAGE)
    assert not bool(torch.isfinite(low.decoder(low.post_quant_conv(torch.zeros(1, 3, 8, 6).half()))).all())
    with pytest.warns(UserWarning, match=f"Encoder: {OVERFLOW}; bfloat16 does not"):
        latents = low.encode(IMAGE).data
    with pytest.warns(UserWarning, match=f"Decoder: {OVERFLOW}; bfloat16 does not"):
        image = low.decode(exact)
    assert relative(latents, rounded.encode(IMAGE).data) < 2**-10
    assert relative(image, rounded.decode(exact)) < 2**-10
    # Against the float32 weights: what rounding those weights costs anyway, and the above.
    assert relative(latents, exact.data) < relative(rounded.encode(IMAGE).data, exact.data) + 2**-10
    assert relative(image, model.decode(exact)) < relative(rounded.decode(exact), model.decode(exact)) + 2**-10


def test_float16_that_does_not_overflow_stays_float16():
    model = model_of()
    low, rounded = lowered(model, torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents = low.encode(IMAGE)
        image = low.decode(latents)
    assert 2**-14 < relative(latents.data, rounded.encode(IMAGE).data) < 2**-8
    assert 2**-14 < relative(image, rounded.decode(latents)) < 2**-8
    assert {p.dtype for p in low.parameters()} == {torch.float16}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pixels_that_are_not_finite_are_refused_and_not_taken_for_an_overflow(value, dtype):
    image = IMAGE.clone()
    image[0, 0, 3, 3] = value
    low, _ = lowered(model_of(), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="NaN or Inf features: check the pixels"):
            low.encode(image)


class Doubling(nn.Module):
    """4 x, by way of 40000 (2 x), with a buffer that is not saved."""

    scale: torch.Tensor

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(4.0))
        self.register_buffer("scale", torch.tensor(4e4), persistent=False)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x):
        assert self.scale.dtype == x.dtype
        assert self.steps.dtype == torch.int64
        return x * self.scale * self.weight / self.scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32 images", "float16 images"])
def test_the_second_run_is_float32_in_every_tensor_and_leaves_the_net_as_it_was(dtype):
    net = Doubling().half()
    x = torch.tensor([0.25, -1.5, 3.0], dtype=dtype)
    with pytest.warns(UserWarning, match=f"Doubling: {OVERFLOW}"):
        out = run(net, x)
    assert torch.equal(out, 4 * x)
    assert out.dtype == dtype
    assert (net.weight.dtype, net.scale.dtype) == (torch.float16, torch.float16)


# ------------------------------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_costs_what_rounding_costs(dtype):
    """A layer rounds its weights once, and its values about four times: convolved, normalised, activated, added.

    Independent roundings add as squares: sqrt(1 + 4) times what rounded weights cost alone, asserted below 4 times.
    """
    model = model_of()
    low, rounded = lowered(model, dtype)
    exact = model.encode(IMAGE)
    weights = relative(rounded.encode(IMAGE).data, exact.data)
    assert weights / 2 < relative(low.encode(IMAGE).data, exact.data) < 4 * weights
    image = model.decode(exact)
    weights = relative(rounded.decode(exact), image)
    assert weights / 2 < relative(low.decode(exact), image) < 4 * weights


def test_codes_are_int64_in_every_precision_and_mostly_the_same():
    model = model_of(bottleneck=FSQ)
    exact = model.encode(IMAGE).codes_BNS
    for dtype in (torch.bfloat16, torch.float16):
        low, _ = lowered(model, dtype)
        codes = low.encode(IMAGE).codes_BNS
        assert codes.dtype == torch.int64
        assert (codes == exact).float().mean() > 0.95
        assert low.decode(low.encode(IMAGE)).dtype == torch.float32


def test_autocast_is_left_alone():
    model = model_of()
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model.encoder, IMAGE).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------ memory format, compiling


def test_channels_last_gives_the_same():
    model = model_of()
    tokens = model.encode(IMAGE)
    image = model.decode(tokens)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert last.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for given in (IMAGE, IMAGE.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(last.encode(given).data, tokens.data, atol=1e-5, rtol=0)
    torch.testing.assert_close(last.decode(tokens), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_without_a_graph_break(backend, dtype):
    """The nets, and the halves of `encode` and `decode` with them; compiled bfloat16 may keep more digits."""
    torch.compiler.reset()
    model = model_of().to(dtype)
    latent = torch.randn(4, 3, 8, 6, generator=torch.Generator().manual_seed(1))
    grid = (8, 6)
    calls = [
        (model.encoder, (IMAGE.to(dtype),)),
        (model.decoder, (model.post_quant_conv(latent.to(dtype)),)),
        (lambda image: model.features(image)[0], (IMAGE,)),
        (lambda z: model.pixels(Vectors(z, grid)), (latent.flatten(2).transpose(1, 2),)),
    ]
    with torch.no_grad():
        for call, arguments in calls:
            found, expected = torch.compile(call, fullgraph=True, backend=backend)(*arguments), call(*arguments)
            assert found.dtype == expected.dtype
            bound = 1e-5 if dtype == torch.float32 else 2**-6
            assert relative(found.float(), expected.float()) < bound
    torch.compiler.reset()


def test_float16_compiles_too():
    torch.compiler.reset()
    model = model_of().half()
    features = torch.compile(model.features, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(features(IMAGE)[0], model.features(IMAGE)[0])
    torch.compiler.reset()
