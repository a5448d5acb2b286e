"""Multi-scale residual quantization: its formula, its gradients, its geometry, and that finer scales are worth it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantizers import BSQ, VQ, Gaussian, MultiScale
from quantizers.scales import phi_index


def vq16(**changes):
    return VQ(**{"size": 16, "dim": 4, "codebook": "gradient"} | changes)


def fields(batch, seed=0, side=8):
    """Smooth random grids [B, side * side, 4]: coarse structure plus finer one of less weight."""
    generator = torch.Generator().manual_seed(seed)
    grids = [
        F.interpolate(torch.randn(batch, 4, n, n, generator=generator) * weight, (side, side), mode="bilinear")
        for n, weight in ((1, 1.0), (2, 0.7), (4, 0.5), (8, 0.1))
    ]
    return sum(grids).flatten(2).transpose(1, 2)


def learned(quantizer, steps=120):
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        quantizer(fields(16, seed)).loss.backward()
        optimizer.step()
    return quantizer.eval()


def errors_of_prefixes(quantizer, z):
    with torch.no_grad():
        sums = quantizer.running_sums(quantizer.encode(z))
    return [float((sum_BND - z).square().mean()) for sum_BND in sums]


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_it_learns_and_every_scale_is_worth_its_codes(codebook):
    held_out = fields(64, seed=1000)
    quantizer = MultiScale(vq16(codebook=codebook, decay=0.9), [1, 2, 4, 8], phi=2)
    untrained = errors_of_prefixes(quantizer.eval(), held_out)
    errors = errors_of_prefixes(learned(quantizer.train()), held_out)
    assert all(finer < coarser for coarser, finer in pairwise(errors))
    assert errors[-1] < 0.4 * errors[0]
    assert errors[-1] < 0.3 * untrained[-1]
    assert len(quantizer.encode(held_out).unique()) >= 14


def test_phi_blends_what_interpolation_alone_cannot():
    held_out = fields(64, seed=1000)
    errors = {}
    for phi in (0, 2):
        torch.manual_seed(0)
        errors[phi] = errors_of_prefixes(learned(MultiScale(vq16(), [1, 2, 4, 8], phi=phi)), held_out)[-1]
    assert errors[2] < 0.8 * errors[0]


def test_bits_inside_and_no_convolutions_as_in_infinity():
    held_out = fields(64, seed=1000)
    quantizer = MultiScale(BSQ(4), [1, 2, 4, 8, 8], phi=0).eval()
    codes = quantizer.encode(held_out)
    assert codes.shape == (64, 1 + 4 + 16 + 64 + 64, 1)
    assert len(codes.unique()) == 16
    errors = errors_of_prefixes(quantizer, held_out)
    assert errors[-1] < errors[0] < float(held_out.square().mean())


@pytest.mark.parametrize("upscale", ["bicubic", "bilinear"])
def test_it_is_the_formula(upscale):
    scales, side = [(1, 1), (2, 3), (3, 4)], (3, 4)
    quantizer = MultiScale(vq16(), scales, phi=2, phi_ratio=0.3, upscale=upscale, commitment=0.4).eval()
    z = torch.randn(2, 12, 4)
    f = z.transpose(1, 2).reshape(2, 4, *side)
    left, total, codes, losses = f, torch.zeros_like(f), [], []
    for i, scale in enumerate(scales):
        small = F.adaptive_avg_pool2d(left, scale) if i < 2 else left
        inner = quantizer.quantizer(small.flatten(2).transpose(1, 2))
        rows = quantizer.quantizer.decode(inner.codes_BNS).transpose(1, 2).reshape(2, 4, *scale)
        up = F.interpolate(rows, side, mode=upscale, align_corners=False) if i < 2 else rows
        h = 0.7 * up + 0.3 * quantizer.convolutions[phi_index(i, 3, 2)](up)
        left, total = left - h, total + h
        codes.append(inner.codes_BNS)
        losses.append(1.4 * (total - f).square().mean() + inner.loss)
    out = quantizer(z)
    assert torch.equal(out.codes_BNS, torch.cat(codes, 1))
    assert torch.equal(quantizer.encode(z), out.codes_BNS)
    torch.testing.assert_close(out.z_BND, total.flatten(2).transpose(1, 2))
    torch.testing.assert_close(out.loss, sum(losses) / 3)


def test_gradients_reach_the_input_once_and_the_weights_through_the_loss():
    quantizer = MultiScale(vq16(commitment=0.0, revive=0.0), [1, 2, 4], phi=1, commitment=0.5)
    z, weight = torch.randn(2, 16, 4, requires_grad=True), torch.randn(2, 16, 4)
    out = quantizer(z)
    (gradient,) = torch.autograd.grad((out.z_BND * weight).sum(), z, retain_graph=True)
    torch.testing.assert_close(gradient, weight)
    out.loss.backward()
    sums = quantizer.running_sums(out.codes_BNS)
    torch.testing.assert_close(z.grad, sum(0.5 * 2 * (z - q).detach() / z.numel() / 3 for q in sums))
    assert all(bool(parameter.grad.any()) for parameter in quantizer.parameters())


@pytest.mark.parametrize("convolutions", range(1, 12))
def test_convolutions_are_shared_by_nearest_tick_as_in_float64(convolutions):
    third = 1 / 3 if convolutions == 4 else 1 / 2
    ticks = np.linspace(third / convolutions, 1 - third / convolutions, convolutions)
    for scales in range(2, 20):
        chosen = [phi_index(scale, scales, convolutions) for scale in range(scales)]
        assert chosen == [int(np.argmin(np.abs(ticks - scale / (scales - 1)))) for scale in range(scales)]
        assert chosen == sorted(chosen)
    assert phi_index(0, 1, convolutions) == 0


def test_exact_ties_of_ten_scales_go_up():
    assert [phi_index(scale, 10, 4) for scale in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_other_scales_share_the_weights():
    quantizer = MultiScale(vq16(), [1, 2, 4])
    other = quantizer.with_scales([[1, 2], [2, 4], [3, 6]])
    assert (other.scales, quantizer.scales) == (((1, 2), (2, 4), (3, 6)), ((1, 1), (2, 2), (4, 4)))
    assert {id(p) for p in other.parameters()} == {id(p) for p in quantizer.parameters()}
    assert (other.length(18), quantizer.length(16)) == (2 + 8 + 18, 1 + 4 + 16)
    assert other.options()["scales"] == [[1, 2], [2, 4], [3, 6]]
    codes = other.encode(torch.randn(2, 18, 4))
    assert other.decode(codes).shape == (2, 18, 4)


def test_what_the_next_scale_is_fed():
    quantizer = MultiScale(vq16(), [1, 2, 4]).eval()
    codes = quantizer.encode(torch.randn(2, 16, 4))
    with torch.no_grad():
        fed, sums = quantizer.next_scale_inputs(codes), quantizer.running_sums(codes)
        assert torch.equal(sums[-1], quantizer.decode(codes))
        assert quantizer.vectors(codes).shape == (2, 21, 4)
    assert fed.shape == (2, 20, 4)
    assert torch.equal(fed[:, 4:], sums[1])
    cells = sums[0].view(2, 2, 2, 2, 2, 4).mean((2, 4)).view(2, 4, 4)
    torch.testing.assert_close(fed[:, :4], cells)
    # It may use no code of the scale it is there to predict.
    later = codes.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 16
    with torch.no_grad():
        assert torch.equal(quantizer.next_scale_inputs(later), fed)
    assert MultiScale(vq16(), [2]).next_scale_inputs(torch.zeros(3, 4, 1, dtype=torch.int64)).shape == (3, 0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": []}, r"scales=\[\]"),
        ({"scales": [1, 4, 2]}, r"scales=\[1, 4, 2\].*none larger than the last"),
        ({"scales": [0, 2]}, r"scales=\[0, 2\]"),
        ({"scales": [[1, 2, 3]]}, "scales="),
        ({"scales": 4}, "scales=4"),
        ({"phi": -1}, "phi=-1"),
        ({"phi_ratio": 1.5}, "phi_ratio=1.5"),
        ({"commitment": -0.1}, "commitment=-0.1"),
        ({"upscale": "nearest"}, "upscale='nearest'"),
        ({"inner": Gaussian(4)}, "inner.kind = 'gaussian'"),
        ({"inner": MultiScale(vq16(), [1])}, "inner.kind = 'multiscale'"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MultiScale(**{"inner": vq16(), "scales": [1, 2]} | change)
