"""BSQ: what the sphere adds to LFQ."""

import torch

from quantizers import BSQ, LFQ


def test_both_sides_lie_on_the_unit_sphere():
    bsq, z = BSQ(10), torch.randn(2, 50, 10) * 7
    latent, q = bsq._latent(z), bsq.eval()(z).z_BND
    torch.testing.assert_close(latent.norm(dim=-1), torch.ones(2, 50))
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(2, 50))
    assert torch.equal(q.abs().unique(), torch.tensor([10**-0.5]))
    assert torch.equal(bsq.encode(z), LFQ(10).encode(z))


def test_the_quantization_error_is_bounded_as_the_paper_says():
    """|u - q| < sqrt(2 - 2 / sqrt(d)), close to it only where one channel holds everything."""
    for dim in (2, 10, 60):
        bsq = BSQ(dim, entropy=0.0)
        z = torch.cat([torch.randn(1, 2000, dim), torch.eye(dim)[None] - 1e-6], 1)
        error = (bsq._latent(z) - bsq(z).z_BND).norm(dim=-1)
        bound = (2 - 2 * dim**-0.5) ** 0.5
        assert 0.99 * bound < float(error.max()) <= bound + 1e-4


def test_length_changes_nothing():
    bsq, z = BSQ(6, temperature=0.5), torch.randn(2, 50, 6)
    near, far = bsq(z), bsq(z * 1000)
    assert torch.equal(near.codes_BNS, far.codes_BNS)
    torch.testing.assert_close(near.loss, far.loss)
    lfq = LFQ(6, temperature=0.5)
    assert abs(float(lfq(z).loss - lfq(z * 1000).loss)) > 1


def test_gradients_are_tangent_to_the_sphere():
    bsq, z = BSQ(6, temperature=0.5), torch.randn(2, 50, 6, requires_grad=True)
    out = bsq(z)
    (gradient,) = torch.autograd.grad((out.z_BND * torch.randn(2, 50, 6)).sum() + out.loss, z)
    assert float((gradient * z).sum(-1).detach().abs().max()) < 1e-5 < float(gradient.abs().max())


def test_zero_is_safe():
    """Zeros, and numbers whose squares underflow, have a code, a value on the sphere and a finite gradient."""
    bsq = BSQ(4)
    z = torch.tensor([[[0.0, 0, 0, 0], [1e-30, -1e-30, 0, 1e-30], [1, -1, 1, 1]]], requires_grad=True)
    out = bsq(z)
    assert out.codes_BNS.flatten().tolist() == [0b0000, 0b1001, 0b1011]
    assert torch.equal(bsq.encode(z.detach()), out.codes_BNS)
    torch.testing.assert_close(out.z_BND.norm(dim=-1), torch.ones(1, 3))
    (gradient,) = torch.autograd.grad(out.z_BND.sum() + out.loss, z)
    assert bool(gradient.isfinite().all())


def test_options_have_no_scale():
    assert "scale" not in BSQ(4).options()
    assert BSQ(4).options() == {
        "kind": "bsq",
        "dim": 4,
        "streams": 1,
        "commitment": 0.25,
        "entropy": 0.1,
        "diversity": 1.0,
        "temperature": 0.01,
        "entropy_group": None,
        "bit_order": "msb",
    }
