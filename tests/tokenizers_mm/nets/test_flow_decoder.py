from dataclasses import replace

import pytest
import torch
from torch import nn

from tokenizers_mm import AutoencoderConfig, Tokens, build_autoencoder
from tokenizers_mm.fast.convolutions import optimize
from tokenizers_mm.models.tiled import Tiled
from tokenizers_mm.nets import ConvConfig, FlowDecoder, FlowDecoderConfig, Geometry, QueryConfig, ViTConfig
from tokenizers_mm.nets.transformer import TransformerConfig

SIZE = TransformerConfig(width=16, depth=1, heads=2)
FLOW = FlowDecoderConfig(patch=2, size=SIZE, steps=4)
MAP, SEQUENCE = Geometry((8, 12), 4), Geometry((8, 12), 4, 5)
IMAGE = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
LATENT = torch.randn(2, 6, 2, 3, generator=torch.Generator().manual_seed(0))


def model_of(net=None, flow=FLOW, bottleneck=None, **changes):
    torch.manual_seed(0)
    net = net or ViTConfig(patch=4, encoder=SIZE)
    options = {"image_size": (8, 12), "bottleneck": bottleneck or {"kind": "identity", "dim": 3}}
    return build_autoencoder(AutoencoderConfig(**options | changes, net=net, decoder_net=flow)).eval()


def perturbed(decoder):
    """With weights where new ones are zero."""
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return decoder


# -------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
@pytest.mark.parametrize("predicts", ["velocity", "data"])
def test_loss_is_that_of_the_velocity(predicts, times):
    """A new net gives zeros: as a velocity, or as data, whose velocity at x_t is -x_t / (1 - t), at most 20 x_t."""
    decoder = FlowDecoder(replace(FLOW, predicts=predicts, times=times), 6, MAP)
    torch.manual_seed(3)
    loss = decoder.velocity_loss(LATENT, IMAGE)
    torch.manual_seed(3)
    t = torch.randn(2).sigmoid() if times == "logit_normal" else torch.rand(2)
    torch.rand(2)  # who is hidden
    noise = torch.randn_like(IMAGE)
    t = t[:, None, None, None]
    guess = 0 if predicts == "velocity" else -(t * IMAGE + (1 - t) * noise) / (1 - t).clamp(min=0.05)
    torch.testing.assert_close(loss, (guess - (IMAGE - noise)).square().mean())


@pytest.mark.parametrize("geometry", [MAP, SEQUENCE], ids=["map", "sequence"])
def test_everything_learns_and_so_do_the_tokens(geometry):
    latent = LATENT if geometry is MAP else torch.randn(2, 6, 1, 5)
    decoder = perturbed(FlowDecoder(replace(FLOW, drop=0.5), 6, geometry))
    latent = latent.requires_grad_()
    torch.manual_seed(1)  # hides one of the two
    decoder.velocity_loss(latent, IMAGE).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not bool(p.grad.any())] == []
    assert sorted(bool(grad.any()) for grad in latent.grad) == [False, True]


def test_it_paints_what_the_tokens_say():
    """Four images by heart: each comes out of its own tokens, and not out of those of another."""
    torch.manual_seed(0)
    decoder = FlowDecoder(replace(FLOW, steps=8, drop=0.0), 6, MAP)
    image = torch.rand(4, 3, 2, 3).sub(0.5).sign().repeat_interleave(4, 2).repeat_interleave(4, 3)
    latent = torch.randn(4, 6, 2, 3)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(240):
        decoder.velocity_loss(latent, image).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        own, other = ((decoder(z) - image).square().mean() for z in (latent, latent.roll(1, 0)))
    assert float(own) < 0.1  # of pixels of +-1
    assert float(other) > 1


# -------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_net_that_knows_the_data_gives_the_data(solver):
    class Known(nn.Module):
        def forward(self, x_BLE, grid):
            return IMAGE

    decoder = FlowDecoder(replace(FLOW, solver=solver), 6, MAP)
    decoder.pixels = Known()
    torch.testing.assert_close(decoder(LATENT), IMAGE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("solver", "times"), [("euler", [0, 0.5]), ("heun", [0, 0.5, 0.5])])
def test_decoding_never_asks_at_time_1(solver, times):
    """Nets are not trained there, so the last step of Heun's method is one of Euler's."""
    decoder, seen = FlowDecoder(replace(FLOW, solver=solver, steps=2), 6, MAP), []
    decoder.velocity = lambda x, t, latent: seen.append(t.tolist()) or x
    decoder(LATENT)
    assert seen == [[t, t] for t in times]


@torch.no_grad()
def test_decoding_is_deterministic_and_no_image_depends_on_its_batch():
    decoder = perturbed(FlowDecoder(FLOW, 6, MAP))
    state = torch.get_rng_state()
    first = decoder(LATENT)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(decoder(LATENT), first)
    torch.testing.assert_close(decoder(LATENT[1:]), first[1:], atol=1e-5, rtol=1e-5)
    decoder.config = replace(FLOW, seed=1)
    assert float((decoder(LATENT) - first).abs().max()) > 0.1


@torch.no_grad()
def test_guidance_moves_away_from_the_unconditional_velocity():
    """In one Euler step the image is noise + velocity, so it is linear in the guidance."""
    decoder = perturbed(FlowDecoder(replace(FLOW, steps=1), 6, MAP))
    plain = decoder(LATENT)
    null = decoder(decoder.null_D[:, None, None].expand_as(LATENT))
    decoder.config = replace(FLOW, steps=1, guidance=3.0)
    torch.testing.assert_close(decoder(LATENT), null + 3 * (plain - null), atol=1e-4, rtol=1e-4)
    assert float((plain - null).abs().max()) > 1e-2


@torch.no_grad()
def test_tokens_of_a_map_act_where_they_lie():
    """Without attention between positions, a token changes its own patches alone, and each of them differently."""
    decoder = perturbed(FlowDecoder(replace(FLOW, steps=1), 6, MAP))
    for block in decoder.trunk.blocks:
        block.attention.out.weight.zero_()
    moved = LATENT.clone()
    moved[:, :, 1, 2] += 1
    change = decoder(moved) - decoder(LATENT)
    assert not bool(change[:, :, :4].any())
    assert not bool(change[:, :, 4:, :8].any())
    corner = change[:, :, 4:, 8:]
    assert float((corner[..., :2, :2] - corner[..., 2:, 2:]).abs().max()) > 1e-3


# ------------------------------------------------------------------------------------------------- in a tokenizer


def test_a_generative_tokenizer():
    model = model_of()
    assert model.generative
    assert model.last_layer is model.decoder.pixels.project.weight
    _, vectors = model.train().quantized(IMAGE)
    loss = model.velocity_loss(vectors, IMAGE)
    perturbed(model.decoder)
    (grad,) = torch.autograd.grad(model.velocity_loss(vectors, IMAGE), model.quant_conv.weight)
    assert loss.shape == ()
    assert bool(grad.any())
    model.eval()
    tokens = model.encode(IMAGE)
    assert torch.equal(model.decode(tokens), model.decode(tokens))
    assert model.decode(Tokens(latents_BND=torch.randn(1, 12, 3), grid=(4, 3))).shape == (1, 3, 16, 12)
    plain = model_of(flow=None)
    assert not plain.generative
    with pytest.raises(ValueError, match="velocity_loss: this decoder is no flow"):
        plain.velocity_loss(vectors, IMAGE)


def test_velocity_is_that_of_what_the_nets_see():
    model = model_of(pixel_mean=(0.0,), pixel_std=(1.0,))
    _, vectors = model.quantized(IMAGE)
    torch.manual_seed(0)
    loss = model.velocity_loss(vectors, IMAGE)
    torch.manual_seed(0)
    z_BDhw = model.post_quant_conv(vectors.as_map())
    assert torch.equal(loss, model.decoder.velocity_loss(z_BDhw, (IMAGE + 1) / 2))


def test_nested_tokens_and_every_prefix():
    net = QueryConfig(patch=4, tokens=5, encoder=SIZE, nested=True)
    model = model_of(net, bottleneck={"kind": "fsq", "levels": [5, 5]})
    codes = model.encode(IMAGE).codes_BNS
    for k in range(1, 6):
        assert model.decode(Tokens(codes_BNS=codes[:, :k])).shape == IMAGE.shape
    perturbed(model.decoder)
    _, vectors = model.train().quantized(IMAGE)
    model.velocity_loss(vectors, IMAGE).backward()
    assert bool(model.mask_token_D.grad.any())


def test_latents_of_another_tokenizer_in_place_of_images():
    """What the module says: image_channels of its latents, image_size of its grid, latents as [B, D, h, w]."""
    inner = build_autoencoder(
        AutoencoderConfig(
            image_size=(16, 24),
            bottleneck={"kind": "gaussian", "dim": 5},
            net=ConvConfig(channels=8, groups=4, multipliers=(1,), blocks=1, patch=2),
        )
    ).eval()
    tokens = inner.encode(torch.rand(2, 3, 16, 24))
    latent = tokens.data.transpose(1, 2).unflatten(2, tokens.grid)
    net = QueryConfig(patch=2, tokens=5, encoder=SIZE, image_channels=5)
    outer = model_of(net, replace(FLOW, image_channels=5), pixel_mean=(0.5,))
    out = outer.decode(outer.encode(latent))
    assert out.shape == latent.shape
    assert inner.decode(Tokens(latents_BND=out.flatten(2).transpose(1, 2), grid=tokens.grid)).shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, r"decoder_net.patch=3: expected a divisor of the downsampling 4"),
        ({"patch": 8}, r"decoder_net.patch=8: expected a divisor of the downsampling 4"),
        ({"image_channels": 1}, "decoder_net gives 1 image channels, net takes 3"),
        ({"steps": 0}, "steps=0"),
        ({"drop": 1.0}, r"drop=1.0: expected a fraction in \[0, 1\)"),
        ({"drop": 0.0, "guidance": 2.0}, "guidance=2.0: needs drop > 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        model_of(flow=replace(FLOW, **options))


def test_what_cannot_take_a_flow_says_so():
    with pytest.raises(ValueError, match=r"linear=True: needs.*decoder"):
        model_of(linear=True)
    with pytest.raises(ValueError, match=r"decoder:.*would paint"):
        Tiled(model_of(), 8)
    with pytest.raises(ValueError, match=r"mode='fast':.*decoder FlowDecoder.*3x3 convolution"):
        optimize(model_of(), "fast")
    half = optimize(model_of(), "bf16")
    assert half.decode(half.encode(IMAGE)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"decoder_net.patch=5: expected.*divisor.*\(8, 12\)"):
        FlowDecoder(replace(FLOW, patch=5), 6, SEQUENCE)
