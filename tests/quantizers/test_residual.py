"""Residual quantization: its formula, its gradients, quantizer dropout, and that depth is worth its bits."""

from itertools import pairwise

import pytest
import torch

from quantizers import FSQ, VQ, Gaussian, MultiScale, Product, Projected, Residual


def vq16(**changes):
    return VQ(**{"size": 16, "dim": 4, "decay": 0.9} | changes)


def cloud(count, seed=0, dim=4):
    """Points of correlated channels, heavy in the tails: many more than a few codes can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
    points = torch.randn(count, dim, generator=generator) * (1 + torch.rand(count, 1, generator=generator))
    return (points @ mix)[None]


def learned(quantizer, batches=150):
    for seed in range(batches):
        quantizer(cloud(256, seed))
    return quantizer.eval()


def error(vectors, z):
    return float((vectors - z).square().mean())


def test_depth_beats_one_level_of_the_same_size_and_every_prefix_is_coarser():
    held_out = cloud(3000, seed=1000)
    deep, one = learned(Residual(vq16(), 4)), learned(VQ(16, 4, decay=0.9))
    codes = deep.encode(held_out)
    prefixes = [error(deep.decode_prefix(codes[..., :levels]), held_out) for levels in range(5)]
    assert all(finer < 0.8 * coarser for coarser, finer in pairwise(prefixes))
    single = error(one.decode(one.encode(held_out)), held_out)
    assert prefixes[1] == pytest.approx(single, rel=0.15)
    assert prefixes[4] < 0.2 * single
    assert prefixes[4] == error(deep.decode(codes), held_out)
    assert all(len(codes[..., level].unique()) >= 14 for level in range(4))


def test_a_shared_codebook_is_one_codebook_and_still_gains_from_depth():
    held_out = cloud(3000, seed=1000)
    shared = learned(Residual(vq16(size=64), 3, shared=True))
    assert set(shared.state_dict()) == {f"quantizers.0.{name}" for name in ("codebook_KD", "sum_KD", "count_K")}
    assert len({id(level) for level in shared.levels}) == 1
    codes = shared.encode(held_out)
    prefixes = [error(shared.decode_prefix(codes[..., :levels]), held_out) for levels in range(4)]
    assert prefixes[3] < 0.7 * prefixes[1] < 0.7 * prefixes[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "inner",
    [
        lambda: vq16(),
        lambda: [vq16(), VQ(9, 4, commitment=1.0, estimator="rotation")],
        lambda: vq16(codebook="gradient"),
        lambda: vq16(codebook="gradient", estimator="diveq"),
        lambda: vq16(codebook="gradient", orthogonal=0.5),
    ],
)
def test_one_search_of_all_levels_equals_level_by_level(inner, masked, monkeypatch):
    residual = learned(Residual(inner(), 2), batches=5)
    z, mask = cloud(128, seed=7).view(4, 32, 4), torch.rand(4, 32) < 0.7 if masked else None
    fast, slow = [], []
    for results, level_by_level in ((fast, False), (slow, True)):
        if level_by_level:
            monkeypatch.setattr(Residual, "_fused", False)
        x = z.clone().requires_grad_()
        out = residual(x, mask)
        with torch.no_grad():
            alone = residual(z, mask)
        results += [out.codes_BNS, residual.encode(z), out.z_BND.detach(), alone.codes_BNS, alone.z_BND]
        results += [out.loss, alone.loss, *torch.autograd.grad(out.loss + out.z_BND.square().sum(), x)]
    assert all(torch.equal(a, b) for a, b in zip(fast[:5], slow[:5], strict=True))
    for a, b in zip(fast[5:], slow[5:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)  # summed in another order


def test_levels_see_what_is_left_times_the_shrink():
    residual = Residual(FSQ([5, 3]), 3, shrink=[4.0, 2.0], soft_clamp=1.5).eval()
    z = torch.randn(2, 50, 2)
    left = 1.5 * torch.tanh(z / 1.5)
    total, codes, level = torch.zeros_like(z), [], FSQ([5, 3])
    for i in range(3):
        factor = torch.tensor([4.0, 2.0]) ** i
        codes.append(level.encode(left * factor))
        q = level.decode(codes[-1]) / factor
        left, total = left - q, total + q
    assert torch.equal(residual.encode(z), torch.cat(codes, -1))
    torch.testing.assert_close(residual.decode(torch.cat(codes, -1)), total)
    torch.testing.assert_close(residual(z).z_BND, total)


def test_without_shrink_later_levels_of_a_fixed_range_add_nothing():
    z = torch.rand(1, 500, 2) * 2 - 1
    errors = {}
    for shrink in (None, 4.0):
        residual = Residual(FSQ([5, 5], form="symmetric", activation="clamp"), 3, shrink=shrink).eval()
        errors[shrink] = error(residual.decode(residual.encode(z)), z)
    one = residual.levels[0]
    assert errors[None] == pytest.approx(error(one.decode(one.encode(z)), z), rel=1e-4)
    assert errors[4.0] < 0.02 * errors[None]


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_the_gradient_passes_once_whatever_the_depth(dropout):
    residual = Residual(vq16(), 5, dropout=dropout)
    z, weight = torch.randn(6, 10, 4, requires_grad=True), torch.randn(6, 10, 4)
    (gradient,) = torch.autograd.grad((residual(z).z_BND * weight).sum(), z)
    torch.testing.assert_close(gradient, weight)


def test_the_loss_of_every_level_reaches_the_input():
    residual = Residual(vq16(commitment=0.5), 3).eval()
    z = torch.randn(2, 5, 4, requires_grad=True)
    out = residual(z)
    prefixes = [residual.decode_prefix(out.codes_BNS[..., :levels]) for levels in (1, 2, 3)]
    torch.testing.assert_close(out.loss, sum(0.5 * (z - q).square().mean() for q in prefixes) / 3)
    (gradient,) = torch.autograd.grad(out.loss, z)
    torch.testing.assert_close(gradient, sum((z - q).detach() for q in prefixes) / 3 / z.numel())


def test_projections_inside_the_levels_learn():
    residual = Residual(Projected(VQ(16, 2), 4), 3)
    out = residual(torch.randn(4, 32, 4))
    out.z_BND.square().mean().backward()
    assert all(bool(parameter.grad.any()) for parameter in residual.parameters())


def test_dropped_levels_give_no_vector_no_loss_and_no_statistics():
    residual, z = Residual(vq16(revive=0.0), 4, dropout=1.0), torch.randn(64, 10, 4)
    before = [level.decode(torch.arange(16).view(1, 16, 1))[0] for level in residual.levels]
    out = residual(z)
    gained = torch.tensor([float(level.count_K.sum()) / (1 - 0.9) / 10 for level in residual.levels])
    assert gained[0] == pytest.approx(64)
    assert bool((gained[1:] < gained[:-1]).all())
    assert float(gained[3]) == pytest.approx(64 / 4, abs=10)
    kept, losses = torch.zeros(4), torch.zeros(4)
    for sample, codes, vectors in zip(z, out.codes_BNS, out.z_BND, strict=True):
        sums = torch.stack([before[level][codes[:, level]] for level in range(4)]).cumsum(0)
        levels = int((sums - vectors).abs().amax((1, 2)).argmin()) + 1
        torch.testing.assert_close(vectors, sums[levels - 1], atol=1e-5, rtol=0)
        assert not bool(codes[:, levels:].any())
        kept[:levels] += 1
        losses[:levels] += (sample - sums[:levels]).square().mean((1, 2))
    torch.testing.assert_close(gained, kept)
    torch.testing.assert_close(out.loss, 0.25 * (losses / kept).mean())


def test_half_of_the_samples_keep_all_levels_and_evaluation_keeps_them_always():
    residual, z = Residual(vq16(), 4, dropout=0.5), torch.randn(2000, 1, 4)
    residual(z)
    share = (residual(z).codes_BNS[..., 3] != 0).float().mean()
    assert float(share) == pytest.approx((0.5 + 0.5 / 4) * 15 / 16, abs=0.06)
    assert torch.equal(residual.eval()(z).codes_BNS, residual.encode(z))


def waves(count, seed):
    """Points of a curved two-dimensional sheet in eight dimensions."""
    angle = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 6
    return torch.cat([wave(frequency * angle) for frequency in (1, 2) for wave in (torch.sin, torch.cos)], -1)


def codec(dropout):
    """Errors of every prefix after training an encoder and a decoder around residual codes."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 3))
    decoder = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    residual = Residual(FSQ([3, 3, 3], form="symmetric"), 4, dropout=dropout, shrink=2.0)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 5e-3)
    for seed in range(200):
        x = waves(256, seed).view(64, 4, 8)
        loss = (decoder(residual(encoder(x)).z_BND) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = waves(2000, seed=1000)[None]
    with torch.no_grad():
        codes = residual.eval().encode(encoder(held_out))
        return [error(decoder(residual.decode_prefix(codes[..., :levels])), held_out) for levels in (1, 2, 3, 4)]


def test_dropout_makes_short_prefixes_decode_better():
    without, with_dropout = codec(0.0), codec(0.5)
    assert all(finer < coarser for coarser, finer in pairwise(with_dropout))
    assert with_dropout[0] < 0.95 * without[0]


def test_a_prefix_that_ends_inside_a_level_is_refused():
    residual = Residual(Product(VQ(8, 2), 2), 3).eval()
    codes = residual.encode(torch.randn(2, 5, 4))
    assert torch.equal(residual.decode_prefix(codes), residual.decode(codes))
    assert not bool(residual.decode_prefix(codes[..., :0]).any())
    with pytest.raises(ValueError, match=r"\(2, 5, 3\).*one.*\[0, 2, 4, 6\]"):
        residual.decode_prefix(codes[..., :3])
    with pytest.raises(ValueError, match=r"stream 0.*codes 0\.\.7"):
        residual.decode_prefix(codes[..., :2] + 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth=0"),
        ({"dropout": 1.5}, r"dropout=1.5.*\[0, 1\]"),
        ({"shrink": [2.0, 2.0]}, r"shrink=\[2.0, 2.0\].*4 channels"),
        ({"shrink": 0}, "shrink=0: expected a positive"),
        ({"soft_clamp": -1.0}, "soft_clamp=-1.0"),
        ({"depth": None}, "depth=None"),
        ({"inner": [], "depth": None}, "depth=0"),
        ({"inner": Gaussian(4)}, "inner.kind = 'gaussian'"),
        ({"inner": [vq16(), Gaussian(4)]}, r"inner\[1\].kind = 'gaussian'"),
        ({"inner": MultiScale(vq16(), [1, 2])}, "inner.kind = 'multiscale'"),
        ({"inner": "vq"}, "inner='vq'"),
        ({"inner": {"kind": "vq", "size": 16, "dim": 4}}, r"inner=\{'kind': 'vq'.*expected a quantizer"),
        ({"inner": [{"kind": "vq"}, vq16()]}, r"inner\[0\]=\{'kind': 'vq'\}.*quantizers.build"),
        ({"inner": [vq16()]}, "depth=2: inner has 1 quantizers"),
        ({"inner": [vq16(), VQ(4, 3)]}, r"\[3, 4\] channels"),
        ({"inner": [vq16(), vq16()], "shared": True}, "shared=True with 2 inner quantizers"),
        ({"inner": [vq16()] * 2}, r"one quantizer twice.*shared=True"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Residual(**{"inner": vq16(), "depth": 2} | change)
