"""What the transformer of the ViT nets is made of; its parts are tested with the blocks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tokenizers_mm.blocks.attention import attend
from tokenizers_mm.blocks.positions import grid_positions
from tokenizers_mm.blocks.rotary import rotate, rotation
from tokenizers_mm.nets.transformer import GridTransformer, TransformerConfig

SIZE = TransformerConfig(width=16, depth=2, heads=2)


def layer_norm(x, norm):
    return F.layer_norm(x, (16,), norm.weight, norm.bias, eps=1e-6)


def test_it_is_the_formula():
    """Queries and keys through RMSNorm, positions of two axes with a base of 100, SwiGLU, biases, an eps of 1e-6."""
    trunk, x, position = GridTransformer(replace(SIZE, depth=1)), torch.randn(2, 6, 16) * 1e-3, grid_positions(2, 3)
    for parameter in trunk.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    (block,), mask = trunk.blocks, torch.ones(6, 6).tril().bool()
    qkv = F.linear(layer_norm(x, block.norm_attention), block.attention.qkv.weight, block.attention.qkv.bias)
    q, k, v = qkv.view(2, 6, 3, 2, 8).unbind(2)
    q, k = (rotate(part / part.square().mean(-1, True).sqrt(), rotation(position, 8, 100.0)) for part in (q, k))
    q = q * block.attention.sharpness.view(2, 1)
    mixed = attend(*(part.transpose(1, 2) for part in (q, k, v)), mask).transpose(1, 2).flatten(2)
    h = x + F.linear(mixed, block.attention.out.weight, block.attention.out.bias)
    gate, up = F.linear(layer_norm(h, block.norm_mlp), block.mlp.up.weight, block.mlp.up.bias).chunk(2, -1)
    h = h + F.linear(F.silu(gate) * up, block.mlp.out.weight, block.mlp.out.bias)
    torch.testing.assert_close(trunk(x, position, mask), layer_norm(h, trunk.norm), atol=1e-5, rtol=1e-5)


def test_saved_tokenizers_have_these_parameters():
    trunk = GridTransformer(TransformerConfig(width=24, depth=1, heads=2), adaptive=True)
    assert {name: tuple(p.shape) for name, p in trunk.named_parameters()} == {
        "blocks.0.norm_attention.weight": (24,),
        "blocks.0.norm_attention.bias": (24,),
        "blocks.0.attention.sharpness": (2, 1, 1),
        "blocks.0.attention.qkv.weight": (72, 24),
        "blocks.0.attention.qkv.bias": (72,),
        "blocks.0.attention.out.weight": (24, 24),
        "blocks.0.attention.out.bias": (24,),
        "blocks.0.norm_mlp.weight": (24,),
        "blocks.0.norm_mlp.bias": (24,),
        "blocks.0.mlp.up.weight": (128, 24),
        "blocks.0.mlp.up.bias": (128,),
        "blocks.0.mlp.out.weight": (24, 64),
        "blocks.0.mlp.out.bias": (24,),
        "blocks.0.modulation.weight": (144, 24),
        "blocks.0.modulation.bias": (144,),
        "norm.weight": (24,),
        "norm.bias": (24,),
    }


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_sizes(mlp, norm):
    """Parameters of a block: 4 E^2 + heads, the feed-forward layers, and norms."""
    size = replace(SIZE, mlp=mlp, norm=norm)
    per_norm = 32 if norm == "layer" else 16
    inside, first = (48, 96) if mlp == "swiglu" else (64, 64)
    block = 3 * 16 * 16 + 48 + 16 * 16 + 16 + 2 + 16 * first + first + inside * 16 + 16 + 2 * per_norm
    assert sum(p.numel() for p in GridTransformer(size).parameters()) == 2 * block + per_norm
    out = GridTransformer(size)(torch.randn(3, 4, 16), grid_positions(2, 2)).detach()
    assert 0.5 < float(out.std()) < 2
    assert TransformerConfig(width=768, heads=12).inside == 2048  # the usual 8/3


def test_depth_does_not_make_the_residual_stream_larger():
    torch.manual_seed(0)
    x_BLE, position_L2 = torch.randn(4, 16, 64), grid_positions(4, 4)
    grown = []
    for depth in (2, 24):
        trunk = GridTransformer(TransformerConfig(width=64, depth=depth, heads=4))
        trunk.norm = torch.nn.Identity()
        grown.append(float(trunk(x_BLE, position_L2).detach().std()))
    assert grown[1] < 1.3 * grown[0]


@torch.no_grad()
def test_a_fresh_adaptive_transformer_is_the_plain_one():
    """Modulation starts at zero, so the condition matters only once it has been trained."""
    plain, x_BLE, position_L2 = GridTransformer(SIZE), torch.randn(2, 4, 16), grid_positions(2, 2)
    trunk, conditions = GridTransformer(SIZE, adaptive=True), torch.randn(2, 2, 16)
    assert trunk.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    for condition in conditions:
        torch.testing.assert_close(trunk(x_BLE, position_L2, condition=condition), plain(x_BLE, position_L2))
    for block in trunk.blocks:
        block.modulation.weight.normal_(std=0.1)
    first, second = (trunk(x_BLE, position_L2, condition=condition) for condition in conditions)
    assert float((first - second).abs().max()) > 1e-2


def test_impossible_sizes_are_refused():
    for options in ({"width": 24, "heads": 4}, {"depth": 0}, {"hidden": 0, "heads": 0}):
        with pytest.raises(ValueError, match="width a multiple of 4 \\* heads"):
            TransformerConfig(**options)
