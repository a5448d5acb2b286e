from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenizers_mm.nets.emu3 import CodeNorm, Emu3Config, Emu3Decoder, Emu3Encoder, TimeBlock

SMALL = Emu3Config(channels=8, multipliers=(1, 2, 1), blocks=1, attention_levels=(0, 2), groups=4, temporal_blocks=2)


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def randomised(net):
    """No parameter or statistic stays at its initial value; those of one dimension stand for all of 1 + small."""
    for name, value in net.named_parameters():
        value.data = torch.randn_like(value) * (value[0].numel() ** -0.5 if value.ndim > 1 else 0.2)
        value.data += 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
    for name, value in net.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.3)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return net.eval()


def causal(conv, x_BCTHW, others):
    """A convolution over time with zeros in front: `others` are the taps before the one that `conv` is."""
    weight = torch.cat([others, conv.weight.unsqueeze(2)], 2)
    return F.conv3d(F.pad(x_BCTHW, (*[weight.shape[-1] // 2] * 4, 2, 0)), weight, conv.bias)


def in_time(block, x_BCTHW, others):
    """A residual block over all frames, in eval mode."""

    def normalised(norm, x):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    h = causal(block.conv1, F.silu(normalised(block.norm1, x_BCTHW)), others[0])
    return x_BCTHW + causal(block.conv2, F.silu(normalised(block.norm2, h)), others[1])


def taps(count, channels):
    return torch.randn(count, channels, channels, 2, 3, 3)


@torch.no_grad()
def test_an_image_is_encoded_as_four_equal_frames():
    encoder = randomised(Emu3Encoder(SMALL, 5))
    image = torch.randn(2, 3, 16, 24)
    frame = encoder.conv_in(image)
    for level in encoder.down:
        frame = level(frame)
    frame = encoder.conv_out(F.silu(encoder.norm_out(encoder.mid(frame))))
    video = torch.stack([frame] * 4, 2)
    for conv in encoder.time_conv:  # four frames, two, one: kernel 4, stride 2, two frames of zeros in front
        video = F.silu(F.conv3d(F.pad(video, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias, stride=(2, 1, 1)))
    assert video.shape == (2, 5, 1, 4, 6)
    for block in encoder.time_res_stack:
        video = in_time(block, video, taps(2, 5))
    assert relative_error(encoder(image), video[:, :, 0]) < 1e-5
    assert not torch.allclose(encoder(image), frame, rtol=0.1)


@torch.no_grad()
def test_the_first_decoded_frame_is_that_of_the_video():
    decoder = randomised(Emu3Decoder(SMALL, 5))
    codes = torch.randn(2, 5, 3, 4)
    seen = {}
    decoder.conv_in.register_forward_pre_hook(lambda module, args: seen.update(latent=args[0]))
    decoder.mid.register_forward_pre_hook(lambda module, args: seen.update(codes=args[1]))
    image = decoder(codes)
    assert image.shape == (2, 3, 12, 16)

    latent = causal(decoder.post_quant_conv, codes[:, :, None], torch.randn(5, 5, 2, 1, 1))
    video = torch.cat([latent, codes[:, :, None]])
    for block in decoder.time_res_stack:
        video = in_time(block, video, taps(2, 5))
    for conv in decoder.time_conv:
        video = F.silu(causal(conv, video.repeat_interleave(2, 2), taps(1, 5)[0]))
    assert video.shape[2] == 4
    first_latent, first_codes = video[:, :, 0].chunk(2)
    assert relative_error(seen["latent"], first_latent) < 1e-5
    assert relative_error(seen["codes"], first_codes) < 1e-5
    assert not torch.allclose(video[:, :, 0], video[:, :, 3], rtol=0.1)


@torch.no_grad()
def test_code_norm_is_convolutions_of_the_codes_spread_over_pixels():
    norm = randomised(CodeNorm(4, 8, 5))
    x, codes = torch.randn(2, 8, 12, 20), torch.randn(2, 5, 3, 5)
    spread = F.interpolate(codes, size=(12, 20), mode="nearest")
    expected = norm.norm_layer(x) * norm.conv_y(spread) + norm.conv_b(spread)
    torch.testing.assert_close(norm(x, codes), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(spread[:, :1].expand(-1, 8, -1, -1), codes).shape, x.shape)


def test_batch_norm_counts_latents_and_codes_together():
    decoder = randomised(Emu3Decoder(SMALL, 5)).train()
    norm, codes = decoder.time_res_stack[0].norm1, torch.randn(2, 5, 3, 4)
    before = norm.running_mean.clone()
    decoder(codes)
    both = torch.cat([decoder.post_quant_conv(codes), codes]).detach()
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * both.mean((0, 2, 3)))


@pytest.mark.parametrize("options", [{}, {"frames": 1, "temporal_blocks": 0}, {"frames": 8, "multipliers": (1,)}])
def test_sizes_follow_from_the_options(options):
    levels = {"attention_levels": (0,)} if "multipliers" in options else {}
    config = Emu3Config(**vars(SMALL) | options | levels)
    encoder, decoder = Emu3Encoder(config, 6), Emu3Decoder(config, 6)
    f = config.downsampling
    assert f == 2 ** (len(config.multipliers) - 1)
    assert len(encoder.time_conv) == len(decoder.time_conv) == {4: 2, 1: 0, 8: 3}[config.frames]
    assert sum(isinstance(part, TimeBlock) for part in decoder.modules()) == config.temporal_blocks
    assert decoder.last_layer is decoder.conv_out.weight
    with torch.no_grad():
        z = encoder(torch.randn(2, 3, 4 * f, 3 * f))
        assert z.shape == (2, 6, 4, 3)
        assert decoder(z).shape == (2, 3, 4 * f, 3 * f)


def test_full_width_has_the_parameters_of_the_published_file_less_those_of_time():
    config = Emu3Config()
    with torch.device("meta"):
        parts = [Emu3Encoder(config, 4), Emu3Decoder(config, 4), nn.Conv2d(4, 4, 1), nn.Embedding(32768, 4)]
    ours = sum(value.numel() for part in parts for value in part.parameters())
    # Two taps of 3: of both convolutions around the codes, of 8 in blocks, of 2 that double time.
    of_time = 2 * (2 * 4 * 4) + 8 * (2 * 4 * 4 * 9) + 2 * (2 * 4 * 4 * 9)
    assert ours == 270_740_287 - of_time


def test_whole_graphs_compile():
    smaller = replace(SMALL, multipliers=(1, 2), attention_levels=(1,), temporal_blocks=1)
    encoder, decoder = randomised(Emu3Encoder(smaller, 4)), randomised(Emu3Decoder(smaller, 4))
    image = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        z = encoder(image)
        assert relative_error(torch.compile(encoder, fullgraph=True, backend="eager")(image), z) < 1e-6
        assert relative_error(torch.compile(decoder, fullgraph=True, backend="eager")(z), decoder(z)) < 1e-6


def test_gradients_reach_every_parameter():
    encoder, decoder = Emu3Encoder(SMALL, 4), Emu3Decoder(SMALL, 4)
    decoder(encoder(torch.randn(2, 3, 8, 4))).square().mean().backward()
    for half in (encoder, decoder):
        for name, value in half.named_parameters():
            assert value.grad is not None, name
            assert torch.isfinite(value.grad).all(), name


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_in_it(dtype):
    encoder, decoder = randomised(Emu3Encoder(SMALL, 4)), randomised(Emu3Decoder(SMALL, 4))
    image = torch.rand(1, 3, 8, 12)
    z, pixels = encoder(image), decoder(encoder(image))
    assert (encoder.to(dtype)(image.to(dtype)).dtype, decoder.to(dtype)(z.to(dtype)).dtype) == (dtype, dtype)
    assert relative_error(decoder(z.to(dtype)).float(), pixels) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0: expected a power of two"),
        ({"frames": 6}, "frames=6: expected a power of two"),
        ({"temporal_blocks": -1}, "temporal_blocks=-1"),
        ({"image_channels": 0}, "image_channels=0"),
        ({"channels": 16}, "channels=16: expected a multiple of groups=32"),
        ({"multipliers": ()}, r"multipliers=\(\)"),
        ({"blocks": 0}, "blocks=0"),
        ({"attention_levels": (4,)}, r"attention_levels=\(4,\): levels are 0..3"),
    ],
)
def test_impossible_nets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Emu3Config(**options)
