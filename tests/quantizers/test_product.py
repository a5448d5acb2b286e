"""Product quantization: channels in groups; what it shares, what it keeps apart, and what it is worth."""

import pytest
import torch

from quantizers import FSQ, VQ, Gaussian, Product, Residual


def vq16():
    return VQ(16, 2, decay=0.9)


def two_mixtures(count, seed=0):
    """Two independent mixtures of 16 points side by side: 256 combinations."""
    where = torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(99)) * 3
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(16, (count, 2), generator=generator)
    noise = 0.1 * torch.randn(count, 4, generator=generator)
    return (torch.cat([where[0][index[:, 0]], where[1][index[:, 1]]], -1) + noise)[None]


def learned(quantizer):
    for seed in range(150):
        quantizer(two_mixtures(256, seed))
    return quantizer.eval()


def error(quantizer, z):
    return float((quantizer.decode(quantizer.encode(z)) - z).square().mean())


def test_two_small_codebooks_tell_apart_what_one_of_their_size_cannot():
    held_out = two_mixtures(3000, seed=1000)
    product, whole = learned(Product(vq16(), 2)), learned(VQ(32, 4, decay=0.9))
    assert error(product, held_out) < 0.3 * error(whole, held_out)
    codes = product.encode(held_out)
    assert [len(codes[..., stream].unique()) for stream in (0, 1)] == [16, 16]


def test_groups_are_quantized_as_if_alone():
    product = Product([FSQ([4, 3]), VQ(9, 3)]).eval()
    fsq, vq = product.quantizers
    z = torch.randn(2, 30, 5)
    assert (product.in_dim, product.dim, product.codes) == (5, 5, (12, 9))
    parts = [fsq.encode(z[..., :2]), vq.encode(z[..., 2:])]
    codes = product.encode(z)
    assert torch.equal(codes, torch.cat(parts, -1))
    assert torch.equal(product.decode(codes), torch.cat([fsq.decode(parts[0]), vq.decode(parts[1])], -1))
    torch.testing.assert_close(product(z).loss, (fsq(z[..., :2]).loss + vq(z[..., 2:]).loss) / 2)


@pytest.mark.parametrize("masked", [False, True])
def test_a_shared_quantizer_sees_the_groups_as_more_positions(masked):
    product, alone = Product(vq16(), 3, shared=True), vq16()
    alone.load_state_dict(product.quantizers[0].state_dict())
    z, mask = torch.randn(2, 10, 6), torch.rand(2, 10) < 0.6
    torch.manual_seed(1)
    out = product(z, mask if masked else None)
    torch.manual_seed(1)
    expected = alone(z.reshape(2, 30, 2), mask.repeat_interleave(3, 1) if masked else None)
    assert torch.equal(out.codes_BNS, expected.codes_BNS.view(2, 10, 3))
    assert torch.equal(out.z_BND, expected.z_BND.view(2, 10, 6))
    assert torch.equal(out.loss, expected.loss)
    for name, value in product.quantizers[0].state_dict().items():
        assert torch.equal(value, alone.state_dict()[name])
    assert set(product.state_dict()) == {f"quantizers.0.{name}" for name in alone.state_dict()}


def test_masked_positions_leave_no_trace_in_any_group():
    z, mask = torch.randn(4, 20, 4), torch.rand(4, 20) < 0.5
    states = []
    for fill in (0.0, 50.0):
        torch.manual_seed(1)
        product = Product(vq16(), 2)
        out = product(torch.where(mask[..., None], z, fill), mask)
        states.append([*product.state_dict().values(), out.loss, out.z_BND, out.codes_BNS])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_codes_can_be_read_off_where_every_part_allows_it():
    assert Product(vq16(), 2).invertible
    mixed = Product([vq16(), Residual(vq16(), 2)])
    assert not mixed.invertible
    assert mixed.codes == (16, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "groups=0"),
        ({"inner": [vq16(), vq16(), vq16()]}, "groups=2: inner has 3 quantizers"),
        ({"inner": [vq16(), vq16()], "shared": True}, "shared=True with 2"),
        ({"inner": Gaussian(2)}, "inner.kind = 'gaussian'"),
        ({"groups": None}, "groups=None"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Product(**{"inner": vq16(), "groups": 2} | change)


def test_channels_that_the_groups_do_not_fill_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 5\): product.*\[batch, position, 4\]"):
        Product(vq16(), 2).encode(torch.zeros(1, 3, 5))
