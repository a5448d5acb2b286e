"""The transformer's parts against plain references."""

import torch
import torch.nn.functional as F

from backbones.mask import prefix_mask
from backbones.trunk import Cache, Trunk, TrunkConfig, attend, rotate, rotation


def test_attention_equals_the_fused_kernel():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.rand(2, 5, 7) < 0.6
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
    torch.testing.assert_close(attend(q, k, v, mask), expected, atol=1e-6, rtol=1e-5)


def test_rotation_depends_on_distance_only_and_keeps_lengths():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 1, 8), torch.randn(1, 1, 1, 1, 8)

    def score(q_position, k_position):
        turned = [rotate(x, *rotation(torch.tensor([[p]]), 8)) for x, p in ((q, q_position), (k, k_position))]
        torch.testing.assert_close(turned[0].norm(), q.norm())
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(3, 1), score(12, 10), atol=1e-5, rtol=0)
    assert not torch.isclose(score(3, 1), score(3, 2), atol=1e-3)


def test_a_fresh_trunk_is_the_identity_up_to_its_norm():
    for adaptive in (False, True):
        trunk = Trunk(TrunkConfig(width=16, depth=2, heads=2, adaptive=adaptive))
        x, mask = torch.randn(2, 4, 16), prefix_mask(torch.ones(2, 1, dtype=torch.bool), 3)
        out = trunk(x, torch.arange(4)[None], mask, condition_BE=torch.randn(2, 16) if adaptive else None)
        torch.testing.assert_close(out, F.layer_norm(x, (16,)))


def test_cached_positions_equal_the_whole_sequence():
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(width=16, depth=3, heads=2))
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, position = torch.randn(2, 6, 16), torch.arange(6)[None]
    mask = prefix_mask(torch.tensor([[True, True], [True, False]]), 4)
    cache, parts = Cache(), []
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        parts.append(trunk(x[:, start:stop], position[:, start:stop], mask[:, start:stop, :stop], cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), trunk(x, position, mask), atol=1e-5, rtol=1e-5)


def test_the_condition_modulates():
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(width=16, depth=1, heads=2, adaptive=True))
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, mask = torch.randn(1, 3, 16), torch.ones(1, 3, 3, dtype=torch.bool)
    outs = [trunk(x, torch.arange(3)[None], mask, condition_BE=torch.full((1, 16), c)) for c in (0.0, 1.0)]
    assert not torch.allclose(outs[0], outs[1])
