"""A quantizer between two linear maps: it learns both, and uses a large codebook where a wide one is left unused."""

import pytest
import torch

from quantizers import FSQ, VQ, Gaussian, Projected


def vq64(dim=2):
    return VQ(64, dim, decay=0.9)


def sheet(count, seed=0):
    """Points near a plane in 16 dimensions."""
    plane = torch.randn(2, 16, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    noise = 0.05 * torch.randn(count, 16, generator=generator)
    return ((torch.rand(count, 2, generator=generator) * 2 - 1) @ plane + 0.3 + noise)[None]


def learned(projected, learning_rate=1e-2):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(projected.parameters(), learning_rate)
    for seed in range(300):
        z = sheet(256, seed)
        out = projected(z)
        loss = (out.z_BND - z).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return projected.eval()


def error(quantizer, z):
    with torch.no_grad():
        return float((quantizer.decode(quantizer.encode(z)) - z).square().mean())


@pytest.mark.parametrize("inner", [vq64, lambda: FSQ([8, 8])], ids=["vq", "fsq"])
def test_both_maps_learn(inner):
    held_out = sheet(2000, seed=1000)
    projected = learned(Projected(inner(), 16))
    half = Projected(inner(), 16)
    half.project_in.requires_grad_(False)
    learned(half)
    assert error(projected, held_out) < 0.1 * float(held_out.var((0, 1)).mean())
    assert error(projected, held_out) < 0.2 * error(half, held_out)
    assert len(projected.encode(held_out).unique()) >= 50


def test_it_is_the_quantizer_inside_between_the_maps():
    projected = Projected(vq64(dim=3), 5, norm=True).eval()
    z = torch.randn(2, 7, 5)
    inside = torch.nn.functional.layer_norm(z @ projected.project_in.weight.T + projected.project_in.bias, (3,))
    codes = projected.quantizer.encode(inside)
    out = projected(z)
    assert torch.equal(projected.encode(z), codes)
    assert torch.equal(out.codes_BNS, codes)
    rows = projected.quantizer.decode(codes)
    expected = rows @ projected.project_out.weight.T + projected.project_out.bias
    torch.testing.assert_close(projected.decode(codes), expected)
    torch.testing.assert_close(out.z_BND, expected)
    torch.testing.assert_close(out.loss, 0.25 * (inside - rows).square().mean())


def test_decode_is_differentiable_in_the_map_out():
    projected = Projected(vq64(), 5)
    projected.decode(torch.randint(64, (1, 9, 1))).square().mean().backward()
    assert bool(projected.project_out.weight.grad.any())
    assert projected.project_in.weight.grad is None


def test_without_bias_there_is_none():
    assert {name for name, _ in Projected(vq64(), 5, bias=False).named_parameters()} == {
        "project_in.weight",
        "project_out.weight",
    }


def test_masked_positions_give_zero_although_the_map_out_has_a_bias():
    projected, mask = Projected(vq64(), 5), torch.tensor([[True, False, True]])
    out = projected(torch.randn(1, 3, 5), mask)
    assert not bool(out.z_BND[0, 1].any())
    assert bool(out.z_BND[0, 0].any())
    assert float(projected.quantizer.count_K.sum()) == pytest.approx(count_of(2))


def count_of(vectors):
    alone = vq64()
    alone(torch.randn(1, vectors, 2))
    return float(alone.count_K.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_dim": 0}, "in_dim=0"),
        ({"norm": True}, "norm=True: normalising 2 channels"),
        ({"inner": Gaussian(2)}, "inner.kind = 'gaussian'"),
        ({"inner": [vq64()]}, r"inner=\[VQ.*expected a quantizer"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Projected(**{"inner": vq64(), "in_dim": 5} | change)
