import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantizers.kernels.native.build import cache_folder
from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.fast import convolutions as fast, native
from tokenizers_mm.fast.convolutions import optimize
from tokenizers_mm.fast.native import library, memory
from tokenizers_mm.models.tiled import Tiled
from tokenizers_mm.nets import CausalConfig, ConvConfig
from tokenizers_mm.saving import fingerprint

SHAPES = [  # batch, channels, height, width, output channels
    (1, 32, 8, 8, 32), (2, 33, 13, 10, 35), (1, 3, 20, 22, 64), (3, 48, 5, 6, 3), (2, 64, 2, 2, 4),
    (1, 128, 70, 90, 40),
]  # fmt: skip
WAYS = ("same", "same_small", "doubled", "halved")
# Largest relative error: what plain float32 sums of thousands of products have.
LIMITS = {"same": 1e-6, "same_small": 4e-7, "doubled": 4e-7, "halved": 4e-7}
needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture(autouse=True)
def _poisoned():
    """No gradients, and every torch.empty is full of NaN."""
    torch.use_deterministic_algorithms(True)
    with torch.no_grad():
        yield
    torch.use_deterministic_algorithms(False)


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def reference(x, weight, bias, way):
    if way == "doubled":
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    if way == "halved":
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)
    return F.conv2d(x, weight, bias, padding=1)


def case(batch, channels, height, width, out):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(out, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    return x, weight, torch.randn(out, generator=generator)


@needs_kernels
@pytest.mark.parametrize("isa", [0, 1, -1])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_is_that_of_float64(shape, way, isa):
    x, weight, bias = case(*shape)
    found, _ = native.convolve(x, weight, bias, way, isa=isa)
    assert error(found, reference(x.double(), weight.double(), bias.double(), way)) < LIMITS[way]


@needs_kernels
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_stands_before_and_after_is_done_too(way, threads):
    x, weight, bias = case(2, 40, 26, 34, 70)
    norm = nn.GroupNorm(8, 40, eps=1e-6)
    norm.weight.normal_()
    norm.bias.normal_()
    activated = F.silu(copy.deepcopy(norm).double()(x.double()))
    plain = reference(activated, weight.double(), bias.double(), way)
    residual = torch.randn(plain.shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        affine = native.Norm.of(norm, native.channel_sums(x), 26 * 34)
        found, sums = native.convolve(x, weight, bias, way, norm=affine, residual_BKHW=residual, sums=True)
    finally:
        torch.set_num_threads(before)
    expected = plain + residual
    assert error(found, expected) < LIMITS[way]
    assert error(sums[..., 0], expected.sum((2, 3))) < 1e-6
    assert error(sums[..., 1], expected.square().sum((2, 3))) < 1e-6


@needs_kernels
def test_four_by_four_rounds_no_worse_than_a_plain_sum():
    """One product after the other in float32; torch's own convolution rounds more or less, by processor."""
    x, weight, bias = case(1, 512, 32, 32, 64)
    expected = reference(x.double(), weight.double(), bias.double(), "same")
    plain, small = (error(native.convolve(x, weight, bias, way)[0], expected) for way in ("same", "same_small"))
    total = torch.zeros(64, 32 * 32)
    for weight_O, pixels_P in zip(weight.flatten(1).T, F.unfold(x, 3, padding=1)[0], strict=True):
        total.addr_(weight_O, pixels_P)
    summed = error((total + bias[:, None]).view_as(expected), expected)
    assert plain < summed
    assert small < 0.5 * summed


@needs_kernels
@pytest.mark.parametrize("isa", [0, 1])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (3, 40, 33, 31), (2, 128, 1, 1)])
def test_channel_sums(shape, isa):
    x = torch.randn(shape) + 3
    sums = native.channel_sums(x, isa=isa)
    torch.testing.assert_close(sums[..., 0], x.double().sum((2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(sums[..., 1], x.double().square().sum((2, 3)), rtol=1e-6, atol=0)


@needs_kernels
@pytest.mark.parametrize("way", WAYS)
def test_wide_code_runs_on_narrow_vectors(way, monkeypatch):
    wide = library.CONVOLUTIONS.load(library.CONVOLUTIONS.build(cache_folder(), "-DTMM_WIDE_ON_AVX2", "-O1"))
    monkeypatch.setattr(sys.modules["tokenizers_mm.fast.native.convolve"], "library", lambda: wide)
    x, weight, bias = case(2, 33, 13, 10, 35)
    found, sums = native.convolve(x, weight, bias, way, sums=True, isa=2)
    expected = reference(x.double(), weight.double(), bias.double(), way)
    assert error(found, expected) < LIMITS[way]
    assert error(sums[..., 1], expected.square().sum((2, 3))) < 1e-6
    torch.testing.assert_close(native.channel_sums(x, isa=2)[..., 0], x.double().sum((2, 3)), rtol=1e-5, atol=1e-4)


def tokenizer(net=None, **options):
    torch.manual_seed(0)
    net = net or ConvConfig(**{"channels": 32, "multipliers": (1, 2), "groups": 8, "blocks": 1, **options})
    made = build_autoencoder(AutoencoderConfig(image_size=(32, 32), bottleneck={"kind": "gaussian", "dim": 4}, net=net))
    for weight in made.parameters():
        if weight.ndim == 1:  # norms are ones and zeros at first
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


def both_ways(made, image):
    tokens = made.encode(image)
    return tokens.data, made.decode(tokens)


NETS = {
    "defaults": {},
    "attention": {"attention_levels": (0, 1)},
    "no_bias": {"bias": False},
    "patch": {"patch": 2},
    "relu": {"activation": "relu"},
    "rms": {"norm": "rms"},
    "centre_and_depth": {"downsample": "centre", "upsample": "depth"},
    "average": {"downsample": "average", "encoder_out": 1},
    "modulation": {"modulation": True},
    "maskgit": {"block_input_skip": False},
    "causal": {"net": CausalConfig(channels=32, multipliers=(1, 2), blocks=1)},
}


@needs_kernels
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("options", NETS.values(), ids=list(NETS))
def test_gives_what_the_original_gives(options, mode):
    original = tokenizer(**options)
    optimized = optimize(original, mode)
    found = {type(module) for module in optimized.modules()}
    assert fast.Convolution in found
    assert (fast.ResBlock in found) == (type(original.encoder).__name__ == "Encoder" and options not in (
        NETS["relu"], NETS["rms"]))  # fmt: skip
    for shape in ((1, 3, 32, 32), (2, 3, 24, 52)):
        image = torch.rand(shape) * 2 - 1
        for ours, theirs in zip(both_ways(optimized, image), both_ways(original, image), strict=True):
            assert error(ours, theirs) < 1e-5


@needs_kernels
def test_shares_the_weights_and_leaves_the_original_alone():
    original = tokenizer()
    classes = [type(module) for module in original.modules()]
    optimized = optimize(original, "fast")
    assert [type(module) for module in original.modules()] == classes
    assert optimized.spec == original.spec
    assert optimized.config == original.config
    assert fingerprint(optimized) == fingerprint(original)
    mine, theirs = optimized.state_dict(), original.state_dict()
    assert list(mine) == list(theirs)
    assert all(mine[key].data_ptr() == theirs[key].data_ptr() for key in mine)
    image = torch.rand(1, 3, 32, 32)
    before = optimized.encode(image).data
    original.encoder.conv_out.weight.mul_(2)
    assert not torch.equal(optimized.encode(image).data, before)
    with torch.enable_grad():
        original(image)[0].sum().backward()
    assert original.encoder.conv_in.weight.grad is not None


@needs_kernels
def test_in_place_changes_between_layers_are_seen():
    original = tokenizer()
    optimized = optimize(original, "fast")
    image = torch.rand(1, 3, 32, 32)
    for made in (original, optimized):
        made.encoder.down[0].register_forward_hook(lambda module, inputs, output: output.mul_(3).add_(1))
    assert error(optimized.encode(image).data, original.encode(image).data) < 1e-5


@needs_kernels
def test_non_finite_pixels_are_refused_as_before():
    image = torch.rand(1, 3, 32, 32)
    for bad in (float("nan"), float("inf"), -float("inf")):
        image[0, 1, 3, 30] = bad
        with pytest.raises(ValueError, match="NaN or Inf features"):
            optimize(tokenizer(), "fast").encode(image)


@needs_kernels
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_refuses_to_lose_gradients(mode):
    optimized, image = optimize(tokenizer(), mode), torch.rand(1, 3, 32, 32)
    with torch.enable_grad(), pytest.raises(ValueError, match=r"recording gradients.*no_grad"):
        optimized(image)
    with pytest.raises(ValueError, match="in training mode"):
        optimized.train()(image)


@needs_kernels
def test_runs_in_inference_mode_and_in_other_precisions():
    original = tokenizer()
    optimized, image = optimize(original, "fast"), torch.rand(1, 3, 32, 32)
    expected = both_ways(original, image)
    with torch.inference_mode():
        for ours, theirs in zip(both_ways(optimized, image), expected, strict=True):
            assert error(ours, theirs) < 1e-5
    original.double()
    assert torch.equal(
        optimized.decode(original.encode(image.double())), original.decode(original.encode(image.double()))
    )


def test_bfloat16_is_a_copy():
    original = tokenizer()
    optimized, image = optimize(original, "bf16"), torch.rand(1, 3, 32, 32)
    for ours, theirs in zip(both_ways(optimized, image), both_ways(original, image), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < error(ours, theirs) < 3e-2
    assert {weight.dtype for weight in original.parameters()} == {torch.float32}
    assert {weight.dtype for weight in optimized.decoder.parameters()} == {torch.bfloat16}
    with torch.enable_grad():
        assert not optimized.decoder(torch.rand(1, 4, 8, 8, dtype=torch.bfloat16)).requires_grad


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 64, 48, 40, 96), (1, 256, 40, 36, 256), (2, 512, 20, 12, 96)])
def test_few_and_many_weights_and_several_images(shape):
    x, weight, bias = case(*shape)
    residual = torch.randn(shape[0], shape[4], *shape[2:4])
    found, sums = native.convolve(x, weight, bias, residual_BKHW=residual, sums=True)
    expected = reference(x.double(), weight.double(), bias.double(), "same") + residual
    assert error(found, expected) < LIMITS["same"]
    assert error(sums[..., 1], expected.square().sum((2, 3))) < 1e-6
    given = residual.contiguous(memory_format=torch.channels_last)
    assert native.convolve(x, weight, bias, residual_BKHW=given, in_place=True)[0] is given
    assert torch.equal(given, found)


@needs_kernels
def test_one_by_one():
    x, weight = torch.randn(2, 40, 33, 31), torch.randn(24, 40, 1, 1)
    for bias in (None, torch.randn(24)):
        expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double())
        assert error(native.mix(x, weight, bias), expected) < 1e-6


def test_memory_serves_again_only_when_nothing_uses_it():
    native.release()
    first = memory.empty((1 << 19,)).fill_(1)
    kept, address = first[5:9], first.data_ptr()
    del first
    second = memory.empty((1 << 19,)).fill_(2)
    assert second.data_ptr() != address
    assert kept.tolist() == [1] * 4
    del kept
    assert memory.empty((1 << 18,)).data_ptr() == address
    assert memory.empty((10,)).shape == (10,)
    native.release()
    assert not memory._free


@needs_kernels
def test_results_stay_while_others_are_made(monkeypatch):
    monkeypatch.setattr(memory, "_LEAST", 1)  # results too, however small, are in memory that serves again
    optimized = optimize(tokenizer())
    images = torch.rand(4, 1, 3, 64, 64)
    tokens = [optimized.encode(image) for image in images]
    decoded = [optimized.decode(each) for each in tokens]
    for image, each, pixels in zip(images, tokens, decoded, strict=True):
        assert torch.equal(optimized.encode(image).data, each.data)
        assert torch.equal(optimized.decode(each), pixels)


@needs_kernels
def test_threads_do_not_share_memory_in_use():
    optimized = optimize(tokenizer())
    images = list(torch.rand(6, 1, 3, 128, 128))
    alone = [optimized.encode(image).data for image in images]

    def encode(image):
        with torch.no_grad():
            return optimized.encode(image).data

    with ThreadPoolExecutor(3) as pool:
        for ours, expected in zip(pool.map(encode, images), alone, strict=True):
            assert torch.equal(ours, expected)


@needs_kernels
def test_tiles_of_an_optimized_tokenizer():
    original, image = tokenizer(), torch.rand(1, 3, 50, 70)
    ours, theirs = (Tiled(each, 32).reconstruct(image) for each in (optimize(original), original))
    assert error(ours, theirs) < 1e-5


def test_without_a_compiler_it_is_the_original(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    original, image = tokenizer(), torch.rand(1, 3, 32, 32)
    for ours, theirs in zip(both_ways(optimize(original), image), both_ways(original, image), strict=True):
        assert torch.equal(ours, theirs)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="mode='int8': expected one of exact, fast, bf16"):
        optimize(tokenizer(), "int8")
    with pytest.raises(ValueError, match="training mode"):
        optimize(tokenizer().train())
    narrow = tokenizer()
    narrow.encoder.half()
    with pytest.raises(ValueError, match=r"encoder.conv_in.weight is torch.float16 on cpu: expected float32"):
        optimize(narrow)
