"""Block, feed-forward layers, norms and modulation against their formulas, and against torch's own encoder layer."""

import math

import pytest
import torch
from torch import nn

from tokenizers_mm.blocks.attention import Attention
from tokenizers_mm.blocks.block import Block, modulate
from tokenizers_mm.blocks.cache import KeyValueCache
from tokenizers_mm.blocks.encoder import encoder_layer
from tokenizers_mm.blocks.linear import scaled, zero_linear
from tokenizers_mm.blocks.mlp import Mlp, swiglu
from tokenizers_mm.blocks.norms import normalisation
from tokenizers_mm.blocks.rotary import rotation
from tokenizers_mm.blocks.transformer import Transformer

WIDTH, HEADS = 16, 2


def block(*, adaptive=False, norm="layer", **options):
    return Block(
        normalisation(norm, WIDTH, eps=1e-5), Attention(WIDTH, HEADS, **options),
        normalisation(norm, WIDTH, eps=1e-5), Mlp(WIDTH, 4 * WIDTH, "gelu"),
        zero_linear(WIDTH, 6 * WIDTH) if adaptive else None,
    )  # fmt: skip


def with_random_weights(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return module.requires_grad_(False)


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_their_formulas(bias):
    x = random(3, 8) * 0.01 + 0.02
    layer, rms = (with_random_weights(normalisation(norm, 8, eps=1e-3, bias=bias)) for norm in ("layer", "rms"))
    centred = x - x.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * layer.weight
    torch.testing.assert_close(layer(x), wanted + layer.bias if bias else wanted)
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * rms.weight)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_feed_forward_layers_are_their_formulas(kind):
    layer, x = with_random_weights(Mlp(8, 12, kind)), random(2, 3, 8)
    h = x @ layer.up.weight.T + layer.up.bias
    if kind == "gelu":
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    else:
        h = h[..., :12] / (1 + (-h[..., :12]).exp()) * h[..., 12:]
    wanted = h @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x), wanted)
    if kind == "swiglu":  # the gates come first
        h = x @ layer.up.weight.T + layer.up.bias
        assert not torch.allclose(layer.out(swiglu(h.roll(12, -1))), wanted)


@pytest.mark.parametrize("per_position", [False, True])
def test_a_modulated_block_is_the_formula(per_position):
    part, x = with_random_weights(block(adaptive=True)), random(2, 5, WIDTH)
    turns, mask = rotation(torch.arange(5.0)[:, None], 8, 100.0), torch.ones(5, 5).tril().bool()
    condition = random(2, 5, WIDTH, seed=2) if per_position else random(2, WIDTH, seed=2)
    rows = (condition if per_position else condition[:, None]) @ part.modulation.weight.T + part.modulation.bias
    scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = rows.split(WIDTH, -1)
    h = x + (1 + gate_a) * part.attention(part.norm_attention(x) * (1 + scale_a) + shift_a, turns, mask)
    wanted = h + (1 + gate_m) * part.mlp(part.norm_mlp(h) * (1 + scale_m) + shift_m)
    torch.testing.assert_close(part(x, turns, mask, condition=condition), wanted)
    assert not torch.allclose(part(x, turns, mask, condition=-condition), wanted)


def test_gates_that_are_not_added_to_one_have_it_taken_from_their_bias():
    """What `Block` says about adaLN-Zero: a block that starts with gates of 0 is the identity."""
    part, x = block(adaptive=True), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        part.modulation.bias.view(6, WIDTH)[[2, 5]] = -1
    torch.testing.assert_close(part(x, condition=torch.randn(2, WIDTH)), x)


def test_modulate_is_its_formula():
    x, scale, shift = random(3, 4, 4)
    torch.testing.assert_close(modulate(x, scale, shift), x * (1 + scale) + shift)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["written out", "fused kernel"])
def test_a_plain_block_is_the_encoder_layer_of_torch(padded, training):
    """The same function of the same weights under other names, so there is one mathematics and not two."""
    ours, theirs = block().double(), with_random_weights(encoder_layer(WIDTH, HEADS)).train(training)
    names = {
        "norm_attention": "norm1", "norm_mlp": "norm2", "attention.out": "self_attn.out_proj",
        "mlp.up": "linear1", "mlp.out": "linear2",
    }  # fmt: skip
    state = {f"attention.qkv.{part}": theirs.state_dict()[f"self_attn.in_proj_{part}"] for part in ("weight", "bias")}
    state |= {f"{a}.{p}": theirs.state_dict()[f"{b}.{p}"] for a, b in names.items() for p in ("weight", "bias")}
    ours.load_state_dict(state)
    x, real = random(2, 5, WIDTH), torch.ones(2, 5).bool()
    if padded:
        real[1, 3:] = False
    found, wanted = ours(x, None, real[:, None].expand(-1, 5, -1)), theirs(x, src_key_padding_mask=~real)
    torch.testing.assert_close(found[real], wanted[real])
    assert padded == (not torch.allclose(found[real], ours(x)[real]))


# ----------------------------------------------------------------------------------------------------- the stack


def stack(depth=3, **options):
    blocks = (block(**options) for _ in range(depth))
    return with_random_weights(Transformer(blocks, normalisation("layer", WIDTH, eps=1e-5), head_dim=8, base=100.0))


def test_a_transformer_is_its_blocks_and_a_norm():
    model, x, place = stack(), random(2, 5, WIDTH), random(5, 2)
    mask, states = torch.ones(5, 5).tril().bool(), []
    for part in model.blocks:
        states.append(part(states[-1] if states else x, rotation(place, 8, 100.0), mask))
    found = list(model.states(x, place, mask))
    assert all(torch.equal(a, b) for a, b in zip(found, states, strict=True))
    assert torch.equal(model(x, place, mask), model.norm(states[-1]))
    assert sorted({name.split(".")[0] for name in model.state_dict()}) == ["blocks", "norm"]


def test_states_run_no_further_than_they_are_asked_for():
    model, ran = stack(), []
    for i, part in enumerate(model.blocks):
        part.register_forward_hook(lambda *_, i=i: ran.append(i))
    next(model.states(random(2, 5, WIDTH), random(5, 2)))
    assert ran == [0]


@pytest.mark.parametrize("places", ["shared", "each"])
def test_cached_positions_equal_the_whole_sequence(places):
    model, x = stack(qk_norm="layer", explicit_on_cpu=True), random(2, 6, WIDTH)
    place = torch.arange(6.0)[:, None] if places == "shared" else random(2, 6, 1)
    mask = torch.ones(2, 6, 6).tril().bool()
    mask[1, :, 1] = False
    mask[1, 1, 1] = True
    cache = KeyValueCache()
    parts = [model(x[:, a:b], place[..., a:b, :], mask[:, a:b, :b], cache=cache) for a, b in ((0, 2), (2, 3), (3, 6))]
    torch.testing.assert_close(torch.cat(parts, 1), model(x, place, mask))
    assert not torch.allclose(torch.cat(parts, 1), model(x, place, torch.ones(6, 6).tril().bool()))


def test_a_condition_that_is_missing_or_unread_is_refused():
    x, place = random(2, 5, WIDTH), random(5, 2)
    with pytest.raises(ValueError, match="condition=None"):
        stack(adaptive=True)(x, place)
    with pytest.raises(ValueError, match=r"condition=a tensor \(2, 16\)"):
        stack()(x, place, condition=random(2, WIDTH))
    assert stack(adaptive=True)(x, place, condition=random(2, WIDTH)).shape == x.shape


def test_how_linear_layers_start():
    layer = scaled(nn.Linear(400, 300), 0.5)
    assert float(layer.weight.detach().std()) == pytest.approx(0.5 / 20, rel=0.02)
    assert not bool(layer.bias.any())
    assert not any(bool(p.any()) for p in zero_linear(3, 5).parameters())
    assert scaled(nn.Linear(3, 5, bias=False)).bias is None
