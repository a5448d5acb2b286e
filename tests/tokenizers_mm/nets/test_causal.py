import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageRMS_norm
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import nn

from tokenizers_mm.checkpoints.diffusers import read
from tokenizers_mm.config import parse
from tokenizers_mm.nets.causal import CausalConfig, CausalDecoder, CausalEncoder, ChannelNorm, mean_down, repeat_up

WAN_2_2 = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
CASES = {
    "three_levels": (
        AutoencoderKLQwenImage,
        {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True]},
        (32, 48),
    ),
    "as_published_but_thin": (AutoencoderKLQwenImage, {"base_dim": 12}, (72, 40)),
    "opacity": (
        AutoencoderKLQwenImage,
        {"base_dim": 16, "input_channels": 4, "dim_mult": [2, 1], "temperal_downsample": [True]},
        (20, 34),
    ),
    "encoder_attention": (
        AutoencoderKLQwenImage,
        {
            "base_dim": 8,
            "z_dim": 3,
            "dim_mult": [1, 2, 4],
            "num_res_blocks": 2,
            "attn_scales": [1.0, 0.25],
            "temperal_downsample": [True, True],
        },
        (24, 16),
    ),
    "one_level": (
        AutoencoderKLWan,
        {"base_dim": 8, "z_dim": 2, "dim_mult": [3], "num_res_blocks": 1, "temperal_downsample": []},
        (5, 7),
    ),
    "another_decoder": (
        AutoencoderKLWan,
        {
            "base_dim": 8,
            "decoder_base_dim": 32,
            "dim_mult": [1, 3, 3],
            "num_res_blocks": 3,
            "temperal_downsample": [False, False],
        },
        (16, 40),
    ),
    "shortcuts": (
        AutoencoderKLWan,
        {"base_dim": 8, "decoder_base_dim": 12, "z_dim": 6, "temperal_downsample": [False, True, True], **WAN_2_2},
        (64, 32),
    ),
    "shortcuts_first_in_time": (
        AutoencoderKLWan,
        {
            "base_dim": 16,
            "z_dim": 6,
            "dim_mult": [1, 2, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [True, False],
            **WAN_2_2,
        },
        (16, 48),
    ),
    "qwen_image_2": (AutoencoderKLQwenImage21, {"base_dim": 8, "decoder_base_dim": 12}, (32, 64)),
}


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def randomised(theirs):
    """No parameter stays at its initial value, norms and biases included; weights keep activations of order one."""
    generator = torch.Generator().manual_seed(1)
    for name, value in theirs.named_parameters():
        scale = value[0].numel() ** -0.5 if value.ndim > 3 and not name.endswith("gamma") else 0.2
        offset = 1.0 if name.endswith("gamma") else 0.0
        value.data = torch.randn(value.shape, generator=generator) * scale + offset
    theirs.decoder.conv_out.weight.data *= 4  # some pixels leave [-1, 1]
    return theirs.eval().requires_grad_(False)


def nets_of(options, state):
    """Our encoder with its 1x1 convolution behind it, the decoder with its own in front."""
    config, z = parse(CausalConfig, options["net"], "net"), options["z_channels"]
    with torch.device("meta"):
        encoder, decoder = CausalEncoder(config, 2 * z), CausalDecoder(config, z)
        after, before = nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)
    parts = {"encoder.": encoder, "decoder.": decoder, "quant_conv.": after, "post_quant_conv.": before}
    for prefix, part in parts.items():
        own = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        part.load_state_dict(own, assign=True)
    return nn.Sequential(encoder, after).eval(), nn.Sequential(before, decoder).eval()


def parsed_of(theirs):
    """Options and tensors; statistics of the latents are those of another width than most of these nets have."""
    config = {**theirs.config, "_class_name": type(theirs).__name__, "latents_mean": None, "latents_std": None}
    return read(config, theirs.state_dict(), "vae")


def case(name):
    kind, arguments, size = CASES[name]
    theirs = randomised(kind(**arguments))
    parsed = parsed_of(theirs)
    return theirs, nets_of(parsed.options, parsed.state), parsed.options, size


def images(theirs, size, batch=2):
    channels = theirs.config.get("in_channels", theirs.config.get("input_channels", 3))
    channels //= (theirs.config.get("patch_size") or 1) ** 2
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def their_moments(theirs, image_BCHW):
    frames = image_BCHW[:, :, None]
    if theirs.config.attn_scales:  # diffusers' attention takes no cache, which its encode passes: run without one
        return theirs.quant_conv(theirs.encoder(frames))[:, :, 0]
    return theirs.encode(frames).latent_dist.parameters[:, :, 0]


def their_pixels(theirs, z_BDhw):
    """Their decoded image before the clamp, and what their `decode` returns."""
    raw = []
    hook = theirs.decoder.register_forward_hook(lambda module, args, output: raw.append(output))
    clamped = theirs.decode(z_BDhw[:, :, None]).sample[:, :, 0]
    hook.remove()
    return unpatchify(raw[0], theirs.config.get("patch_size") or 1)[:, :, 0], clamped


@pytest.mark.parametrize("name", CASES)
def test_moments_and_pixels_are_those_of_diffusers(name):
    theirs, (encoder, decoder), options, size = case(name)
    image = images(theirs, size)
    with torch.no_grad():
        moments = encoder(image)
        f = parse(CausalConfig, options["net"], "net").downsampling
        assert moments.shape == (2, 2 * options["z_channels"], size[0] // f, size[1] // f)
        assert relative_error(moments, their_moments(theirs, image)) < 2e-5

        z = torch.randn(2, options["z_channels"], *moments.shape[2:], generator=torch.Generator().manual_seed(3))
        pixels, (raw, clamped) = decoder(z), their_pixels(theirs, z)
        assert raw.abs().max() > 1, "the clamp must have something to do"
        assert relative_error(pixels, raw) < 2e-5
        assert torch.equal(raw.clamp(-1, 1), clamped)
        assert pixels.shape == image.shape


@pytest.mark.parametrize("name", ["as_published_but_thin", "shortcuts"])
def test_low_precision_is_no_worse_than_theirs(name):
    theirs, (encoder, decoder), options, size = case(name)
    theirs.to(torch.bfloat16)
    encoder, decoder = encoder.to(torch.bfloat16), decoder.to(torch.bfloat16)
    image = images(theirs, size).bfloat16()
    with torch.no_grad():
        low, ours = their_moments(theirs, image), encoder(image)
        z = low[:, : options["z_channels"]]
        low_pixels, our_pixels = their_pixels(theirs, z)[0], decoder(z)
        theirs.float()  # the same rounded weights
        exact, exact_pixels = their_moments(theirs, image.float()), their_pixels(theirs, z.float())[0]
    assert ours.dtype == our_pixels.dtype == torch.bfloat16
    assert relative_error(ours, exact) < 1.3 * relative_error(low, exact)
    assert relative_error(our_pixels, exact_pixels) < 1.3 * relative_error(low_pixels, exact_pixels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_norm_is_theirs_to_the_bit(dtype):
    ours, theirs = ChannelNorm(24), QwenImageRMS_norm(24)
    theirs.gamma.data = torch.randn(24, 1, 1, generator=torch.Generator().manual_seed(0))
    ours.weight.data = theirs.gamma.data.clone()
    x = torch.randn(2, 24, 3, 5, generator=torch.Generator().manual_seed(1)) * 3000  # squares overflow float16
    x[0, :, 0, 0] = 0
    x, ours, theirs = x.to(dtype), ours.to(dtype), theirs.to(dtype)
    assert torch.isfinite(ours(x)).all()
    assert torch.equal(ours(x), theirs(x))


def test_shortcuts_in_numbers():
    x = torch.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    assert mean_down(x, 1, 2, 1).flatten().tolist() == [4.5]
    assert mean_down(x, 4, 2, 1).flatten().tolist() == [1.5, 3.5, 5.5, 7.5]
    assert mean_down(x, 4, 2, 2).flatten().tolist() == [0, 2.5, 0, 6.5]  # zeros stand where an earlier frame would
    one = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    assert repeat_up(one, 1, 1).flatten().tolist() == [1, 2, 3, 4]
    assert repeat_up(one, 1, 2).flatten().tolist() == [3, 3, 4, 4]  # 1 and 2 belong to the frame that does not exist
    assert repeat_up(one[:, :2], 1, 1)[0, 0].tolist() == [[1, 1], [2, 2]]


SMALL = CausalConfig(
    channels=4,
    multipliers=(1, 1),
    blocks=1,
    attention_levels=(0,),
    decoder_attention_levels=(1,),
    patch=2,
    shortcuts=True,
    temporal_levels=(0,),
)


def test_whole_graphs_compile():
    encoder, decoder = CausalEncoder(SMALL, 4), CausalDecoder(SMALL, 4)
    image = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        z = encoder(image)
        assert relative_error(torch.compile(encoder, fullgraph=True, backend="eager")(image), z) < 1e-6
        assert relative_error(torch.compile(decoder, fullgraph=True, backend="eager")(z), decoder(z)) < 1e-6


PUBLISHED = {
    "qwen_image": (AutoencoderKLQwenImage, {}, 44_599_603),
    "wan_2_1": (AutoencoderKLWan, {}, 44_599_603),
    "wan_2_2": (AutoencoderKLWan, {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, **WAN_2_2}, 252_125_020),
    "qwen_image_2": (AutoencoderKLQwenImage21, {}, 330_987_188),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_width_has_their_parameters_less_those_of_time(name):
    kind, arguments, expected = PUBLISHED[name]
    with torch.device("meta"):
        theirs = kind(**arguments)
    options = parsed_of(theirs).options
    config, z = parse(CausalConfig, options["net"], "net"), options["z_channels"]
    with torch.device("meta"):
        ours = [CausalEncoder(config, 2 * z), CausalDecoder(config, z), nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)]
    of_time = 0
    for module_name, module in theirs.named_modules():
        if module_name.endswith("time_conv"):
            of_time += sum(value.numel() for value in module.parameters())
        elif isinstance(module, nn.Conv3d):
            of_time += module.weight.numel() // module.kernel_size[0] * (module.kernel_size[0] - 1)
    count = sum(value.numel() for part in ours for value in part.parameters())
    assert count == sum(value.numel() for value in theirs.parameters()) - of_time
    assert count == expected
    assert of_time > 0


def test_gradients_reach_every_parameter():
    encoder, decoder = CausalEncoder(SMALL, 4), CausalDecoder(SMALL, 4)
    decoder(encoder(torch.randn(2, 3, 8, 4))).square().mean().backward()
    for half in (encoder, decoder):
        for name, value in half.named_parameters():
            assert value.grad is not None, name
            assert torch.isfinite(value.grad).all(), name
    assert decoder.last_layer is decoder.conv_out.weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels=0: expected at least 1"),
        ({"decoder_channels": 0}, "decoder_channels=0: expected at least 1"),
        ({"multipliers": ()}, r"multipliers=\(\)"),
        ({"multipliers": (1, 0)}, r"multipliers=\(1, 0\)"),
        ({"attention_levels": (4,)}, r"attention_levels=\(4,\): expected levels of 0..3"),
        ({"temporal_levels": (3,), "shortcuts": True}, r"temporal_levels=\(3,\): expected levels of 0..2"),
        ({"temporal_levels": (1,)}, "without shortcuts they change nothing"),
        ({"decoder_channels": 5, "multipliers": (1, 3)}, r"decoder widths \(5, 15\).*even"),
        ({"multipliers": (5,), "shortcuts": True}, "level 0 has a shortcut of 96 values to 480"),
        ({"multipliers": (1, 1, 3), "shortcuts": True}, "level 2 has a shortcut of 96 values to 288"),
    ],
)
def test_impossible_nets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CausalConfig(**options)


def test_a_padded_frame_in_front_leaves_the_last_tap():
    convolution = WanCausalConv3d(3, 5, 3, padding=1)
    x = torch.randn(1, 3, 1, 6, 4)
    expected = F.conv2d(x[:, :, 0], convolution.weight[:, :, -1], convolution.bias, padding=1)
    assert relative_error(convolution(x)[:, :, 0], expected) < 1e-6
