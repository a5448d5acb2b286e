"""What the transformer of generators is made of; its parts are tested with the blocks."""

import pytest
import torch
import torch.nn.functional as F

from backbones.mask import prefix_mask
from backbones.trunk import Trunk, TrunkConfig
from tokenizers_mm.blocks.attention import attend
from tokenizers_mm.blocks.cache import KeyValueCache
from tokenizers_mm.blocks.rotary import rotate, rotation


def build(**options):
    """A trunk whose weights are all random, so that everything has an effect."""
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(width=16, heads=2, **options))
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return trunk.requires_grad_(False)


def test_a_fresh_trunk_is_the_identity_up_to_its_norm():
    for adaptive in (False, True):
        trunk = Trunk(TrunkConfig(width=16, depth=2, heads=2, adaptive=adaptive))
        x, mask = torch.randn(2, 4, 16), prefix_mask(torch.ones(2, 1, dtype=torch.bool), 3)
        out = trunk(x, torch.arange(4)[:, None], mask, condition=torch.randn(2, 16) if adaptive else None)
        torch.testing.assert_close(out, F.layer_norm(x, (16,)))


def test_it_is_the_formula():
    """Queries and keys through LayerNorm, positions of one axis with a base of 10 000, SwiGLU, no biases."""
    trunk, x, position = build(depth=1), torch.randn(2, 5, 16), torch.arange(5)[:, None]
    (block,), mask = trunk.blocks, prefix_mask(torch.tensor([[True, True], [True, False]]), 3)
    h = F.layer_norm(x, (16,)) * block.norm_attention.weight
    q, k, v = (h @ block.attention.qkv.weight.T).view(2, 5, 3, 2, 8).unbind(2)
    q, k = (rotate(F.layer_norm(part, (8,)), rotation(position, 8, 10_000.0)) for part in (q, k))
    q = q * block.attention.sharpness
    mixed = attend(*(part.transpose(1, 2) for part in (q, k, v)), mask).transpose(1, 2).flatten(2)
    h = x + mixed @ block.attention.out.weight.T
    gate, up = (F.layer_norm(h, (16,)) * block.norm_mlp.weight @ block.mlp.gate_up.weight.T).chunk(2, -1)
    h = h + (F.silu(gate) * up) @ block.mlp.down.weight.T
    torch.testing.assert_close(trunk(x, position, mask), F.layer_norm(h, (16,)) * trunk.norm.weight)
    assert block.mlp.down.in_features == 32  # 8/3 of the width, in multiples of 32


def test_saved_generators_have_these_parameters():
    trunk = Trunk(TrunkConfig(width=24, depth=1, heads=2, adaptive=True))
    assert {name: tuple(p.shape) for name, p in trunk.named_parameters()} == {
        "blocks.0.norm_attention.weight": (24,),
        "blocks.0.attention.sharpness": (2, 1),
        "blocks.0.attention.qkv.weight": (72, 24),
        "blocks.0.attention.out.weight": (24, 24),
        "blocks.0.norm_mlp.weight": (24,),
        "blocks.0.mlp.gate_up.weight": (128, 24),
        "blocks.0.mlp.down.weight": (24, 64),
        "blocks.0.modulation.weight": (144, 24),
        "blocks.0.modulation.bias": (144,),
        "norm.weight": (24,),
    }


def test_cached_positions_equal_the_whole_sequence():
    trunk, x, position = build(depth=3), torch.randn(2, 6, 16), torch.arange(6)[:, None]
    mask = prefix_mask(torch.tensor([[True, True], [True, False]]), 4)
    cache, parts = KeyValueCache(), []
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        parts.append(trunk(x[:, start:stop], position[start:stop], mask[:, start:stop, :stop], cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), trunk(x, position, mask), atol=1e-5, rtol=1e-5)


def test_the_condition_modulates():
    trunk = build(depth=1, adaptive=True)
    x, mask = torch.randn(1, 3, 16), torch.ones(1, 3, 3, dtype=torch.bool)
    outs = [trunk(x, torch.arange(3)[:, None], mask, condition=torch.full((1, 16), c)) for c in (0.0, 1.0)]
    assert not torch.allclose(outs[0], outs[1])


@pytest.mark.parametrize("options", [{"width": 12, "heads": 4}, {"depth": 0}])
def test_impossible_sizes_are_refused(options):
    named = "".join(f".*{name}={value}" for name, value in options.items())
    with pytest.raises(ValueError, match=named):
        TrunkConfig(**options)
